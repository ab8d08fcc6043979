"""``seamless-jobserver upload``: bring spooled results to the store, and tell the database.

The store is spoken to as hashserver wants it (protocol.md, "Where buffers live"): a buffer counts
as stored when the answer is 200 or 201, and is sent again after a 202. What could be uploaded is
removed from the spool; what could not stays for the next time.
"""

import argparse
import base64
import http.client
import json
import sys
import threading
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from seamless_jobserver import spool
from seamless_jobserver.asking import nobody_reads
from seamless_jobserver.display import escape

_TIMEOUT: Final = 120.0
_ANSWER: Final = 2**20
"""Bytes of an answer that are read; no more is expected."""
_ATTEMPTS: Final = 60
_PAUSE: Final = 1.0


class UploadFailed(Exception):
    """A server did not take what it was sent; the message says which and why."""


def main(arguments: Sequence[str]) -> int:
    """Upload the entries that `arguments` name, by default all; return 1 when any is left."""
    parser = argparse.ArgumentParser(
        prog="seamless-jobserver upload",
        description="Upload results that were computed while the hashserver could not be reached, "
        "and record them in the database, so that they are not computed again.",
    )
    parser.add_argument("entries", nargs="*", metavar="DIRECTORY", help="default: all there are")
    parser.add_argument("--store", type=_url, metavar="URL", help="the hashserver, if it has moved")
    parser.add_argument(
        "--database", type=_url, metavar="URL", help="the database, if it has moved"
    )
    options = parser.parse_args(arguments)
    paths = [Path(one) for one in options.entries]
    if not paths:
        directory = spool.spool_directory()
        try:
            paths = [] if directory is None else list(spool.entries(directory))
        except OSError as error:
            print(f"{directory} cannot be read: {error}", file=sys.stderr)  # noqa: T201
            return 1
        distrust = None if directory is None else spool.distrust(directory)
        if distrust is not None:
            print(distrust, file=sys.stderr)  # noqa: T201
            return 1
        if not paths:
            where = "" if directory is None else f" in {directory}"
            print(f"Nothing is waiting{where}.")  # noqa: T201
    left = 0
    for path in paths:
        try:
            told = _upload(path, options.store, options.database)
        except (UploadFailed, OSError, ValueError, http.client.HTTPException) as error:
            left += 1
            # What a server says may be a stranger's, who has its port by now.
            print(f"{path.name}: not uploaded: {escape(str(error))}", file=sys.stderr)  # noqa: T201
            continue
        try:
            print(f"{path.name}: {told}", flush=True)  # noqa: T201
        except BrokenPipeError:
            nobody_reads()
    return 1 if left else 0


def _url(text: str) -> str:
    try:
        parts = urllib.parse.urlsplit(text)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError
        parts.hostname.encode("idna")
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no URL of a server, such as http://127.0.0.1:61100"
        ) from None
    return text


def _upload(path: Path, store: str | None, database: str | None) -> str:
    """Upload one entry, and return in words what has become of it."""
    manifest = spool.read(path)
    if manifest is None:
        raise UploadFailed(spool.distrust(path.parent) or f"{path} holds no spooled result")
    stores = [store] if store else manifest["stores"]
    if not stores:
        raise UploadFailed("it names no hashserver; name one with --store URL")
    for url in stores:
        for checksum in manifest["buffers"]:
            _put_buffer(url, checksum, path / checksum)
    if manifest.get("record_mode"):
        # Its record is made by the client that asks for it, which would not ask any more.
        return "its buffers are uploaded. Run the workflow again, so that it is recorded too"
    databases = [database] if database else manifest["databases"]
    if not databases:
        # Without a note of whose result it is, the workflow would compute it again.
        raise UploadFailed(
            "its buffers are in the store now, but it names no database to tell of the result. "
            "Name one with --database URL, or run the workflow again, which then finds it here"
        )
    for url in databases:
        fields = {
            "type": "transformation",
            "checksum": manifest["transformation"],
            "value": manifest["result"],
        }
        status = _put(url, "/", json.dumps(fields).encode())
        if status not in (200, 201):
            raise UploadFailed(f"the database {_shown(url)} answered {status}: see its log")
    spool.remove(path)
    return "uploaded"


def _put_buffer(url: str, checksum: str, path: Path) -> None:
    pause = threading.Event()  # never set: it is waited for, with a limit
    for _ in range(_ATTEMPTS):
        status = _put(url, f"/{checksum}", spool.read_file(path))
        if status in (200, 201):
            return
        if status != 202:
            raise UploadFailed(f"the hashserver {_shown(url)} answered {status}: see its log")
        pause.wait(_PAUSE)
    raise UploadFailed(f"somebody else keeps sending {checksum} to {_shown(url)}")


def _put(url: str, path: str, content: bytes) -> int:
    parts = urllib.parse.urlsplit(url)
    kind: Any = (
        http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    )
    connection = kind(parts.hostname, parts.port, timeout=_TIMEOUT)
    try:
        connection.request("PUT", parts.path.rstrip("/") + path, content, _credentials(parts))
        response = connection.getresponse()
        response.read(_ANSWER)
        return int(response.status)
    except OSError as error:
        raise UploadFailed(
            f"{_shown(url)} cannot be reached: {error}. If it listens elsewhere by now, say where "
            "with --store URL or --database URL"
        ) from error
    finally:
        connection.close()


def _credentials(parts: urllib.parse.SplitResult) -> dict[str, str]:
    """Return the header for user and password of a URL, if it has them (RFC 7617)."""
    if parts.username is None:
        return {}
    user, password = (urllib.parse.unquote(one or "") for one in (parts.username, parts.password))
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"}


def _shown(url: str) -> str:
    """Return `url` without the password that it may hold."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
