"""Results that no store would take: kept in the spool, and offered again when they are asked for.

`seamless_jobserver.spool` says how they are kept. A result is found again by its transformation and
by the envelope that it ran with, in any later life of the jobserver.
"""

from typing import Any

from seamless import Buffer, Checksum

from seamless_jobserver import spool
from seamless_jobserver.messages import Ending, Outcome, RunRequest
from seamless_jobserver.worker.staging import Staging


class Safekeeping:
    """Keeps results in the spool of this user; `clients` are those of `WorkerSettings`."""

    def __init__(self, clients: dict[str, Any]) -> None:
        self._spool = spool.spool_directory()
        self._stores = _writable_urls(clients.get("buffer"))
        self._databases = _writable_urls(clients.get("database"))

    def find(self, request: RunRequest) -> "KeptResult | None":
        """Return the kept result of `request`, or None."""
        # Nearly always there is no spool at all, and a job then pays for one look.
        if not self._spool.is_dir():
            return None
        path = spool.entry_path(self._spool, request.checksum, request.dunder)
        manifest = spool.read(path)
        return None if manifest is None else KeptResult(path, manifest)

    def deliver(self, kept: "KeptResult", staging: Staging) -> Outcome:
        """Store a kept result and return its outcome. Raises `StoreUnavailable`: it stays kept."""
        manifest = kept.manifest
        staging.store([Buffer((kept.path / name).read_bytes()) for name in manifest["buffers"]])
        spool.remove(kept.path)
        return Outcome(
            Ending.RESULT,
            result_checksum=manifest["result"],
            runtime=manifest["runtime"],
            remark="its result had been computed before, and is stored now",
        )

    def keep(
        self, request: RunRequest, result: Checksum, buffers: list[Buffer], runtime: dict[str, Any]
    ) -> str:
        """Keep a result; return what its caller should know and do. Never raises."""
        path = spool.entry_path(self._spool, request.checksum, request.dunder)
        manifest = {
            "transformation": request.checksum,
            "result": result.hex(),
            "stores": self._stores,
            "databases": self._databases,
            "runtime": runtime,
        }
        contents = {buffer.get_checksum().hex(): bytes(buffer.content) for buffer in buffers}
        try:
            spool.keep(path, manifest, contents)
        except OSError as error:
            return (
                f"Nor could it be kept in {self._spool} ({error}), so it is lost. Run the workflow "
                "again when the store is back.\n"
            )
        return (
            f"It is kept on this machine, in {path}\n"
            "When the store is back, either run the workflow again, which then finds it, or "
            f"upload it with: seamless-jobserver upload {path}\n"
        )


class KeptResult:
    """An entry of the spool."""

    def __init__(self, path: Any, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest


def _writable_urls(clients: Any) -> list[str]:
    urls = []
    for client in clients or ():
        url = client.get("remote_url") or client.get("url")
        if url and not client.get("readonly", True):
            urls.append(url)
    return urls
