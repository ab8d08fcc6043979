"""The server's end of the guardian: the process that kills what outlives the server.

`seamless_jobserver.processtree` is its theory and its code. It costs one small process without
any imports worth mentioning, and is told of each worker when it starts and when it is gone.
"""

import logging
import subprocess
import sys
from contextlib import suppress
from typing import Final

from seamless_jobserver import processtree
from seamless_jobserver.processtree import ProcessId

_LAST_WAIT: Final = 1.0
"""Seconds for it to end when it was killed."""

_log = logging.getLogger(__name__)


class Guardian:
    """Owner of the guardian process."""

    def __init__(self, directory: str) -> None:
        """`directory` is removed when the server has disappeared."""
        self._process = subprocess.Popen(
            # Isolated and without site: it must not depend on what the environment holds.
            [sys.executable, "-I", "-S", processtree.__file__, directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # a Ctrl-C, or a kill of our process group, is not for it
        )

    def watch(self, process: ProcessId) -> None:
        """Have the tree below `process` killed if this server disappears."""
        self._tell("watch", process)

    def forget(self, process: ProcessId) -> None:
        """Say that `process` and all below it are gone."""
        self._tell("forget", process)

    def close(self, timeout: float) -> None:
        """Let it kill what is still watched and end; after `timeout` seconds, end it."""
        try:
            self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            # One that hangs in the kernel, while a network disk is away, does not end for that.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_LAST_WAIT)

    def _tell(self, verb: str, process: ProcessId) -> None:
        if self._process.stdin is None:
            return
        try:
            print(verb, *process, file=self._process.stdin, flush=True)
        except (BrokenPipeError, ValueError):
            _log.warning(
                "the guardian process is gone; workers still end by themselves when the server "
                "is killed, unless they are stuck inside a call"
            )
