"""Inputs that need no server: those kept from the jobs before, and those in a read folder.

They are taken by the thread that wants them, without a detour over the loop of `staging`, which is
asked for the rest. Everything that passes through here, and everything that the loop fetches, is
kept in the `InputCache`.
"""

from collections.abc import Iterable, Sequence

import seamless
from seamless.checksum.calculate_checksum import TRIVIAL_CHECKSUMS

from seamless_jobserver.worker.inputcache import InputCache
from seamless_jobserver.worker.pins import Need, leaves
from seamless_jobserver.worker.readfolders import ReadFolders


class Nearby:
    """What can be had at once; `cache_size` is in bytes."""

    def __init__(self, cache_size: int) -> None:
        self.cache = InputCache(cache_size)
        self._folders = ReadFolders()

    def take(self, needs: Sequence[Need]) -> tuple[list[seamless.Buffer], bool]:
        """Return the buffers of `needs` that are at hand, and whether these are all.

        While they are held, Seamless finds them in its weak cache.
        """
        wanted = {need.checksum for need in needs} - TRIVIAL_CHECKSUMS.keys()
        found = self._find(wanted)
        if found.keys() >= wanted:
            # A folder brings its leaves along.
            wanted = {
                leaf
                for need in needs
                if need.celltype == "folder" and need.checksum in found
                for leaf in leaves(found[need.checksum].get_value("plain"))
            } - TRIVIAL_CHECKSUMS.keys()
            found.update(self._find(wanted - found.keys()))
        return list(found.values()), found.keys() >= wanted

    def has_path(self, checksum: str, mode: str) -> bool:
        """Return what `ReadFolders.has_path` does."""
        return self._folders.has_path(checksum, mode)

    def keep(self, buffers: Iterable[seamless.Buffer]) -> None:
        """Keep buffers that came from a server, for the jobs to come."""
        for buffer in buffers:
            self.cache.keep(buffer.get_checksum().hex(), buffer)

    def _find(self, checksums: set[str]) -> dict[str, seamless.Buffer]:
        found = {}
        for checksum in checksums:
            buffer = self.cache.get(checksum)
            if buffer is not None:
                found[checksum] = buffer
        rest = [checksum for checksum in checksums if checksum not in found]
        for checksum, read in zip(rest, self._folders.read(rest), strict=True):
            if read is not None:
                self.cache.keep(checksum, read)
                found[checksum] = read
        return found
