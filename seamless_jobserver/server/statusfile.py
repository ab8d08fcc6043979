"""The status file: how the launcher tells us about the store, and how we tell it our port.

protocol.md, "Status file". It is read once and replaced atomically: a temporary file in the same
directory, then a rename, so that the launcher, which polls it, never sees half a file.
"""

import json
import logging
import os
import queue
import stat
import tempfile
from pathlib import Path
from typing import Any, Final

from seamless_jobserver.errors import StartupError

APPEARANCE_LIMIT: Final = 20.0
"""Seconds to wait for the file: the launcher writes it around the moment that it starts us."""
_POLL: Final = 0.05

_log = logging.getLogger(__name__)


class StatusFile:
    """A status file that has been read. Top-level keys that are not ours are kept as they are."""

    def __init__(self, path: Path, content: dict[str, Any], mode: int) -> None:
        """`mode` is that of the file that was read, for those that take its place."""
        self._path = path
        self._content = content
        self._mode = mode

    @classmethod
    def read(cls, path: Path, interrupts: "queue.SimpleQueue[Any]") -> "StatusFile | None":
        """Wait for the file at `path` and read it; None when an interrupt came first.

        The interrupt is left for whoever handles them. Raises `StartupError` when the file does
        not appear in time, or does not hold a JSON object.
        """
        waited = 0.0
        while not os.path.exists(path):
            if waited >= APPEARANCE_LIMIT:
                raise StartupError(
                    f"status file {path} did not appear within {APPEARANCE_LIMIT:.0f} s: is the "
                    "path right, and has the launcher been started?"
                )
            try:
                interrupts.put(interrupts.get(timeout=_POLL))
            except queue.Empty:
                waited += _POLL
            else:
                return None
        try:
            text, mode = read_ours(path)
            content = json.loads(text)
        except OSError as error:
            raise StartupError(f"status file {path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise StartupError(f"status file {path} is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise StartupError(f"status file {path} holds no JSON object, as the launcher writes")
        return cls(path, content, mode)

    @property
    def parameters(self) -> dict[str, Any]:
        """The launcher's ``parameters``: the clients of store and database, and ``record``.

        Raises `StartupError` when it is not what protocol.md says.
        """
        parameters = self._content.get("parameters")
        if parameters is None:
            return {}
        if not isinstance(parameters, dict):
            raise StartupError(f"status file {self._path}: 'parameters' is not an object")
        for key in ("database", "buffer"):
            entries = parameters.get(key, [])
            if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
                raise StartupError(
                    f"status file {self._path}: 'parameters.{key}' is not a list of objects"
                )
        if not isinstance(parameters.get("record", False), bool):
            raise StartupError(f"status file {self._path}: 'parameters.record' is not a boolean")
        return parameters

    def write_running(self, port: int) -> None:
        """Say that the server listens on `port`. Raises `StartupError` when that fails."""
        self._content["port"] = port
        self._replace("running")

    def write_failed(self) -> None:
        """Say that the server has failed. Raises `StartupError` when that fails."""
        self._replace("failed")

    def _replace(self, status: str) -> None:
        self._content["status"] = status
        temporary = None
        try:
            descriptor, temporary = tempfile.mkstemp(
                prefix=f".{self._path.name}.", suffix=".tmp", dir=self._path.parent
            )
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(self._content, file, indent=2)
                # Not the mode of what is there now: that may be something else meanwhile.
                os.fchmod(file.fileno(), self._mode)
            os.replace(temporary, self._path)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            raise StartupError(
                f"status file {self._path} cannot be replaced: {error.strerror}"
            ) from None


def read_ours(path: Path) -> tuple[bytes, int]:
    """Return content and mode of a file that is ours, or of the administrator.

    What the file says decides where results go. In a directory that others can write to, such as
    ``/tmp``, somebody else may have put a file or a link in the place of the launcher's; and in a
    file that everybody can write to anybody may have. The launcher's is 0600. One that a group can
    write to is what an editor leaves where everybody has a group of their own, hence no more than a
    warning. Raises OSError, and `StartupError` for a file that is not to be trusted.
    """
    # O_NONBLOCK: opening a FIFO would wait for somebody to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        facts = os.fstat(file.fileno())
        link = os.lstat(path)
        owners = {facts.st_uid, link.st_uid}
        if not stat.S_ISREG(facts.st_mode):
            raise StartupError(f"status file {path} is no regular file: is it the right path?")
        if not owners <= {os.geteuid(), 0}:
            raise StartupError(
                f"status file {path} is not a file of yours: its owner is user {facts.st_uid}"
            )
        if facts.st_mode & stat.S_IWOTH:
            raise StartupError(
                f"status file {path} can be changed by everybody: chmod 600 {path}, and look into "
                "it first"
            )
        if facts.st_mode & stat.S_IWGRP:
            _log.warning(
                "status file %s can be changed by group %d, and says where results go: chmod 600",
                path,
                facts.st_gid,
            )
        return file.read(), stat.S_IMODE(facts.st_mode)
