"""The spool: results that were computed, and that no store would take.

Each is a directory with the buffers as files that are named by their checksums, and a manifest
that says what they are. It is made under another name and renamed when it is whole. All of it is
readable by its user alone.

A spooled result is taken for true later, and its buffers are sent to the store. So what is not the
user's own is not believed: the spool, each entry and its manifest must belong to the user (or the
spool to root), nobody else may be able to write there, none of them is a link, and a buffer's name
is a checksum and nothing else.

A spooled result is used in two ways. ``seamless-jobserver upload`` brings it to the store and tells
the database of it. And a worker that is asked for the same transformation again offers the spooled
result to the store, instead of computing it a second time.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

MANIFEST: Final = "manifest.json"
VARIABLE: Final = "SEAMLESS_JOBSERVER_SPOOL"
"""The environment variable that names the spool."""
_CHECKSUM: Final = re.compile(r"[0-9a-f]{64}\Z")


def spool_directory() -> Path | None:
    """Return where spooled results are kept, whether it exists or not.

    ``SEAMLESS_JOBSERVER_SPOOL``, or a folder of the user's state directory (XDG Base Directory
    Specification, ``XDG_STATE_HOME``). None for a user who has no home: a folder that all users
    share is no place for results that are taken for true later.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen)
    state = os.environ.get("XDG_STATE_HOME")
    try:
        base = Path(state) if state and os.path.isabs(state) else Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    return base / "seamless-jobserver" / "spool"


def stay() -> None:
    """Have the spool stay where it is, whatever directory this process or one below it goes to."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        os.environ[VARIABLE] = os.path.abspath(chosen)


def entry_path(spool: Path, transformation: str, envelope: Any) -> Path:
    """Return the directory for the result of a transformation that ran with `envelope` (JSON)."""
    canonical = json.dumps(envelope, sort_keys=True).encode()
    return spool / f"{transformation}-{hashlib.sha256(canonical).hexdigest()[:16]}"


def keep(path: Path, manifest: dict[str, Any], buffers: dict[str, bytes]) -> None:
    """Make the entry at `path`, with `buffers` by checksum; it is whole, or it is not there.

    Raises OSError.
    """
    _make_private(path.parent)
    problem = distrust(path.parent)
    if problem is not None:
        raise PermissionError(errno.EPERM, problem)
    # mkdtemp makes a directory that is the user's alone, whatever the umask is.
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=path.parent))
    try:
        for checksum, content in buffers.items():
            _write(making / checksum, content)
        text = json.dumps({**manifest, "buffers": list(buffers)}, indent=2)
        _write(making / MANIFEST, text.encode())
        if path.exists():
            shutil.rmtree(path)
        making.rename(path)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


def distrust(spool: Path) -> str | None:
    """Return why what is in a spool is not believed, and none is kept there, or None."""
    try:
        trusted = is_trusted(spool.stat())
    except OSError:
        return None  # it is not there yet, or who asks will meet the same
    if trusted:
        return None
    return (
        f"{spool} is not used for results: it must be a directory of yours where nobody else can "
        f"write. If it is yours: chmod go-w {spool}"
    )


def read(path: Path) -> dict[str, Any] | None:
    """Return the manifest of the entry at `path`, or None when there is no whole entry.

    Nor is there one for who may not read it, or when somebody else could have made it.
    """
    try:
        if not is_trusted(path.parent.stat()) or not _is_own_directory(path.lstat()):
            return None
        manifest = json.loads(read_file(path / MANIFEST))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("buffers"), list):
        return None
    named = all(isinstance(one, str) and _CHECKSUM.match(one) for one in manifest["buffers"])
    return manifest if named else None


def read_file(path: Path) -> bytes:
    """Return the content of a file of an entry, which must be no link. Raises OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        return file.read()


def entries(spool: Path) -> Iterator[Path]:
    """Yield the whole entries in `spool`, oldest first. Raises OSError."""
    try:
        found = [path for path in spool.iterdir() if read(path) is not None]
    except FileNotFoundError:
        return
    yield from sorted(found, key=lambda path: path.stat().st_mtime)


def remove(path: Path) -> None:
    """Remove an entry; the manifest goes first, so that half an entry is none."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _make_private(directory: Path) -> None:
    """Make `directory` and what is missing above it, for the user alone, whatever the umask is."""
    missing = []
    while not directory.exists():
        missing.append(directory)
        directory = directory.parent
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)


def is_trusted(facts: os.stat_result) -> bool:
    """Whether a directory is this user's or root's, and nobody else may write there."""
    others_write = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid in (os.geteuid(), 0) and not others_write


def _is_own_directory(facts: os.stat_result) -> bool:
    return is_trusted(facts) and facts.st_uid == os.geteuid()
