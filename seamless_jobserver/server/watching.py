"""Routes for people who watch: the status page and what it is made of (docs/watching.rst).

All of them only look, and answer in the thread of the connection that asks. The page is files of
this package; it loads nothing from elsewhere, and its answers forbid it to
(Content-Security-Policy, W3C). What jobs are called and what they print may be anything: it leaves
here as JSON, or as plain text that a browser may not take for something else.
"""

import concurrent.futures
import dataclasses
import json
import logging
import os
import urllib.parse
from collections.abc import Generator
from importlib import resources
from typing import Final, NamedTuple

from seamless_jobserver import http1
from seamless_jobserver.errors import InvalidChecksum, InvalidQuery, RequestError
from seamless_jobserver.server.bridge import Bridge
from seamless_jobserver.server.joboutput import KEPT, Piece
from seamless_jobserver.server.journal import Ended, Entry
from seamless_jobserver.server.metrics import CONTENT_TYPE
from seamless_jobserver.server.overview import Overview
from seamless_jobserver.server.payload import parse_checksum
from seamless_jobserver.server.response import Response, json_response, text_response
from seamless_jobserver.server.service import Service

_log = logging.getLogger(__name__)

_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_PAGE_FIELDS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_FIELDS: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
_FOLLOW_INTERVAL: Final = 0.25
"""Seconds between two looks at what a job has printed, for who follows it."""
_LISTED: Final = 100
_LIMIT: Final = 10.0
_STATES: Final = frozenset({"done", "failed", "crashed", "canceled", "lost"})


class Watching:
    """Answers what `overview` knows, the page, and what jobs have printed."""

    def __init__(self, overview: Overview, service: Service, bridge: Bridge) -> None:
        self._overview = overview
        self._service = service
        self._bridge = bridge
        self._page = _read_page()

    def answer(self, head: http1.RequestHead) -> Response | None:
        """Return the answer to a request, or None when it is not for a route of these."""
        with self._overview.watched():
            try:
                response = self._answer(head)
            except RequestError as error:
                response = text_response(error.status, str(error))
            except OSError as error:
                what = f"{type(error).__name__}: {error}"
                _log.warning("somebody who watches cannot be told: %s", what)
                response = text_response(503, f"503: this cannot be told at the moment: {what}")
        if response is None:
            return None
        if head.method not in ("GET", "HEAD"):
            response = text_response(405, "405: Method Not Allowed", Allow="GET, HEAD")
        fields = {**_FIELDS, **response.fields}
        return dataclasses.replace(response, fields=fields, watching=True)

    def _answer(self, head: http1.RequestHead) -> Response | None:
        path, _, query = head.target.partition("?")
        if path == "/":
            return self._page["index.html"] if _wants_page(head) else None
        if path.startswith("/page/"):
            return self._page.get(path.removeprefix("/page/"))
        if path == "/status":
            return self._status(query)
        if path == "/metrics":
            return text_response(200, self._overview.metrics(), Content_Type=CONTENT_TYPE)
        if path == "/jobs":
            return self._jobs(query)
        if path.startswith("/jobs/"):
            return self._job(path.removeprefix("/jobs/"), query, head)
        return None

    def _status(self, query: str) -> Response:
        return json_response(self._overview.status(_number(query, "after") or 0))

    def _jobs(self, query: str) -> Response:
        states = urllib.parse.parse_qs(query).get("state", [])
        if not _STATES.issuperset(states):
            raise InvalidQuery("state", f"expected one of {', '.join(sorted(_STATES))}")
        limit = _number(query, "limit") or _LISTED
        return json_response(self._overview.jobs(_number(query, "before"), limit, states))

    def _job(self, rest: str, query: str, head: http1.RequestHead) -> Response:
        name, _, part = rest.partition("/")
        checksum = parse_checksum(name)
        if checksum is None:
            raise InvalidChecksum(name)
        if part == "log":
            return self._log(checksum, query)
        if part:
            return text_response(404, "404: Not Found")
        if _wants_page(head):
            # The page shows a job at a fragment of its own address.
            return Response(303, fields={"Location": f"../#/jobs/{checksum}"})
        found = self._overview.job(checksum)
        return _UNKNOWN if found is None else json_response(found)

    def _log(self, checksum: str, query: str) -> Response:
        run = self._run_of(checksum)
        if run is None:
            return _UNKNOWN
        if "follow" in urllib.parse.parse_qs(query, True):
            return dataclasses.replace(text_response(200, ""), stream=self._follow(checksum))
        start = _number(query, "from")
        piece = Piece(b"", 0, 0)
        if run.output is not None:
            piece = self._service.output.piece(run.output, start, KEPT)
        content = piece.content
        if start is None:
            content = _note_before(run, piece.start) + content
        fields = {"Output-Run": run.name, "Output-Start": str(piece.start)}
        response = text_response(200, "", **fields)
        return dataclasses.replace(response, body=content)

    def _run_of(self, checksum: str) -> "_Run | None":
        async def look() -> _Run | None:
            found = self._service.journal.of(checksum)
            return None if found is None else _describe_run(found)

        return self._bridge.ask(look(), _LIMIT)

    def _follow(self, checksum: str) -> Generator[bytes, None, None]:
        """Yield what a transformation's newest job prints until it has ended."""
        ended = self._bridge.submit(self._service.wait_for_end(checksum))
        file, path, over = None, None, False
        try:
            while True:
                run = self._run_of(checksum)
                # A job that goes back to the queue prints into another file.
                if run is not None and run.output not in (None, path):
                    opened = self._service.output.open(run.output)
                    if opened is not None:
                        if file is not None:
                            file.close()
                        file, path = opened, run.output
                if run is not None and run.within is not None and not over:
                    yield _note_before(run, 0)
                    return  # it has no output of its own
                if file is not None:
                    if os.fstat(file.fileno()).st_size - file.tell() > KEPT:
                        file.seek(-KEPT, os.SEEK_END)
                    yield file.read(KEPT)
                if over:
                    return
                yield b""
                try:
                    ended.result(_FOLLOW_INTERVAL)
                    over = True
                except concurrent.futures.TimeoutError:
                    continue
        finally:
            ended.cancel()
            if file is not None:
                file.close()


class _Run(NamedTuple):
    """One run of a job: its name, the file that it prints into, and the job that it is inside of.

    A run is named by the number of the job and how often that has gone back to the queue.
    """

    name: str
    output: str | None
    within: str | None


def _describe_run(found: Entry | Ended) -> _Run:
    if isinstance(found, Entry):
        return _Run(f"{found.job.number}-{found.job.retries}", found.output, found.within)
    told = json.loads(found.line)
    return _Run(f"{told['number']}-{told['retries']}", found.output, told["within"])


def _note_before(run: _Run, missing: int) -> bytes:
    if run.within is not None:
        return f"[… what it prints is part of what job {run.within} prints …]\n".encode()
    return f"[… {missing} bytes left out …]\n".encode() if missing else b""


_UNKNOWN: Final = text_response(
    404,
    "404: This jobserver knows no such job. It forgets the oldest ones, and all when it ends.",
)


def _wants_page(head: http1.RequestHead) -> bool:
    """Whether a browser asks, for somebody to look at (RFC 9110 §12.5.1)."""
    wanted = (part.strip() for part in (head.fields.get("Accept") or "").split(","))
    return any(part.partition(";")[0].strip() == "text/html" for part in wanted)


def _number(query: str, name: str) -> int | None:
    """Return the whole number that a query gives a name, or None. Raises `InvalidQuery`."""
    values = urllib.parse.parse_qs(query, True).get(name)
    if values is None:
        return None
    text = values[-1]
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise InvalidQuery(name, "expected a whole number")
    return int(text)


def _read_page() -> dict[str, Response]:
    page = {}
    for file in (resources.files(__package__) / "page").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            fields = {"Content-Type": kind, **_PAGE_FIELDS}
            page[file.name] = Response(200, file.read_bytes(), fields)
    return page
