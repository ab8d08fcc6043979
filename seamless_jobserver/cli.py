"""The command ``seamless-jobserver``: flags and environment variables, then the server.

seamless-config launches the command with a fixed set of flags, so everything that can be set has
an environment variable too, ``SEAMLESS_JOBSERVER_<NAME>``; a flag wins over it. A value that makes
no sense gets one line on standard error and exit code 2, before anything is started.

Spawned workers import the module that started the server, hence the imports inside `main`.
"""

import argparse
import math
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from seamless_jobserver import __version__

DEFAULT_PORT: Final = 5533
ENVIRONMENT: Final = "SEAMLESS_JOBSERVER_"
_RESOLVER_LIMIT: Final = 10.0
"""Seconds for the name of --host to be looked up."""


class _Option(NamedTuple):
    """A setting: its flag without dashes, how its text is read, and what the help says.

    Without a `metavar` it is a switch, which is off unless it is given; its variable says 1 or 0.
    A `repeatable` one may be given several times, and its variable hold several words.
    """

    name: str
    convert: Callable[[str], Any]
    metavar: tuple[str, ...]
    default: str | None
    help: str
    repeatable: bool = False

    @property
    def destination(self) -> str:
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return ENVIRONMENT + self.destination.upper()


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise ValueError(f"{text!r} is not a port: use a number from 1 to 65535, or 0 for any")
    return int(text)


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"{text!r} is not a number of workers: use 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _seconds_or_zero(text: str) -> float:
    return 0.0 if text == "0" else _seconds(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"{text!r} is not a number above 0")
    return int(text)


def _size(text: str) -> int:
    number, unit = text[:-1], text[-1:].upper()
    if unit not in _UNITS:
        number, unit = text, ""
    if not number.isascii() or not number.isdigit() or int(number) < 1:
        raise ValueError(f"{text!r} is not a size: use a number of bytes, or 500M, or 16G")
    return int(number) * _UNITS[unit]


_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _access(text: str) -> str:
    if text not in ("owner", "any"):
        raise ValueError(f"{text!r} is neither owner nor any")
    return text


def _network(text: str) -> Any:
    import ipaddress

    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no address or network, such as 10.1.0.0/16") from None


def _path(text: str) -> Path:
    return Path(_text(text)).expanduser()


def _size_or_zero(text: str) -> int:
    return 0 if text == "0" else _size(text)


def _switch(text: str) -> bool:
    word = text.lower()
    if word not in _SWITCH:
        raise ValueError(f"{text!r} is neither yes nor no: use 1 or 0")
    return _SWITCH[word]


_SWITCH: Final = {
    **dict.fromkeys(("1", "yes", "true", "on"), True),
    **dict.fromkeys(("0", "no", "false", "off"), False),
}


def _text(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("it is empty, or holds a NUL")
    return text


OPTIONS: Final = (
    _Option(
        "port", _port, ("PORT",), None, f"listen on this port (default {DEFAULT_PORT}; 0: any)"
    ),
    _Option("port-range", _port, ("START", "END"), None, "listen on a random free port of these"),
    _Option(
        "host",
        _text,
        ("HOST",),
        "0.0.0.0",
        "name or address (IPv4 or IPv6) to listen on; the default is every interface",
    ),
    _Option(
        "status-file",
        _text,
        ("PATH",),
        None,
        "JSON file that the launcher writes: the store and the database are read from it, port "
        "and status are written to it",
    ),
    _Option(
        "timeout",
        _seconds,
        ("SECONDS",),
        None,
        "end after this time without a request or a running job (default: never)",
    ),
    _Option("workers", _workers, ("N",), "1", "worker processes, each running one job at a time"),
    _Option(
        "input-timeout",
        _seconds,
        ("SECONDS",),
        "60",
        "how long a job waits for an input that its client has promised, or for a store that is "
        "away",
    ),
    _Option(
        "store-timeout",
        _seconds,
        ("SECONDS",),
        "600",
        "how long a computed result is offered to a store that does not take it, before it is "
        "kept in a file",
    ),
    _Option(
        "cache-size",
        _size_or_zero,
        ("SIZE",),
        "256M",
        "how much of their inputs each worker keeps for further jobs; 0: nothing",
    ),
    _Option(
        "job-timeout", _seconds, ("SECONDS",), None, "end a job that takes longer (default: none)"
    ),
    _Option(
        "memory-limit",
        _size,
        ("SIZE",),
        None,
        "end a job whose worker, with all that it has started, uses more memory, for instance 16G "
        "(default: none)",
    ),
    _Option(
        "reclaim-canceled",
        _switch,
        (),
        None,
        "end the process of a running job that is canceled, instead of letting it finish unheard",
    ),
    _Option(
        "grace",
        _seconds_or_zero,
        ("SECONDS",),
        "5",
        "at the end, how long running jobs may go on",
    ),
    _Option(
        "max-connections",
        _count,
        ("N",),
        "1024",
        "connections served at a time; more than that wait to be accepted",
    ),
    _Option("max-body", _size, ("SIZE",), "64M", "largest body of a request"),
    _Option(
        "access",
        _access,
        ("WHO",),
        "owner",
        "who may connect from this machine: owner, which is your own processes, or any",
    ),
    _Option(
        "allow",
        _network,
        ("CIDR",),
        None,
        "addresses of other machines that may connect, for instance 10.1.0.0/16 (default: all)",
        repeatable=True,
    ),
    _Option(
        "allow-host",
        _text,
        ("NAME",),
        None,
        "a name by which browsers may call this server, beside those of the machine",
        repeatable=True,
    ),
    _Option(
        "password-file",
        _path,
        ("PATH",),
        None,
        "file with a password that is asked of everybody but your own processes on this machine; "
        "only you may be able to read it",
    ),
    _Option("certfile", _path, ("PATH",), None, "certificate chain for TLS (PEM)"),
    _Option("keyfile", _path, ("PATH",), None, "its key, when that is a file of its own (PEM)"),
)
_COMMANDS: Final = {"upload": "seamless_jobserver.upload"}
"""Words that stand where an option could, and the modules whose `main` they run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments`, by default those of the process; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in _COMMANDS:
        import importlib

        return int(importlib.import_module(_COMMANDS[given[0]]).main(given[1:]))
    values = _parse(given)
    # Imported here, because every spawned worker imports this module.
    import logging

    from seamless_jobserver.messages import WorkerProgram
    from seamless_jobserver.server.lifecycle import Settings, run
    from seamless_jobserver.worker import entry

    logging.basicConfig(
        stream=sys.stdout,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    return run(Settings(**values), WorkerProgram(entry.warm_up, entry.run_job, entry.record_result))


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the fields of `Settings`. Exits with 2 when a value makes no sense."""
    parser = _make_parser()
    given = vars(parser.parse_args(arguments))
    values: dict[str, Any] = {}
    for option in OPTIONS:
        flag = given[option.destination]
        try:
            if flag is not None:
                source = f"--{option.name}"
                values[option.destination] = _convert(option, flag)
            else:
                source = option.variable
                values[option.destination] = _convert(option, _from_environment(option))
        except ValueError as error:
            parser.error(f"{source}: {error}")
    if given["port"] is not None:
        values["port_range"] = None  # a flag wins over the environment, also over the other way
    elif given["port_range"] is not None:
        values["port"] = None
    try:
        ports = _ports(values.pop("port"), values.pop("port_range"))
        address = _resolve(values["host"])
    except ValueError as error:
        parser.error(str(error))
    status_file = values.pop("status_file")
    return {
        **values,
        "address": address,
        "ports": ports,
        "status_file": None if status_file is None else Path(status_file).expanduser(),
    }


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
        "wins. Further commands: seamless-jobserver upload --help.",
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


def _from_environment(option: _Option) -> list[str] | None:
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


def _convert(option: _Option, words: list[str] | None) -> Any:
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
        if not 1 <= start <= end:
            raise ValueError(f"--port-range: {start} to {end} is no range: START comes first")
        return range(start, end + 1)
    chosen = DEFAULT_PORT if port is None else port
    return range(chosen, chosen + 1)


def _resolve(host: str) -> tuple[int, str]:
    """Return address family and address of `host`. Raises ValueError when it has none.

    In a thread, since the system's resolver can neither be interrupted nor given a limit.
    """
    found: list[tuple[int, str]] = []
    reasons: list[str] = []

    def look_up() -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            found.append((family, str(address[0])))
        except (OSError, UnicodeError) as error:
            reasons.append(getattr(error, "strerror", None) or str(error))

    thread = threading.Thread(target=look_up, name="jobserver-resolver", daemon=True)
    thread.start()
    thread.join(_RESOLVER_LIMIT)
    if not found:
        reason = reasons[0] if reasons else "the resolver does not answer"
        raise ValueError(f"--host: {host!r} is not a name or address of this machine: {reason}")
    return found[0]


if __name__ == "__main__":
    raise SystemExit(main())
