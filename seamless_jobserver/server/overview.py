"""What the server is doing, put together for watchers: ``/status``, ``/metrics``, ``/jobs``.

Jobs and slots live on the event loop, and are looked at there; what takes longer (memory of
processes, texts) is done in the thread of the connection that asks. Many pages may watch one
server, so what they all see is put together at most every `FRESH` seconds, whoever asks.
docs/watching.rst describes the fields.
"""

import json
import os
import platform
import socket
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

from seamless_jobserver import __version__
from seamless_jobserver.processtree import tree_memory
from seamless_jobserver.progress import Phase
from seamless_jobserver.server.access import user_name
from seamless_jobserver.server.bridge import Bridge
from seamless_jobserver.server.exposition import age_of_first, canceled_running, expose
from seamless_jobserver.server.http import JobHTTPServer
from seamless_jobserver.server.idle import Activity
from seamless_jobserver.server.journal import Ended, Entry, describe, pins
from seamless_jobserver.server.service import Service

VERSION: Final = 1
"""Of the form of ``/status``; it is raised when a field changes its meaning or goes away."""
FRESH: Final = 1.0
MEMORY_FRESH: Final = 5.0
"""Seconds for which the memory of a worker is told again: a look at it takes a millisecond."""
MOST_WAITING: Final = 200
MOST_ENDED: Final = 1000
MOST_LISTED: Final = 500
_LIMIT: Final = 10.0
"""Seconds for the loop to answer; it never takes more than a moment."""
_SEAMLESS: Final = ("seamless-core", "seamless-transformer", "seamless-remote", "seamless-config")


@dataclass(frozen=True)
class ServerFacts:
    """What does not change while a server runs: `listening` as ``HOST:PORT``, times in seconds."""

    listening: str
    access: str
    exposed: bool
    record: bool
    reclaims: bool
    idle_timeout: float | None


class Overview:
    """Any thread may ask it."""

    def __init__(
        self,
        facts: ServerFacts,
        service: Service,
        bridge: Bridge,
        http: JobHTTPServer,
        activity: Activity,
    ) -> None:
        self._facts = facts
        self._service = service
        self._bridge = bridge
        self._http = http
        self._activity = activity
        self._started = time.time()
        self._versions = {"jobserver": __version__, "python": platform.python_version()}
        self._versions.update({name: _version(name) for name in _SEAMLESS})
        self._user = user_name(os.geteuid())
        self._lock = threading.Lock()  # over those below
        self._present = b""
        self._until = 0.0
        self._memory: dict[int, tuple[float, int | None]] = {}

    def watched(self) -> AbstractContextManager[None]:
        """Leave the request that is being answered out of what counts as activity meanwhile."""
        return self._activity.watched()

    def status(self, after: int) -> bytes:
        """Return the JSON of ``/status``, with the jobs that ended after the one of number `after`.

        `after` counts the jobs that have ended.
        """
        lines, latest = self._ask(lambda: self._ended_since(after))
        with self._lock:
            if time.monotonic() >= self._until:
                self._present = json.dumps(self._look()).encode()
                self._until = time.monotonic() + FRESH
            present = self._present
        return b'%s, "latest": %d, "ended": [%s]}' % (present[:-1], latest, b", ".join(lines))

    def jobs(self, before: int | None, most: int, states: list[str]) -> bytes:
        """Return the JSON of ``/jobs``: jobs that have ended, newest first."""
        journal = self._service.journal
        lines, more = self._ask(lambda: journal.before(before, min(most, MOST_LISTED), states))
        return b'{"jobs": [%s], "more": %s}' % (b", ".join(lines), json.dumps(more).encode())

    def job(self, checksum: str) -> bytes | None:
        """Return the JSON of ``/jobs/CHECKSUM``, or None for a job that is not known (any more)."""
        found = self._ask(lambda: self._job(checksum))
        if found is None:
            return None
        line, detail, output, working = found
        dropped, size = (0, 0) if output is None else self._service.output.extent(output)
        more = {"working": working, "output": size, "dropped": dropped}
        return b"%s, %s, %s" % (line[:-1], detail[1:-1], json.dumps(more).encode()[1:])

    def metrics(self) -> str:
        """Return the text of ``/metrics``."""
        counts = self._http.counts
        return str(self._ask(lambda: expose(self._service, counts, time.time() - self._started)))

    def _ask(self, look: Callable[[], Any]) -> Any:
        async def on_the_loop() -> Any:
            return look()

        return self._bridge.ask(on_the_loop(), _LIMIT)

    def _ended_since(self, after: int) -> tuple[list[bytes], int]:
        journal = self._service.journal
        return journal.since(after, MOST_ENDED), journal.latest

    def _job(self, checksum: str) -> tuple[bytes, bytes, str | None, bool] | None:
        found = self._service.journal.of(checksum)
        if isinstance(found, Entry):
            detail: dict[str, Any] = {"pins": pins(found.job), "message": None, "runtime": {}}
            line = json.dumps(self._describe(found)).encode()
            return line, json.dumps(detail).encode(), found.output, found.started is not None
        if isinstance(found, Ended):
            nothing = b'{"pins": null, "message": null, "runtime": {}}'
            detail_kept = nothing if found.detail is None else zlib.decompress(found.detail)
            working = any(
                entry.job.checksum == checksum and entry.output == found.output
                for entry in canceled_running(self._service)
            )
            return found.line, detail_kept, found.output, working
        return None

    def _describe(self, entry: Entry) -> dict[str, Any]:
        slot = self._service.place_of(entry.job)
        if slot is None:
            # Its code may have been run, and named, since it came.
            entry.name = entry.name or self._service.journal.known_name(entry.job)
            running = entry.started is not None and entry.job.host is None
            phase = Phase.STORING.words if running else None
            return describe(entry, phase=phase, ended=None, outcome=None)
        self._service.journal.named(entry.job, slot.job_name)
        entry.name = entry.name or slot.job_name  # one that was canceled is not under way any more
        return describe(entry, phase=slot.phase.words, ended=None, outcome=None)

    def _look(self) -> dict[str, Any]:
        present: dict[str, Any] = self._ask(self._look_on_the_loop)
        workers = present["workers"]
        self._memory = {
            worker["pid"]: self._memory_of(worker["pid"], worker["state"])
            for worker in workers
            if worker["pid"]
        }
        for worker in workers:
            worker["memory"] = self._memory[worker["pid"]][1] if worker["pid"] else None
        return {
            "version": VERSION,
            "time": round(time.time(), 3),
            "server": self._describe_server(),
            "machine": _machine(),
            **present,
        }

    def _memory_of(self, pid: int, state: str) -> tuple[float, int | None]:
        """Return until when the memory of a worker, as it is now or was, is good enough, and it."""
        known = self._memory.get(pid)
        now = time.monotonic()
        if known is not None and now < known[0]:
            return known
        lasts = 0.0 if state == "starting" else MEMORY_FRESH
        try:
            return now + lasts, tree_memory(pid)
        except OSError:  # not for us to see, such as what a job runs as another user
            return now + lasts, None

    def _look_on_the_loop(self) -> dict[str, Any]:
        journal = self._service.journal
        running = [entry for entry in journal.under_way.values() if entry.started is not None]
        waiting = journal.waiting
        workers = []
        for slot in self._service.all_slots:
            job = self._service.job_in(slot)
            workers.append(
                {
                    "number": slot.number,
                    "state": slot.state.value,
                    "pid": None if slot.worker is None else slot.worker.pid,
                    "jobs": journal.jobs_of_slot[slot.number],
                    "job": None if job is None else job.checksum,
                    "phase": None if job is None else slot.phase.words,
                    "canceled": job is not None and not job.state.active,
                    "problem": slot.problem,
                }
            )
        return {
            "workers": workers,
            "running": [self._describe(entry) for entry in running],
            "canceled_running": [
                self._describe(entry) for entry in canceled_running(self._service)
            ],
            "waiting": [self._describe(entry) for entry in waiting[:MOST_WAITING]],
            "waiting_count": len(waiting),
            "oldest_waiting": age_of_first(waiting),
            "totals": {
                name: journal.totals[name]
                for name in (
                    "received",
                    "joined",
                    "done",
                    "failed",
                    "crashed",
                    "canceled",
                    "lost",
                )
            },
            "series": journal.course(),
        }

    def _describe_server(self) -> dict[str, Any]:
        facts = self._facts
        left = None
        idle = self._activity.idle_seconds()
        if facts.idle_timeout is not None and idle:
            left = round(max(0.0, facts.idle_timeout - idle), 1)
        return {
            "name": "seamless-jobserver",
            "version": self._versions["jobserver"],
            "python": self._versions["python"],
            "packages": {name: self._versions[name] for name in _SEAMLESS},
            "hostname": socket.gethostname(),
            "user": self._user,
            "pid": os.getpid(),
            "listening": facts.listening,
            "access": facts.access,
            "exposed": facts.exposed,
            "started": round(self._started, 3),
            "record": facts.record,
            "reclaims": facts.reclaims,
            "idle_timeout": facts.idle_timeout,
            "idle_left": left,
            "ending": self._http.closing,
        }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"  # importable, as the server has seen, but not installed by name


def _machine() -> dict[str, Any]:
    memory = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, amount = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                memory[name] = int(amount.split()[0]) * 1024
    return {
        "processors": len(os.sched_getaffinity(0)),
        "load": [round(one, 2) for one in os.getloadavg()],
        "memory": memory.get("MemTotal"),
        "available": memory.get("MemAvailable"),
    }
