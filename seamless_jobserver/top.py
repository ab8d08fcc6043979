"""``seamless-jobserver top``: what a server is doing, in a terminal.

In a terminal it is shown again and again until ``q`` or Ctrl-C; elsewhere it is printed once. What
jobs are called comes from outside, and may hold what a terminal would obey: see `asking.printable`.
"""

import argparse
import json
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from seamless_jobserver.asking import Server, Unreachable, add_target, find_server, printable

_INTERVAL: Final = 2.0
_SHOWN: Final = 10
_UNITS: Final = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_SHORT: Final = 12
_ENTER: Final = "\x1b[?1049h\x1b[?25l"
"""Alternate screen, cursor off (xterm control sequences); `_LEAVE` takes both back."""
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
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
    if sys.stdout.isatty() and sys.stdin.isatty():
        with _screen():
            _watch(server, options.interval)
        return 0
    try:
        print("\n".join(render(_look(server), 100)))  # noqa: T201
    except Unreachable as error:
        print(f"seamless-jobserver top: {printable(str(error))}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def render(status: dict[str, Any], width: int) -> list[str]:
    """Return the lines that show an answer of ``/status``, none of them over `width` characters."""
    facts, now = status["server"], status["time"]
    totals = status["totals"]
    ended = ", ".join(
        f"{totals[name]} {name}" for name in ("done", "failed", "crashed", "canceled")
    )
    machine = status["machine"]
    idle = facts["idle_left"]
    lines = [
        f"seamless-jobserver {facts['version']} on {facts['hostname']}, {facts['listening']}, "
        f"up {_duration(now - facts['started'])}"
        + (f", ends in {_duration(idle)} if unused" if idle is not None else ""),
        facts["access"],
        f"{len(status['running'])} running, {status['waiting_count']} waiting"
        + (f" (the oldest for {_duration(status['oldest_waiting'])})" if status["waiting"] else "")
        + f"; {ended}",
        f"load {machine['load'][0]:g} on {machine['processors']} processors, "
        f"{_size(machine['available'])} of {_size(machine['memory'])} memory free",
        "",
        _row("WORKER", "STATE", "MEMORY", "JOBS", "DOING"),
    ]
    for worker in status["workers"]:
        doing = worker["problem"] or worker["phase"] or ""
        lines.append(
            _row(worker["number"], worker["state"], _size(worker["memory"]), worker["jobs"], doing)
        )
    lines += ["", _row("JOB", "STATE", "TIME", "WORKER", "NAME")]
    for job in status["running"]:
        lines.append(_job(job, job["phase"] or job["state"], now - job["started"]))
    for job in status["waiting"][:_SHOWN]:
        lines.append(_job(job, "waiting", now - job["received"]))
    if status["waiting_count"] > _SHOWN:
        lines.append(f"… and {status['waiting_count'] - _SHOWN} more that wait")
    for job in reversed(status["ended"][-_SHOWN:]):
        began = job["started"] or job["received"]
        lines.append(_job(job, job["state"], job["ended"] - began))
    return [printable(line)[:width] for line in lines]


def _look(server: Server) -> dict[str, Any]:
    """Return the answer of ``/status``. Raises `Unreachable`."""
    answer = server.ask("GET", "/status")
    if answer.status != 200:
        raise Unreachable(f"{server.address} answers {answer.status}: {answer.text}")
    try:
        status: dict[str, Any] = json.loads(answer.text)
    except ValueError:
        raise Unreachable(f"{server.address} is no jobserver that can be watched") from None
    return status


def _watch(server: Server, interval: float) -> None:
    while True:
        size = shutil.get_terminal_size()
        try:
            lines = render(_look(server), size.columns)
        except Unreachable as error:
            lines = [time.strftime("%H:%M:%S"), *_wrap(printable(str(error)), size.columns)]
        shown = [line + _REST_OF_LINE for line in lines[: size.lines - 1]]
        sys.stdout.write(_HOME + "\r\n".join(shown) + _REST_OF_SCREEN)
        sys.stdout.flush()
        ready, _, _ = select.select([sys.stdin], [], [], interval)
        if ready and sys.stdin.read(1) in ("q", "Q", "\x03", "\x04", ""):
            return


@contextmanager
def _screen() -> Iterator[None]:
    """Take the terminal for the time of the block: single keys, a screen of its own."""
    before = termios.tcgetattr(sys.stdin)
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


def _job(job: dict[str, Any], state: str, seconds: float) -> str:
    name = job["name"] or f"({job['language']})"
    inside = " (inside another job)" if job["hosted"] else ""
    worker = "" if job["worker"] is None else job["worker"]
    return _row(job["checksum"][:_SHORT], state, _duration(seconds), worker, name + inside)


def _row(first: Any, second: Any, third: Any, fourth: Any, fifth: Any) -> str:
    return f"{first!s:<13} {second!s:<19} {third!s:>9} {fourth!s:>7}  {fifth}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def _size(count: float | None) -> str:
    if count is None:
        return "-"
    for unit, one in _UNITS:
        if count >= one:
            return f"{count / one:.1f} {unit}"
    return f"{count:.0f} B"


def _wrap(text: str, width: int) -> list[str]:
    return [text[start : start + width] for start in range(0, len(text), max(1, width))]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
