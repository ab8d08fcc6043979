"""Answers, before they are written to a connection."""

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final

from seamless_jobserver import http1

_FOR_BROWSERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'",
}
"""On every answer, refusals included: no page of another site can show it, or load it as a script
or an image. An answer with a policy of its own must forbid frames there too."""


@dataclass(frozen=True)
class Response:
    """An answer: status code, body, and header fields beside ``Content-Length``.

    With a `stream` the body is what that yields, as it comes; it yields an empty part when it only
    waits. `watching` marks the answer to somebody who only looks on: it does not keep an unused
    server alive. `unheard` is called when the client turns out to have gone before its answer.
    """

    status: int
    body: bytes = b""
    fields: dict[str, str] = field(default_factory=dict)
    stream: Generator[bytes, None, None] | None = None
    watching: bool = False
    unheard: Callable[[], object] | None = None


def text_response(status: int, text: str, **fields: str) -> Response:
    """Return an answer in plain text."""
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return Response(
        status,
        text.encode("utf-8", errors="backslashreplace"),
        {"Content-Type": "text/plain; charset=utf-8", **named},
    )


def json_response(value: Any, status: int = 200) -> Response:
    """Return an answer in JSON; `value` may be JSON already, as bytes."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Response(status, body, {"Content-Type": "application/json; charset=utf-8"})


def render(response: Response, *, keep_alive: bool, head_only: bool) -> bytes:
    """Return the bytes of an answer whose body is known."""
    return http1.render_response(
        response.status,
        HTTPStatus(response.status).phrase,
        _fields(response, keep_alive),
        response.body,
        head_only=head_only,
    )


def render_stream_head(response: Response, *, keep_alive: bool, chunked: bool) -> bytes:
    """Return the bytes of the head of an answer whose body is a stream."""
    fields = _fields(response, keep_alive)
    if chunked:
        fields["Transfer-Encoding"] = "chunked"
    return http1.render_head(response.status, HTTPStatus(response.status).phrase, fields)


def _fields(response: Response, keep_alive: bool) -> dict[str, str]:
    return {
        **_FOR_BROWSERS,
        **response.fields,
        "Date": formatdate(usegmt=True),
        "Connection": "keep-alive" if keep_alive else "close",
    }
