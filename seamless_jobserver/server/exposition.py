"""What ``/metrics`` tells: the metrics of a server, gathered on the event loop.

docs/watching.rst names them.
"""

import time

from seamless_jobserver.server.journal import Entry
from seamless_jobserver.server.metrics import Metric, render
from seamless_jobserver.server.service import Service


def canceled_running(service: Service) -> list[Entry]:
    """Return the jobs that have ended for their callers while their work goes on."""
    found = []
    for slot in service.all_slots:
        job = service.job_in(slot)
        entry = service.journal.in_slot(slot.number)
        if job is not None and not job.state.active and entry is not None and entry.job is job:
            found.append(entry)
    return found


def age_of_first(waiting: list[Entry]) -> float | None:
    """Return for how many seconds the first of these jobs has waited; None if there is none."""
    return round(max(0.0, time.time() - waiting[0].received), 3) if waiting else None


def expose(service: Service, connections: tuple[int, int, int], uptime: float) -> str:
    """Return the text of ``/metrics``.

    `connections` are how many there are, were accepted, and were refused; `uptime` is in seconds.
    """
    journal = service.journal
    waiting = journal.waiting
    slots = service.all_slots
    traffic = journal.traffic
    connected, accepted, refused = connections
    states = ("done", "failed", "crashed", "canceled", "lost")
    slot_states = {"starting": 0, "idle": 0, "busy": 0, "down": 0}
    for slot in slots:
        slot_states[slot.state.value] += 1
    metrics = [
        Metric(
            "jobs_total",
            "counter",
            "Jobs that have ended, by how.",
            {state: journal.totals[state] for state in states},
            "outcome",
        ),
        _one("jobs_received_total", "counter", "Jobs received.", journal.totals["received"]),
        _one(
            "jobs_joined_total",
            "counter",
            "Requests that joined a job under way.",
            journal.totals["joined"],
        ),
        _one(
            "jobs_running",
            "gauge",
            "Jobs that run, those inside others included.",
            len(journal.under_way) - len(waiting),
        ),
        _one(
            "jobs_canceled_running",
            "gauge",
            "Canceled jobs whose work goes on and holds a worker.",
            len(canceled_running(service)),
        ),
        _one("queue_length", "gauge", "Jobs that wait for a worker.", len(waiting)),
        _one(
            "queue_oldest_seconds",
            "gauge",
            "Age of the job that has waited longest.",
            age_of_first(waiting) or 0.0,
        ),
        Metric("slots", "gauge", "Worker slots, by state.", slot_states, "state"),
        _one(
            "worker_restarts_total",
            "counter",
            "Workers that were replaced.",
            service.workers_ended,
        ),
        _one(
            "staged_bytes_total",
            "counter",
            "Bytes of inputs fetched from servers.",
            traffic.staged,
        ),
        _one("stored_bytes_total", "counter", "Bytes of results stored.", traffic.stored),
        _one(
            "cache_hits_total",
            "counter",
            "Inputs that were at hand: kept from earlier jobs, or in a read folder.",
            traffic.cache_hits,
        ),
        _one(
            "cache_misses_total",
            "counter",
            "Inputs fetched from a server.",
            traffic.cache_misses,
        ),
        _one("connections", "gauge", "Open connections.", connected),
        _one("connections_total", "counter", "Connections accepted.", accepted),
        _one(
            "refused_total",
            "counter",
            "Connections and requests refused by the access rules.",
            refused,
        ),
        _one("uptime_seconds", "gauge", "Seconds since the start.", uptime),
    ]
    histograms = {
        "run_seconds": ("Seconds from the start of a job to its end.", journal.run_times),
        "queue_seconds": ("Seconds that jobs waited for a worker.", journal.queue_times),
    }
    return render(metrics, histograms)


def _one(name: str, kind: str, about: str, value: float) -> Metric:
    return Metric(name, kind, about, {"": value})
