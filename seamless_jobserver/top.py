"""``seamless-jobserver top``: what a server is doing, in a terminal.

In a terminal it is shown again and again until ``q`` or Ctrl-C; elsewhere it is printed once.
"""

import argparse
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NoReturn

from seamless_jobserver.asking import (
    Server,
    Unreachable,
    add_target,
    find_server,
    nobody_reads,
    understand,
)
from seamless_jobserver.display import BAD, escape, render

_INTERVAL: Final = 2.0
_SHOWN: Final = 10
_FAILURES_SHOWN: Final = 5
_NOTHING_YET: Final = 10**14
"""An ``after`` that no job has: of those that have ended, only how many there are is told."""
_WIDTH: Final = 120
_ENTER: Final = "\x1b[?1049h\x1b[?25l"
"""Alternate screen, cursor off (xterm control sequences); `_LEAVE` takes both back."""
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_KEYS: Final = 1024
_TO_END: Final = frozenset(b"qQ\x03\x04")
"""``q``, Ctrl-C and Ctrl-D, in bytes as they come from the terminal."""
_HOME: Final = "\x1b[H"
_REST_OF_LINE: Final = "\x1b[K"
_REST_OF_SCREEN: Final = "\x1b[J"


def main(arguments: Sequence[str]) -> int:
    """Show the server that `arguments` name; return 1 when it does not answer."""
    parser = argparse.ArgumentParser(
        prog="seamless-jobserver top",
        description="Show what a jobserver is doing. In a terminal until q or Ctrl-C, else once.",
    )
    add_target(parser)
    parser.add_argument(
        "--interval",
        type=float,
        default=_INTERVAL,
        metavar="SECONDS",
        help=f"between two looks (default {_INTERVAL:g})",
    )
    options = parser.parse_args(arguments)
    try:
        server = find_server(options)
    except ValueError as error:
        parser.error(str(error))
    if not 0.1 <= options.interval <= 3600:
        parser.error("--interval: use 0.1 to 3600 seconds")
    looks = Looks(server)
    if sys.stdout.isatty() and sys.stdin.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        with _screen():
            _watch(looks, options.interval)
        return 0
    try:
        print("\n".join(looks.lines(_WIDTH)), flush=True)  # noqa: T201
    except Unreachable as error:
        print(f"seamless-jobserver top: {escape(str(error))}", file=sys.stderr)  # noqa: T201
        return 1
    except BrokenPipeError:
        return nobody_reads()
    return 0


class Looks:
    """Looks at one server, one after another: each asks only for what is new since the last."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._started: float | None = None
        self._latest = _NOTHING_YET
        self._ended: list[dict[str, Any]] = []
        self._failures: list[dict[str, Any]] = []

    def lines(self, width: int, height: int | None = None) -> list[str]:
        """Look, and return what is to be shown. Raises `Unreachable`."""
        status = self._server.ask_json(f"/status?after={self._latest}")
        return understand(self._server, lambda given: self._lines(given, width, height), status)

    def _lines(self, status: dict[str, Any], width: int, height: int | None) -> list[str]:
        started = status["server"]["started"]
        missed = status["latest"] - self._latest > len(status["ended"])
        if started != self._started or status["latest"] < self._latest or missed:
            # Those that end meanwhile come with the next look.
            known = f"before={status['latest'] + 1}"
            self._ended = self._list(f"{known}&limit={_SHOWN}")
            states = "&".join(f"state={state}" for state in BAD)
            self._failures = self._list(f"{known}&limit={_FAILURES_SHOWN}&{states}")
        else:
            new = status["ended"][::-1]
            bad = [job for job in new if job["state"] in BAD]
            self._ended = (new + self._ended)[:_SHOWN]
            self._failures = (bad + self._failures)[:_FAILURES_SHOWN]
        self._started, self._latest = started, status["latest"]
        return render(status, self._ended, self._failures, width, height)

    def _list(self, query: str) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = self._server.ask_json(f"/jobs?{query}")["jobs"]
        return jobs


def _watch(looks: Looks, interval: float) -> None:
    while True:
        size = shutil.get_terminal_size()
        height = size.lines - 1
        try:
            lines = looks.lines(size.columns, height)
        except Unreachable as error:
            lines = [time.strftime("%H:%M:%S"), *_wrap(escape(str(error)), size.columns)]
        # Each line is emptied first: after the last column there is nothing left to empty, and the
        # cursor stands on what was written there.
        shown = [_REST_OF_LINE + line for line in lines[:height]]
        sys.stdout.write(_HOME + "\r\n".join([*shown, ""]) + _REST_OF_SCREEN)
        sys.stdout.flush()
        ready, _, _ = select.select([sys.stdin], [], [], interval)
        if ready:
            # Not through a buffer, into which `select` cannot see.
            keys = os.read(sys.stdin.fileno(), _KEYS)
            if not keys or not _TO_END.isdisjoint(keys):
                return


@contextmanager
def _screen() -> Iterator[None]:
    """Take the terminal for the time of the block: single keys, a screen of its own."""
    before = termios.tcgetattr(sys.stdin)
    ended = signal.signal(signal.SIGTERM, _end)
    # Ctrl-Z would leave the shell on this screen, without a cursor.
    stopped = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write(_ENTER)
        yield
    except KeyboardInterrupt:
        return
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, ended)
        signal.signal(signal.SIGTSTP, stopped)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _wrap(text: str, width: int) -> list[str]:
    return [text[start : start + width] for start in range(0, len(text), max(1, width))]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
