"""HTTP/1.1 message framing (RFC 9112) as pure functions: bytes in, plain values out.

Both ends of the jobserver speak HTTP: the server to its callers, the transport to the store and
the database. Where a message ends is decided here and nowhere else, because two opinions on that
are how requests are smuggled. The rules, strict where the RFC lets a recipient choose:

- Lines end in CRLF. A bare CR or LF, a NUL, a folded line or white space before a colon makes the
  message malformed (RFC 9112 §2.2, §5.1, §5.2).
- ``Content-Length`` is one run of digits. Repeated values must be equal (RFC 9110 §8.6).
- ``Transfer-Encoding`` beside ``Content-Length`` is malformed; only ``chunked`` is understood
  (RFC 9112 §6.1, §6.3).
- A message head is bounded in bytes and fields before it is parsed.

No sockets, no clock, no threads: the callers read, and ask here what they have read.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

MAX_HEAD: Final = 64 * 1024
"""Bytes of a start line and header fields together; waitress allows four times that."""
MAX_START_LINE: Final = 8 * 1024
"""Bytes of a request or status line (RFC 9112 §3 asks for at least 8000)."""
MAX_FIELDS: Final = 100
"""Header fields of one message, as in http.client and gunicorn."""

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_FIELD_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*\Z")
_REQUEST_TARGET: Final = re.compile(rb"[\x21-\x7e]+\Z")
_ABSOLUTE_FORM: Final = re.compile(rb"https?://([^/?#]+)(.*)\Z", re.IGNORECASE)
_VERSION: Final = re.compile(rb"HTTP/([0-9])\.([0-9])\Z")
_DIGITS: Final = re.compile(r"[0-9]{1,18}\Z", re.ASCII)
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_CHUNK_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,15}\Z")


class MalformedMessage(Exception):
    """What arrived is not HTTP/1.1 as this module takes it; `status` fits an error answer."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class Fields:
    """Header fields: looked up without regard to case, kept in the order of arrival."""

    __slots__ = ("_values",)

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name.lower(), []).append(value)

    def get(self, name: str) -> str | None:
        """Return the first value of `name`, or None."""
        values = self._values.get(name.lower())
        return values[0] if values else None

    def put(self, name: str, value: str) -> None:
        """Have `value` in the place of all that there is of `name`."""
        self._values[name.lower()] = [value]

    def all(self, name: str) -> list[str]:
        """Return every value of `name`, one for each line that carried it."""
        return list(self._values.get(name.lower(), ()))

    def tokens(self, name: str) -> set[str]:
        """Return the comma-separated members of `name`, in lower case (RFC 9110 §5.6.1)."""
        members = ",".join(self.all(name)).split(",")
        return {member.strip().lower() for member in members if member.strip()}


@dataclass(frozen=True)
class RequestHead:
    """The head of a request: method as sent, target in origin form, version as ``(1, 1)``."""

    method: str
    target: str
    version: tuple[int, int]
    fields: Fields

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may serve another request after this one."""
        return _persists(self.version, self.fields)


@dataclass(frozen=True)
class ResponseHead:
    """The head of a response: status code, reason phrase, version as ``(1, 1)``."""

    status: int
    reason: str
    version: tuple[int, int]
    fields: Fields

    @property
    def interim(self) -> bool:
        """Whether a final response is still to come (RFC 9110 §15.2)."""
        return 100 <= self.status < 200

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may carry another request after this response."""
        return _persists(self.version, self.fields)


def parse_request_head(block: bytes) -> RequestHead:
    """Parse a request head: start line and fields, without the empty line that ends it.

    Raises `MalformedMessage` with the status for the answer: 400, 414, 431 or 505.
    """
    line, fields = _split_head(block, too_long=414)
    parts = line.split(b" ")
    if len(parts) != 3:
        raise MalformedMessage("the request line is not 'METHOD TARGET HTTP/1.1'")
    method, target, version = parts
    if not _TOKEN.match(method):
        raise MalformedMessage("the method holds characters that no method has")
    if not _REQUEST_TARGET.match(target):
        raise MalformedMessage("the request target holds characters that no target has")
    number = _parse_version(version)
    if number[0] != 1:
        raise MalformedMessage("only HTTP/1.0 and HTTP/1.1 are spoken here", status=505)
    if number >= (1, 1) and len(fields.all("Host")) != 1:
        raise MalformedMessage("an HTTP/1.1 request needs exactly one Host field")
    absolute = _ABSOLUTE_FORM.match(target)
    if absolute:
        # As to a proxy. What it names as the server counts, and not Host (RFC 9112 §3.2.2).
        authority, rest = absolute.groups()
        fields.put("Host", authority.decode("ascii"))
        target = rest if rest.startswith(b"/") else b"/" + rest
    return RequestHead(method.decode("ascii"), target.decode("ascii"), number, fields)


def check_beginning(received: bytes | bytearray, seen: int = 0) -> None:
    """Look at a request head of which the end has not come: can it still become one?

    A client that speaks HTTP/0.9, or ends its lines with a bare LF, sends no more, and would wait.
    The first `seen` bytes have been looked at before. Raises `MalformedMessage`: 400.
    """
    if _BARE_LF.search(received, max(0, seen - 1)):
        raise MalformedMessage("a line that does not end in CR LF")
    line, end, _ = received.partition(b"\r\n")
    if end and line.count(b" ") != 2:
        raise MalformedMessage("the request line is not 'METHOD TARGET HTTP/1.1'")


def parse_response_head(block: bytes) -> ResponseHead:
    """Parse a response head: status line and fields, without the empty line that ends it.

    Raises `MalformedMessage`.
    """
    line, fields = _split_head(block, too_long=400)
    version, _, rest = line.partition(b" ")
    code, _, reason = rest.partition(b" ")
    number = _parse_version(version)
    if not re.match(rb"[1-5][0-9]{2}\Z", code):
        raise MalformedMessage("the status line has no three-digit status code")
    return ResponseHead(int(code), reason.decode("latin-1"), number, fields)


def request_body_length(fields: Fields) -> int:
    """Return how many bytes of body follow a request head.

    Raises `MalformedMessage`: 400 for a length that is no length or that contradicts another,
    501 for a transfer coding, which no caller of a jobserver uses (RFC 9112 §6.1).
    """
    if fields.all("Transfer-Encoding"):
        if fields.all("Content-Length"):
            raise MalformedMessage("Transfer-Encoding beside Content-Length")
        raise MalformedMessage("Transfer-Encoding is not supported: send a Content-Length", 501)
    return _content_length(fields) or 0


@dataclass(frozen=True)
class BodyFraming:
    """How a response body ends: after `length` bytes, in chunks, or with the connection."""

    length: int | None = None
    chunked: bool = False


def response_body_framing(method: str, head: ResponseHead) -> BodyFraming:
    """Return how the body of a response to `method` ends (RFC 9112 §6.3).

    Raises `MalformedMessage` when the fields contradict each other.
    """
    if method == "HEAD" or head.interim or head.status in (204, 304):
        return BodyFraming(length=0)
    codings = head.fields.tokens("Transfer-Encoding")
    if codings:
        if head.fields.all("Content-Length"):
            raise MalformedMessage("Transfer-Encoding beside Content-Length")
        if codings != {"chunked"}:
            raise MalformedMessage("a transfer coding other than chunked")
        return BodyFraming(chunked=True)
    return BodyFraming(length=_content_length(head.fields))


def parse_chunk_size(line: bytes) -> int:
    """Return the size that a chunk's first line announces (RFC 9112 §7.1), in bytes."""
    size = line.partition(b";")[0].strip(b" \t")
    if not _CHUNK_SIZE.match(size):
        raise MalformedMessage("a chunk size that is not hexadecimal")
    return int(size, 16)


def render_response(
    status: int, reason: str, fields: Mapping[str, str], body: bytes, *, head_only: bool = False
) -> bytes:
    """Return a response as bytes, with its ``Content-Length``.

    One piece, because head and body written apart cost 40 ms each with Nagle's algorithm.
    `head_only` leaves the body out and keeps its length, as an answer to HEAD must
    (RFC 9110 §9.3.2).
    """
    if status != 204:  # which has no body by nature (RFC 9110 §8.6)
        fields = {"Content-Length": str(len(body)), **fields}
    return render_head(status, reason, fields) + (b"" if head_only else body)


def render_head(status: int, reason: str, fields: Mapping[str, str]) -> bytes:
    """Return the head of a response as bytes, the empty line included."""
    head = [f"HTTP/1.1 {status} {reason}"]
    head.extend(f"{name}: {value}" for name, value in fields.items())
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n"


def render_request(method: str, target: str, fields: Mapping[str, str]) -> bytes:
    """Return a request head as bytes, the empty line included.

    Raises ValueError when a value holds a line break, which would let it forge a field.
    """
    lines = [f"{method} {target} HTTP/1.1"]
    lines.extend(f"{name}: {value}" for name, value in fields.items())
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a line break inside a request head")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def _split_head(block: bytes, too_long: int) -> tuple[bytes, Fields]:
    if len(block) > MAX_HEAD:
        raise MalformedMessage(f"a head of over {MAX_HEAD} bytes", status=431)
    line, *rows = block.split(b"\r\n")
    if len(line) > MAX_START_LINE:
        raise MalformedMessage(f"a first line of over {MAX_START_LINE} bytes", status=too_long)
    if len(rows) > MAX_FIELDS:
        raise MalformedMessage(f"over {MAX_FIELDS} header fields", status=431)
    if b"\r" in line or b"\n" in line:
        raise MalformedMessage("a line that does not end in CR LF")
    return line, Fields(_parse_field(row) for row in rows)


def _parse_field(row: bytes) -> tuple[str, str]:
    name, colon, value = row.partition(b":")
    if not colon or not _TOKEN.match(name):
        raise MalformedMessage("a header field that is not 'Name: value'")
    value = value.strip(b" \t")
    if not _FIELD_VALUE.match(value):
        raise MalformedMessage("a header field with control characters in its value")
    return name.decode("ascii"), value.decode("latin-1")


def _persists(version: tuple[int, int], fields: Fields) -> bool:
    """Whether the sender of a message lets the connection go on after it (RFC 9112 §9.3)."""
    options = fields.tokens("Connection")
    return "close" not in options and (version >= (1, 1) or "keep-alive" in options)


def _parse_version(text: bytes) -> tuple[int, int]:
    match = _VERSION.match(text)
    if match is None:
        raise MalformedMessage("a protocol version that is not HTTP/1.0 or HTTP/1.1")
    return int(match[1]), int(match[2])


def _content_length(fields: Fields) -> int | None:
    values = {
        # Only what HTTP calls white space: str.strip() takes more, such as U+00A0.
        part.strip(" \t")
        for line in fields.all("Content-Length")
        for part in line.split(",")
    }
    if not values:
        return None
    if len(values) > 1:
        raise MalformedMessage("Content-Length fields that contradict each other")
    text = values.pop()
    if not _DIGITS.match(text):
        raise MalformedMessage("a Content-Length that is not a number of bytes")
    return int(text)
