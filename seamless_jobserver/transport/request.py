"""From a URL and a body to the head of a request, and from a coded body to what it stands for."""

import base64
import gzip
import io
import json as _json
import zlib
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from seamless_jobserver import __version__
from seamless_jobserver.transport.exceptions import ClientPayloadError, InvalidURL

USER_AGENT: Final = f"seamless-jobserver/{__version__} transport"
EXPECT_FROM: Final = 256 * 1024
"""Bytes of body from which the server is asked first; below, asking costs more than sending."""
_ACCEPT_ENCODING: Final = "identity, gzip;q=0.5, zstd;q=0.5"
"""Plain bytes first, since the store is near; a buffer stored compressed comes as it is."""


class Origin(NamedTuple):
    """A server: whether it is spoken to over TLS, its host and its port."""

    secure: bool
    host: str
    port: int

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.host}:{self.port}"


class Target(NamedTuple):
    """Where a request goes: server, path with query, and the fields that the URL asks for."""

    origin: Origin
    path: str
    fields: dict[str, str]


def parse_url(url: str) -> Target:
    """Take a URL apart; a user and password in it become Basic authentication (RFC 7617).

    Raises InvalidURL for one that no request can be sent to.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidURL(f"{url}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidURL(url)
    secure = parts.scheme == "https"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    fields = {"Host": host if port is None else f"{host}:{port}"}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        fields["Authorization"] = "Basic " + base64.b64encode(pair).decode("ascii")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    origin = Origin(secure, parts.hostname, port or (443 if secure else 80))
    return Target(origin, path, fields)


def body_and_fields(
    method: str, target: Target, json: Any, data: bytes | None
) -> tuple[bytes, dict[str, str]]:
    """Return the body of a request and the fields of its head."""
    fields = {
        **target.fields,
        "User-Agent": USER_AGENT,
        "Accept": "*/*",
        "Accept-Encoding": _ACCEPT_ENCODING,
    }
    if json is not None:
        if data is not None:
            raise ValueError("data and json parameters can not be used at the same time")
        body = _json.dumps(json).encode()
        fields["Content-Type"] = "application/json"
    elif data is not None:
        body = data
        fields["Content-Type"] = "application/octet-stream"
    else:
        body = b""
    if body or method != "GET":
        fields["Content-Length"] = str(len(body))
    if len(body) >= EXPECT_FROM:
        fields["Expect"] = "100-continue"
    return body, fields


def decode(body: bytes, coding: str | None) -> bytes:
    """Undo a content coding (RFC 9110 §8.4). Raises ClientPayloadError when it cannot be."""
    coding = (coding or "identity").strip().lower()
    if coding in ("identity", "") or not body:
        return body
    try:
        if coding in ("gzip", "x-gzip"):
            # Several members in a row are one body (RFC 1952 §2.2).
            return gzip.GzipFile(fileobj=io.BytesIO(body)).read()
        if coding == "deflate":
            return zlib.decompress(body)
        if coding == "zstd":
            # seamless-core brings a decoder, which the standard library has only from 3.14 on.
            from seamless.compression_utils import decompress_bytes

            return bytes(decompress_bytes(body, ".zst"))
    except Exception as error:
        raise ClientPayloadError(f"the {coding} body cannot be decoded: {error}") from error
    raise ClientPayloadError(f"a content coding that was not asked for: {coding}")
