"""Bash transformations: what they print to standard error goes where all output of a job goes.

seamless-transformer 0.6 gives bash a pipe for it, which it reads when bash has closed its standard
output. A script that prints more than the pipe holds (64 KiB, pipe(7)), as a progress bar or
``set -x`` does, would wait for ever, and so would the job. And where bash succeeds, nobody would
see it.
"""

import importlib
import subprocess
from typing import Any, Final

_MODULE: Final = "seamless_transformer.execute_bash"


def show_errors() -> None:
    """Let bash print its errors to the standard error of this process from now on.

    Private: there is no other way to the process that is started. A later Seamless may not start it
    from there, and is left alone.
    """
    try:
        module = importlib.import_module(_MODULE)
    except ImportError:
        return
    if getattr(module, "subprocess", None) is subprocess:
        module.subprocess = _Subprocess()  # type: ignore[attr-defined]


class _Subprocess:
    """The module `subprocess`, as ``execute_bash`` sees it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def Popen(  # noqa: N802 - the name is subprocess's
        self, *arguments: Any, stderr: Any = None, **named: Any
    ) -> "subprocess.Popen[bytes]":
        """Start a process; of a pipe for standard error nobody would read enough."""
        del stderr
        return subprocess.Popen(*arguments, **named)
