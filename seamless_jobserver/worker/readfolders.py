"""Reading buffers from read folders: whole files, checked, without a detour over an event loop.

seamless-remote reads them too, in half a dozen steps that each pass through a thread pool. Here one
file is opened, read and checked in one go. Whatever is out of the ordinary is left to
seamless-remote, which is asked for what is not found here: files that are compressed, locked, still
being written or damaged.

Where the store's own folder can be seen from here, what lies in it need not be sent there
(`store_folder`, `ReadFolders.without`).
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import seamless
from seamless.compression_utils import COMPRESSION_SUFFIXES
from seamless_remote import buffer_remote

_AT_ONCE: Final = 16
"""Files that are read at a time: on a network disk it is waiting that takes the time."""
_FEW: Final = 8
"""Files that are read one after another, without threads, unless they are large."""
_LARGE: Final = 1024 * 1024

One = TypeVar("One")
Found = TypeVar("Found")


def store_folder(clients: dict[str, Any]) -> str | None:
    """Return where the one store that takes results keeps them as files, if this machine sees that.

    `clients` is the ``parameters`` object of the status file (protocol.md).
    """
    writable = [entry for entry in clients.get("buffer") or () if not entry.get("readonly", True)]
    folder = writable[0].get("remote_directory") if len(writable) == 1 else None
    return None if folder is None else os.path.expanduser(str(folder))


class ReadFolders:
    """The read folders that this process was configured with, in their order."""

    def __init__(self, folders: Sequence[str] | None = None) -> None:
        """Take the folders of seamless-remote's configuration, or those given."""
        if folders is None:
            # Private: seamless-remote has no public way to ask. Without it, it reads them itself.
            clients = getattr(buffer_remote, "_read_folders_clients", [])
            folders = [client.directory for client in clients if client.directory]
        self._folders = [str(folder) for folder in folders]
        # Threads are started as they are needed, and by their name are told from a job's own.
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="jobserver-folders")

    def read(self, checksums: Sequence[str]) -> list[seamless.Buffer | None]:
        """Return the buffers with these checksums, and None for each that is not found."""
        if not self._folders:
            return [None] * len(checksums)
        if len(checksums) <= _FEW and not self._several_large(checksums):
            return [self._read_one(checksum) for checksum in checksums]
        strides = [checksums[start::_AT_ONCE] for start in range(min(_AT_ONCE, len(checksums)))]
        found: list[seamless.Buffer | None] = [None] * len(checksums)
        for start, buffers in enumerate(self._together(self._read_some, strides)):
            found[start::_AT_ONCE] = buffers
        return found

    def without(self, buffers: Sequence[seamless.Buffer]) -> list[seamless.Buffer]:
        """Return those of `buffers` that are not found; files are compared with them."""
        if not self._folders:
            return list(buffers)
        look = map if len(buffers) <= _FEW else self._together
        held = look(self._holds, buffers)
        return [buffer for buffer, found in zip(buffers, held, strict=True) if not found]

    def _together(self, look: Callable[[One], Found], ones: Sequence[One]) -> Iterable[Found]:
        """Do what `map` does, in threads, if there are any to be had."""
        try:
            return self._pool.map(look, ones)
        except RuntimeError:
            return map(look, ones)

    def _holds(self, buffer: seamless.Buffer) -> bool:
        for path in self._paths(buffer.get_checksum().hex()):
            try:
                with open(path, "rb", buffering=0) as file:
                    if file.read() == buffer.content:
                        return True
            except OSError:
                continue
        return False

    def has_path(self, checksum: str, mode: str) -> bool:
        """Whether there is a ``file`` or a ``directory`` of a checksum, compressed or not."""
        is_it = os.path.isdir if mode == "directory" else os.path.isfile
        return any(
            is_it(path + suffix)
            for path in self._paths(checksum)
            for suffix in ("", *COMPRESSION_SUFFIXES)
        )

    def _read_some(self, checksums: Sequence[str]) -> list[seamless.Buffer | None]:
        return [self._read_one(checksum) for checksum in checksums]

    def _several_large(self, checksums: Sequence[str]) -> bool:
        """Whether threads pay: checking releases the interpreter, and each takes a processor."""
        large = 0
        for checksum in checksums if len(checksums) > 1 else ():
            for path in self._paths(checksum):
                try:
                    # Not pathlib: it costs as much as to read a small buffer.
                    large += os.stat(path).st_size >= _LARGE
                except OSError:
                    continue
                break
        return large > 1

    def _read_one(self, checksum: str) -> seamless.Buffer | None:
        for path in self._paths(checksum):
            try:
                # Unbuffered: the file's size is known, and its bytes are copied once.
                with open(path, "rb", buffering=0) as file:
                    content = file.read()
            except OSError:
                continue
            if hashlib.sha256(content).hexdigest() == checksum:
                return seamless.Buffer(content, checksum=seamless.Checksum(checksum))
        return None

    def _paths(self, checksum: str) -> list[str]:
        return [
            path
            for folder in self._folders
            for path in (f"{folder}/{checksum[:2]}/{checksum}", f"{folder}/{checksum}")
        ]
