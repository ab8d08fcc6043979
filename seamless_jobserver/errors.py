"""The exceptions of the jobserver: each knows its HTTP status and says what to do.

Two families. A `StartupError` ends the process before or while it starts; its message is the one
line that a person reads. A `RequestError` answers one request. Neither is ever shown as a
traceback: what a traceback would add is of no use to the person who can mend the cause.
"""

from typing import ClassVar


class JobserverError(Exception):
    """Anything that this package reports to a person or a client."""


class StartupError(JobserverError):
    """The server cannot start, or cannot go on; the message says why, in one line."""


class RequestError(JobserverError):
    """A request that gets an error answer; `status` is its HTTP status code."""

    status: ClassVar[int] = 500


class InvalidJSON(RequestError):
    """The body is not JSON (protocol.md: 400, ``Invalid JSON: …``)."""

    status = 400

    def __init__(self, reason: str) -> None:
        super().__init__(f"Invalid JSON: {reason}")


class InvalidPayload(RequestError):
    """The body is JSON, but not a run request (protocol.md: 400, ``Invalid payload: …``)."""

    status = 400

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"Invalid payload: {field}: {reason}")
        self.field = field


class InvalidQuery(RequestError):
    """A parameter behind the ``?`` of a target makes no sense."""

    status = 400

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"Invalid query: {name}: {reason}")


class InvalidChecksum(RequestError):
    """A checksum in a path is not 64 hexadecimal digits."""

    status = 400

    def __init__(self, text: str) -> None:
        super().__init__(f"Invalid checksum: expected 64 hexadecimal digits, got {shorten(text)!r}")


class RecordModeMismatch(RequestError):
    """Client and server disagree on record mode (protocol.md: 409)."""

    status = 409

    def __init__(self, asked: bool, ours: bool) -> None:
        super().__init__(
            f"Jobserver record mode mismatch: the client asks for record={asked}, but this "
            f"jobserver was started with record={ours}. Restart the jobserver after a change of "
            "record mode (seamless-service-stop, then run the workflow again)."
        )


class EnvelopeConflict(RequestError):
    """A strict request for a transformation that runs with another dunder envelope."""

    status = 409

    def __init__(self, checksum: str) -> None:
        super().__init__(
            f"Transformation {checksum} is already running with a different dunder envelope; "
            "wait for it to finish or cancel it before strict re-submission"
        )


class ShuttingDown(RequestError):
    """The server is ending and takes no more work."""

    status = 503

    def __init__(self, detail: str = "it takes no new jobs") -> None:
        super().__init__(f"The jobserver is shutting down: {detail}")


class Unanswered(RequestError):
    """The loop that owns the server's state has not got to a question in time."""

    status = 503

    def __init__(self, limit: float) -> None:
        super().__init__(
            f"The jobserver did not get to this within {limit:g} s: is its machine overloaded, or "
            "short of memory? Ask again."
        )


class WorkersUnavailable(RequestError):
    """No worker process can be started; the message is the cause."""

    status = 503


def shorten(text: str, limit: int = 80) -> str:
    """Cut `text` to `limit` characters, so that hostile input cannot fill a log or an answer."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
