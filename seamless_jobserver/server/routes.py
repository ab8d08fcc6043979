"""Routes: a request in, an answer out (protocol.md, "HTTP").

The one place where the words of the wire are spoken: states become ``running`` and
``not-running``, outcomes and errors become status codes. Everything runs in the thread of the
connection that asked; the service is asked through the bridge.
"""

import concurrent.futures
import dataclasses
import functools
import hmac
import json
from collections.abc import Callable, Coroutine
from typing import Any, Final

from seamless_jobserver import http1
from seamless_jobserver.errors import InvalidChecksum, RequestError, Unanswered
from seamless_jobserver.messages import NESTED_PATH, Ending, Outcome, RunRequest
from seamless_jobserver.server.bridge import Bridge
from seamless_jobserver.server.jobs import State
from seamless_jobserver.server.payload import parse_checksum, parse_run_request
from seamless_jobserver.server.response import Response, json_response, text_response
from seamless_jobserver.server.service import Service
from seamless_jobserver.server.watching import Watching

_WORDS: Final[dict[State | None, str]] = {
    None: "not-running",
    State.QUEUED: "running",
    State.RUNNING: "running",
    State.DONE: "done",
    State.FAILED: "failed",
    State.CRASHED: "failed",
    State.LOST: "failed",
    State.CANCELED: "canceled",
}
_STATUS: Final[dict[Ending, int]] = {
    Ending.RESULT: 200,
    Ending.REMOTE_JOB_WRITTEN: 200,
    Ending.CANCELED: 200,
    Ending.FAILED: 500,
    Ending.INPUT_MISSING: 500,
    Ending.INPUT_UNDELIVERED: 500,
    Ending.STORE_FAILED: 500,
    Ending.CRASHED: 500,
    Ending.LOST: 503,
}
_CHECK_LIMIT: Final = 40.0
"""Seconds for a worker to use its store."""
_ANSWER_LIMIT: Final = 30.0
"""Seconds for the loop to answer a question about a job; it never takes more than a moment."""

WaitFor = Callable[["concurrent.futures.Future[Any]"], None]


class Routes:
    """Answers requests by way of `service`, which lives on the loop of `bridge`."""

    def __init__(self, service: Service, bridge: Bridge, worker_credentials: str) -> None:
        """`worker_credentials` is what workers send as ``Authorization``, and nobody else can.

        `watching` may be set later: what it shows is made when the server listens.
        """
        self.watching: Watching | None = None
        self._service = service
        self._bridge = bridge
        self._worker_credentials = worker_credentials

    def answer(self, head: http1.RequestHead, body: bytes, wait_for: WaitFor) -> Response:
        """Return the answer to a request.

        `wait_for` waits for the end of a job, and raises to give up. What it raises passes through.
        """
        method, path = head.method, head.target.partition("?")[0]
        try:
            if path == "/run-transformation":
                return _only("GET", method) or self._run(self._service.run, body, wait_for)
            if path.startswith(NESTED_PATH) and self._is_worker(head):
                return self._nested(path.removeprefix(NESTED_PATH), body, wait_for)
            if self.watching is not None:
                watched = self.watching.answer(head)
                if watched is not None:
                    return watched
            if path == "/check-store":
                return _only("POST", method) or self._check_store()
            if path in _FIXED:
                return _only("GET", method) or text_response(200, _FIXED[path])
            route, _, rest = path[1:].partition("/")
            if route == "transformation-status":
                return _only("GET", method) or self._status(rest)
            if route == "cancel-transformation":
                return _only("POST", method) or self._cancel(rest)
        except RequestError as error:
            return text_response(error.status, str(error))
        return text_response(404, "404: Not Found")

    def _is_worker(self, head: http1.RequestHead) -> bool:
        given = head.fields.get("Authorization") or ""
        return hmac.compare_digest(given.encode(), self._worker_credentials.encode())

    def _nested(self, rest: str, body: bytes, wait_for: WaitFor) -> Response:
        """Answer one of our workers (`messages.NESTED_PATH`)."""
        number, _, event = rest[1:].partition("/")
        if not event:
            slot = int(number)
            return self._run(
                lambda request: self._service.run_nested(request, slot), body, wait_for
            )
        work = (
            self._service.hosting.started(int(number), str(json.loads(body).get("name", "")))
            if event == "started"
            else self._service.hosting.ended(int(number), Outcome.from_json(json.loads(body)))
        )
        self._bridge.ask(work, _ANSWER_LIMIT)
        return Response(204, b"")

    def _run(
        self,
        run: Callable[[RunRequest], Coroutine[Any, Any, Outcome | int]],
        body: bytes,
        wait_for: WaitFor,
    ) -> Response:
        request = parse_run_request(body)
        ended: list[Outcome | int] = []

        async def run_to_its_end() -> Outcome | int:
            ended.append(await run(request))
            return ended[0]

        async def note_unheard() -> None:
            for outcome in ended:
                if isinstance(outcome, Outcome):
                    await self._service.note_unheard(request, outcome)

        future = self._bridge.submit(run_to_its_end())
        try:
            wait_for(future)
            outcome = future.result()
        except BaseException:
            # The client has gone, or we end. The job may have ended at this very moment, which the
            # future does not know before the loop has told it.
            future.cancel()
            self._bridge.submit(note_unheard())
            raise
        if isinstance(outcome, int):
            return json_response({"host": outcome}, status=202)
        unheard = functools.partial(self._note_unheard, request, outcome)
        return dataclasses.replace(_outcome_response(outcome), unheard=unheard)

    def _note_unheard(self, request: RunRequest, outcome: Outcome | int) -> None:
        if isinstance(outcome, Outcome):
            self._bridge.submit(self._service.note_unheard(request, outcome))

    def _check_store(self) -> Response:
        try:
            found = self._bridge.ask(self._service.check_store(), _CHECK_LIMIT)
        except Unanswered:
            return text_response(
                504,
                f"504: The worker did not finish its check within {_CHECK_LIMIT:g} s: the "
                "hashserver or the database hangs. Look into their logs.",
            )
        if found is None:
            return text_response(503, "503: no worker is idle at the moment", Retry_After="1")
        return json_response(vars(found))

    def _status(self, checksum: str) -> Response:
        state = self._bridge.ask(self._service.status(_checksum(checksum)), _ANSWER_LIMIT)
        return json_response({"status": _WORDS[state]})

    def _cancel(self, checksum: str) -> Response:
        cancel = self._service.cancel(_checksum(checksum))
        canceled, state = self._bridge.ask(cancel, _ANSWER_LIMIT)
        return json_response({"canceled": canceled, "status": _WORDS[state]})


_FIXED: Final = {"/": "Seamless jobserver is running", "/healthcheck": "OK"}


def _only(allowed: str, method: str) -> Response | None:
    """Return the refusal of a method that a route does not have (RFC 9110 §15.5.6), or None."""
    methods = ("GET", "HEAD") if allowed == "GET" else (allowed,)
    if method in methods:
        return None
    return text_response(405, "405: Method Not Allowed", Allow=", ".join(methods))


def _checksum(text: str) -> str:
    checksum = parse_checksum(text)
    if checksum is None:
        raise InvalidChecksum(text)
    return checksum


def _outcome_response(outcome: Outcome) -> Response:
    if outcome.ending is Ending.RESULT:
        return json_response(
            {
                "result_checksum": outcome.result_checksum,
                "record_runtime": outcome.runtime,
                **outcome.extra,
            }
        )
    if outcome.ending is Ending.REMOTE_JOB_WRITTEN:
        return json_response(
            {"remote_job_written": outcome.marker, "record_runtime": outcome.runtime}
        )
    return text_response(_STATUS[outcome.ending], outcome.message)
