"""The command ``seamless-jobserver``: flags and environment variables, then the server.

seamless-config launches the command with a fixed set of flags, so everything that can be set has
an environment variable too, ``SEAMLESS_JOBSERVER_<NAME>``; a flag wins over it. A value that makes
no sense gets one line on standard error and exit code 2, before anything is started.

Spawned workers import the module that started the server, hence the imports inside `main`.
"""

import argparse
import io
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from seamless_jobserver import __version__
from seamless_jobserver.options import DEFAULT_PORT, ENVIRONMENT, OPTIONS, Option

_RESOLVER_LIMIT: Final = 10.0
"""Seconds for the name of --host to be looked up."""

_LEAVE: Final = 1.0
"""Seconds for a process that has been killed to be gone."""

_PORT_OPTIONS: Final = ("port", "port_range")

_COMMANDS: Final = {
    "check": "seamless_jobserver.check",
    "top": "seamless_jobserver.top",
    "upload": "seamless_jobserver.upload",
}
"""Words that stand where an option could, and the modules whose `main` they run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments`, by default those of the process; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Where the locale lacks a character, an escape is better than no line at all.
            stream.reconfigure(errors="backslashreplace")
    if given and given[0] in _COMMANDS:
        import importlib

        try:
            return int(importlib.import_module(_COMMANDS[given[0]]).main(given[1:]))
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    values = _parse(given)
    # Imported here, because every spawned worker imports this module.
    from seamless_jobserver.messages import WorkerProgram
    from seamless_jobserver.server import eventlog
    from seamless_jobserver.server.lifecycle import Settings, run
    from seamless_jobserver.worker import entry

    eventlog.configure(values.pop("log_level"), values.pop("log_format"))
    program = WorkerProgram(entry.warm_up, entry.run_job, entry.record_result, entry.check_store)
    code = run(Settings(**values), program)
    deadline = time.monotonic() + _LEAVE
    for child in multiprocessing.active_children():
        child.join(max(0.0, deadline - time.monotonic()))
    if multiprocessing.active_children():
        # What cannot be killed, since it waits for a disk that does not answer, for example. The
        # interpreter would wait for it without a limit.
        try:
            eventlog.finish()
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        finally:
            os._exit(code)  # also where the log's disk is full
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the fields of `Settings`. Exits with 2 when a value makes no sense."""
    parser = _make_parser()
    given = vars(parser.parse_args(arguments))
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    # Of the two ways to name ports, a flag wins over a variable for the other, whatever that holds.
    port_flags = {name for name in _PORT_OPTIONS if given[name] is not None}
    for option in OPTIONS:
        flag = given[option.destination]
        if flag is None and option.destination in _PORT_OPTIONS and port_flags:
            values[option.destination] = None
            continue
        source = f"--{option.name}" if flag is not None else option.variable
        sources[option.destination] = source
        try:
            words = _from_environment(option) if flag is None else flag
            values[option.destination] = _convert(option, words)
        except ValueError as error:
            parser.error(f"{source}: {error}")
    try:
        ports = _ports(values.pop("port"), values.pop("port_range"))
    except ValueError as error:
        parser.error(f"{sources['port_range']}: {error}")
    try:
        address = _resolve(values["host"])
    except ValueError as error:
        parser.error(f"{sources['host']}: {error}")
    return {**values, "address": address, "ports": ports}


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="seamless-jobserver",
        description="Runs Seamless transformations that arrive over HTTP, in worker processes. "
        "Normally seamless-config launches it; started by hand, it needs a status file that "
        "names the hashserver and the database.",
        epilog="Each option can also be set by an environment variable, for instance "
        f"{ENVIRONMENT}WORKERS=4 for --workers 4, "
        f'{ENVIRONMENT}PORT_RANGE="5500 5600" for --port-range 5500 5600, and '
        f"{ENVIRONMENT}RECLAIM_CANCELED=1 for --reclaim-canceled. An option on the command line "
        "wins. Further commands: seamless-jobserver check, top and upload, each with --help.",
    )
    parser.add_argument("--version", action="version", version=f"seamless-jobserver {__version__}")
    ports = parser.add_mutually_exclusive_group()
    for option in OPTIONS:
        where = ports if option.name.startswith("port") else parser
        if not option.metavar:
            where.add_argument(
                f"--{option.name}", action="store_const", const=["1"], help=option.help
            )
            continue
        where.add_argument(
            f"--{option.name}",
            metavar=option.metavar if len(option.metavar) > 1 else option.metavar[0],
            nargs=len(option.metavar),
            action="extend" if option.repeatable else "store",
            help=option.help + (f" (default {option.default})" if option.default else ""),
        )
    return parser


def _from_environment(option: Option) -> list[str] | None:
    text = os.environ.get(option.variable)
    if text is None or not text.strip():
        return None if option.default is None else [option.default]
    if option.repeatable:
        return text.replace(",", " ").split()
    if len(option.metavar) < 2:
        return [text.strip()]
    words = text.replace("-", " ").replace(",", " ").split()
    if len(words) != len(option.metavar):
        raise ValueError(f"{text!r} is not {' '.join(option.metavar)}")
    return words


def _convert(option: Option, words: list[str] | None) -> Any:
    if words is None:
        return () if option.repeatable else None if option.metavar else False
    converted = [option.convert(word) for word in words]
    return tuple(converted) if option.repeatable or len(option.metavar) > 1 else converted[0]


def _ports(port: int | None, port_range: tuple[int, int] | None) -> range:
    """Return the ports to try. Raises ValueError."""
    if port_range is not None:
        if port is not None:
            raise ValueError("set a port or a port range, not both")
        start, end = port_range
        if start < 1:
            raise ValueError(f"{start} to {end} is no range of ports: the first one is 1")
        if start > end:
            raise ValueError(f"{start} to {end} is no range: START comes first")
        return range(start, end + 1)
    chosen = DEFAULT_PORT if port is None else port
    return range(chosen, chosen + 1)


def _resolve(host: str) -> tuple[int, str]:
    """Return address family and address of `host`. Raises ValueError when it has none.

    A name is looked up in a thread, since the system's resolver can neither be interrupted nor
    given a limit.
    """
    found: list[tuple[int, str]] = []
    reasons: list[str] = []

    def look_up(flags: int) -> None:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
            # A name can have several. The launcher looks for us at the one of IPv4.
            answers.sort(key=lambda answer: answer[0] != socket.AF_INET)
            family, _, _, _, address = answers[0]
            found.append((family, str(address[0])))
        except (OSError, UnicodeError) as error:
            reasons[:] = [getattr(error, "strerror", None) or str(error)]

    look_up(socket.AI_PASSIVE | socket.AI_NUMERICHOST)
    if not found:
        reasons.clear()
        thread = threading.Thread(
            target=look_up, args=(socket.AI_PASSIVE,), name="jobserver-resolver", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            raise ValueError(f"{host!r} cannot be looked up: {error}") from None
        thread.join(_RESOLVER_LIMIT)
    if not found:
        reason = reasons[0] if reasons else "the resolver does not answer"
        raise ValueError(f"{host!r} is not a name or address of this machine: {reason}")
    return found[0]


if __name__ == "__main__":
    raise SystemExit(main())
