"""The directory that the server works in, which is not to be one where others can write.

multiprocessing starts workers, and processes of jobs, with ``python -c``, which looks for modules
in the working directory first. The launcher's is ``/tmp``, where anybody could put a module for it
to find, and run code as this user. So the server leaves such a directory, for its own private one,
before it starts anything, and has nothing imported from there any more. Each worker goes to a
directory of its own below that (`worker.entry`), so that no job takes away what others stand in.
"""

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from seamless_jobserver import spool

_log = logging.getLogger(__name__)


def leave_shared_directory(private: str) -> None:
    """Go to the directory `private`, if others can write to the present one. Raises OSError."""
    with suppress(OSError):  # it is gone, or may not be looked at
        if spool.is_trusted(os.stat(".")):
            return
    with suppress(OSError):
        _forget_path(os.getcwd())
    os.chdir(private)
    _log.info(
        "others can write to the directory it was started in: jobs have directories of their own, "
        "which go away with their worker"
    )


def _forget_path(directory: str) -> None:
    """Import nothing from `directory` any more, unless this package itself is there.

    An empty part of PYTHONPATH means the directory that the interpreter was started in, and so does
    ``python -m``. Workers get the same path.
    """
    shared = os.path.realpath(directory)
    if shared == os.path.realpath(Path(__file__).parents[2]):
        return
    kept = [one for one in sys.path if os.path.realpath(one or directory) != shared]
    if kept != sys.path:
        _log.warning("nothing is imported from %s: others can write there (PYTHONPATH?)", shared)
        sys.path[:] = kept
