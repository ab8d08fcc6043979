"""A password from a file: in an argument list everybody would see it, by ``ps``."""

import os
import stat
from pathlib import Path
from typing import Final

_LIMIT: Final = 4096


def read_password_file(path: Path) -> bytes:
    """Return the password in the file at `path`, without the end of its line.

    Raises ValueError, with a message that begins with the path, when it cannot be read, or when
    somebody else could read or change it.
    """
    try:
        # O_NONBLOCK: opening a FIFO would wait for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            facts = os.fstat(file.fileno())
            password = file.read(_LIMIT).rstrip(b"\r\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise ValueError(
            f"{path} must be a file of yours that nobody else can read: chmod 600 {path}"
        )
    if not password:
        raise ValueError(f"{path} is empty")
    return password
