"""Results that no store would take: kept in the spool, and offered again when they are asked for.

`seamless_jobserver.spool` says how they are kept. A result is found again by its transformation and
by the envelope that it ran with, in any later life of the jobserver.
"""

import os
from typing import Any

from seamless import Buffer

from seamless_jobserver import spool
from seamless_jobserver.messages import Ending, Outcome, RunRequest
from seamless_jobserver.worker.staging import Staging
from seamless_jobserver.worker.unserved import StoreUnavailable


class Safekeeping:
    """Keeps results in the spool of this user; `clients` are those of `WorkerSettings`."""

    def __init__(self, clients: dict[str, Any]) -> None:
        self._spool = spool.spool_directory()
        self._stores = _writable_urls(clients.get("buffer"))
        self._databases = _writable_urls(clients.get("database"))

    def find(self, request: RunRequest) -> "KeptResult | None":
        """Return the kept result of `request`, or None."""
        # Nearly always there is no spool at all, and a job then pays for one look.
        if self._spool is None or not os.path.isdir(self._spool):
            return None
        path = spool.entry_path(self._spool, request.checksum, request.dunder)
        manifest = spool.read(path)
        if manifest is None or (request.record and not manifest.get("record")):
            return None  # without what its record has to say
        return KeptResult(path, manifest)

    def deliver(self, kept: "KeptResult", staging: Staging) -> Outcome | None:
        """Store a kept result and return its outcome, or None when it is not whole any more.

        Raises `StoreUnavailable`: it stays kept.
        """
        manifest = kept.manifest
        buffers = []
        for name in manifest["buffers"]:
            try:
                buffer = Buffer(spool.read_file(kept.path / name))
            except OSError:
                return None  # it is being uploaded, or cleared away, at this moment
            if buffer.get_checksum().hex() != name:
                return None
            buffers.append(buffer)
        try:
            staging.store(buffers)
        except StoreUnavailable as error:
            # Of the answers that a client gets it shows the last, which may be this one.
            raise StoreUnavailable(f"{error}{_advice(kept.path)}") from error
        remark = "its result had been computed before, and is stored now"
        try:
            spool.remove(kept.path)
        except OSError as error:
            remark = f"{remark}; but it cannot be removed from {kept.path}: {error}"
        return Outcome(
            Ending.RESULT,
            result_checksum=manifest["result"],
            runtime=manifest["runtime"],
            extra=manifest.get("extra", {}),
            remark=remark,
        )

    def keep(
        self, request: RunRequest, outcome: Outcome, buffers: list[Buffer], *, whole: bool
    ) -> str:
        """Keep a result, which `outcome` would have told of if it could have been stored.

        Unless the outcome is `whole`, with all that its record needs, it will not do in record
        mode. Returns what its caller should know and do. Never raises.
        """
        if self._spool is None:
            return (
                "Nor could the result be kept, because the jobserver runs as a user without a home "
                "directory: it is lost. Run the workflow again when the store is back. "
                "(SEAMLESS_JOBSERVER_SPOOL=DIRECTORY says where to keep results.)\n"
            )
        path = spool.entry_path(self._spool, request.checksum, request.dunder)
        manifest = {
            "transformation": request.checksum,
            "result": outcome.result_checksum,
            "stores": self._stores,
            "databases": self._databases,
            "runtime": outcome.runtime,
            "record": request.record and whole,
            "record_mode": request.record,
            "extra": outcome.extra,
        }
        contents = {buffer.get_checksum().hex(): bytes(buffer.content) for buffer in buffers}
        try:
            spool.keep(path, manifest, contents)
        except OSError as error:
            return (
                f"Nor could the result be kept in {self._spool} ({error}): it is lost. "
                "Run the workflow again when the store is back.\n"
            )
        return _advice(path)


class KeptResult:
    """An entry of the spool."""

    def __init__(self, path: Any, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest


def _advice(path: Any) -> str:
    return (
        f"The result is kept on this machine, in {path}\n"
        "When the store is back, either run the workflow again, which then finds it, or "
        f"upload it with: seamless-jobserver upload {path}\n"
    )


def _writable_urls(clients: Any) -> list[str]:
    urls = []
    for client in clients or ():
        url = client.get("remote_url") or client.get("url")
        if url and not client.get("readonly", True):
            urls.append(url)
    return urls
