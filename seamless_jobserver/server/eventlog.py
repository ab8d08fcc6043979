"""The server's own log: one line an event, for people or for programs.

What concerns a job is logged with ``extra={"job": CHECKSUM}``. As text, the message begins with the
short form of the checksum; as JSON, the whole of it is a field. Control characters in a message,
which may quote what came from elsewhere, are escaped, so that one event stays one line.

A line takes about as long as all else that an event costs the event loop, and callers wait for
that. So what is told from the loop is kept for a moment, and then written, in its order. A warning,
and whatever comes from another thread, is written at once, after what was kept.
"""

import asyncio
import json
import logging
import logging.handlers
import sys
from datetime import datetime, timezone
from typing import Final

SHORT: Final = 12
"""Digits of a checksum that tell it from any other that a person has before them."""
_MOMENT: Final = 0.002
"""Seconds for which a line is kept: enough for the answer that the loop has just made to go out."""
_MOST_KEPT: Final = 1000


def configure(level: str, form: str) -> None:
    """Send the log of this process to standard output, from a level of `options` on."""
    output = logging.StreamHandler(sys.stdout)
    output.setFormatter(_JSONFormatter() if form == "json" else _TextFormatter())
    logging.basicConfig(handlers=[_Moment(output)], level=level.upper(), force=True)


def finish() -> None:
    """Write what is still kept, before the process ends in a way that would lose it."""
    logging.shutdown()


class _Moment(logging.handlers.MemoryHandler):
    """Keeps what the event loop tells for a moment; `logging.shutdown` writes what is left."""

    def __init__(self, output: logging.Handler) -> None:
        super().__init__(_MOST_KEPT, logging.WARNING, output)

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802 - logging's name
        """Whether to write now what is kept (MemoryHandler); the handler's lock is held."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return True  # none runs in this thread
        if super().shouldFlush(record):
            return True
        if len(self.buffer) == 1:
            loop.call_later(_MOMENT, self.flush)
        return False


class _TextFormatter(logging.Formatter):
    """``2026-01-31 12:00:00 INFO job 0123456789ab: done in 0.5 s``, in local time."""

    def format(self, record: logging.LogRecord) -> str:
        moment = self.formatTime(record, "%Y-%m-%d %H:%M:%S")
        job = getattr(record, "job", None)
        about = f"job {job[:SHORT]}: " if job else ""
        line = f"{moment} {record.levelname} {about}{_one_line(record.getMessage())}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _JSONFormatter(logging.Formatter):
    """One object a line; ``time`` is in UTC (RFC 3339)."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        event = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        job = getattr(record, "job", None)
        if job:
            event["job"] = job
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
