"""The files that jobs print into, in a private directory that goes away with the server.

A worker creates a job's file and points its standard output and error at it; the server reads it,
also when the worker is dead. Nobody else can look in: the directory is the user's alone.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

SHOWN: Final = 256 * 1024
"""Bytes of a job's output that go into the answer for a failure; its end says most."""


class JobOutput:
    """Owner of the directory."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="seamless-jobserver-"))
        self._count = 0

    def new_path(self) -> str:
        """Return a path for the output of one run of a job; nothing is there yet."""
        self._count += 1
        return str(self._directory / f"{self._count}.out")

    def take(self, path: str, *, wanted: bool) -> str:
        """Remove the file at `path`; return what was printed into it, if that is `wanted`.

        Text in UTF-8, with what is not UTF-8 replaced. Of more than `SHOWN` bytes the end is
        returned, under a line that says so. A job that never began has no file, and no output.
        """
        try:
            if not wanted:
                os.unlink(path)
                return ""
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - SHOWN))
                text = file.read(SHOWN).decode("utf-8", errors="replace")
            os.unlink(path)
        except FileNotFoundError:
            return ""
        if size > SHOWN:
            return f"[… {size - SHOWN} bytes left out …]\n{text}"
        return text

    def close(self) -> None:
        """Remove the directory with all that is in it."""
        shutil.rmtree(self._directory, ignore_errors=True)
