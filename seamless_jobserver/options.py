"""What can be set: the options of the command, and how their text is read.

Each is a flag and an environment variable, ``SEAMLESS_JOBSERVER_<NAME>``. A conversion raises
ValueError with a message that says what was seen and what would do.
"""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

DEFAULT_PORT: Final = 5533
ENVIRONMENT: Final = "SEAMLESS_JOBSERVER_"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("text", "json")


class Option(NamedTuple):
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
        """The name of the value."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable that sets it too."""
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
    return min(seconds, _LONGEST)


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


_LONGEST: Final = threading.TIMEOUT_MAX / 2
"""Seconds beyond which no wait can be longer anyway; half of that, since some are added up."""
_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _one_of(*words: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return convert


def _network(text: str) -> Any:
    import ipaddress

    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no address or network, such as 10.1.0.0/16") from None


def _path(text: str) -> Path:
    path = Path(_text(text))
    try:
        # The server may leave its working directory (`workingdirectory`).
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"{text!r}: whose home is that? Write out the whole path") from None
    except OSError as error:
        raise ValueError(f"{text!r}: the working directory is gone: {error.strerror}") from None


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
    Option("port", _port, ("PORT",), None, f"listen on this port (default {DEFAULT_PORT}; 0: any)"),
    Option("port-range", _port, ("START", "END"), None, "listen on a random free port of these"),
    Option(
        "host",
        _text,
        ("HOST",),
        "0.0.0.0",
        "name or address (IPv4 or IPv6) to listen on; the default is every interface",
    ),
    Option(
        "status-file",
        _path,
        ("PATH",),
        None,
        "JSON file that the launcher writes: the store and the database are read from it, port "
        "and status are written to it",
    ),
    Option(
        "timeout",
        _seconds,
        ("SECONDS",),
        None,
        "end after this time without a request or a running job (default: never)",
    ),
    Option("workers", _workers, ("N",), "1", "worker processes, each running one job at a time"),
    Option(
        "input-timeout",
        _seconds,
        ("SECONDS",),
        "60",
        "how long a job waits for an input that its client has promised, or for a store that is "
        "away",
    ),
    Option(
        "store-timeout",
        _seconds,
        ("SECONDS",),
        "600",
        "how long a computed result is offered to a store that does not take it, before it is "
        "kept in a file",
    ),
    Option(
        "cache-size",
        _size_or_zero,
        ("SIZE",),
        "256M",
        "how much of their inputs each worker keeps for further jobs; 0: nothing",
    ),
    Option(
        "job-timeout", _seconds, ("SECONDS",), None, "end a job that takes longer (default: none)"
    ),
    Option(
        "memory-limit",
        _size,
        ("SIZE",),
        None,
        "end a job whose worker, with all that it has started, uses more memory, for instance 16G "
        "(default: none)",
    ),
    Option(
        "reclaim-canceled",
        _switch,
        (),
        None,
        "end the process of a running job that is canceled, instead of letting it finish unheard",
    ),
    Option(
        "grace",
        _seconds_or_zero,
        ("SECONDS",),
        "5",
        "at the end, how long running jobs may go on",
    ),
    Option(
        "max-connections",
        _count,
        ("N",),
        "1024",
        "connections served at a time; more than that wait to be accepted",
    ),
    Option("max-body", _size, ("SIZE",), "64M", "largest body of a request"),
    Option(
        "access",
        _one_of("owner", "any"),
        ("WHO",),
        "owner",
        "who may connect from this machine: owner, which is your own processes, or any",
    ),
    Option(
        "allow",
        _network,
        ("CIDR",),
        None,
        "addresses of other machines that may connect, for instance 10.1.0.0/16 (default: all)",
        repeatable=True,
    ),
    Option(
        "allow-host",
        _text,
        ("NAME",),
        None,
        "a name by which browsers may call this server, beside those of the machine",
        repeatable=True,
    ),
    Option(
        "password-file",
        _path,
        ("PATH",),
        None,
        "file with a password that is asked of everybody but your own processes on this machine; "
        "only you may be able to read it",
    ),
    Option("certfile", _path, ("PATH",), None, "certificate chain for TLS (PEM)"),
    Option("keyfile", _path, ("PATH",), None, "its key, when that is a file of its own (PEM)"),
    Option(
        "log-level",
        _one_of(*LOG_LEVELS),
        ("LEVEL",),
        "info",
        f"what to log: {', '.join(LOG_LEVELS)}, each with those behind it",
    ),
    Option(
        "log-format",
        _one_of(*LOG_FORMATS),
        ("FORMAT",),
        "text",
        "how to log: text or json, on stdout",
    ),
)
