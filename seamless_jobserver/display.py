"""What ``seamless-jobserver top`` shows of a server, as lines of text.

Where there is no room for all of it, workers, jobs under way, jobs that have ended and failures get
a fair share each, and what is left out is counted. What jobs are called, and why they failed, comes
from outside, and may hold what a terminal would obey: it is escaped.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any, Final

STILL_AT_WORK: Final = "canceled, still at work"
BAD: Final = ("failed", "crashed", "lost")
_WAITING_SHOWN: Final = 10
_SHORT: Final = 12
_UNITS: Final = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))

Section = list[str]
"""A line of headings, then rows."""


def render(
    status: dict[str, Any],
    ended: Sequence[dict[str, Any]],
    failures: Sequence[dict[str, Any]],
    width: int,
    height: int | None = None,
) -> list[str]:
    """Return the lines that show an answer of ``/status``, none of them over `width` columns.

    `ended` and `failures` are the jobs to list, newest first. With a `height` there are at most so
    many lines, however little that shows.
    """
    head = _head(status)
    sections = [_workers(status), _under_way(status), _ended(ended), _failures(failures, width)]
    sections = [section for section in sections if len(section) > 1]
    if height is not None:
        # Each section has a line of headings, and an empty one before it.
        room = height - len(head) - 2 * len(sections)
        sections = _fit(sections, max(0, room))
    lines = head
    for section in sections:
        lines += ["", *section]
    return [_cut(escape(line), width) for line in lines][:height]


def escape(text: str) -> str:
    """Return text that a terminal shows and does not obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _cut(text: str, width: int) -> str:
    """Cut text to so many columns of a terminal (UAX #11: some characters take two, some none)."""
    if text.isascii():
        return text[:width]
    used = 0
    for index, character in enumerate(text):
        wide = unicodedata.east_asian_width(character) in "WF"
        used += 0 if unicodedata.combining(character) else 2 if wide else 1
        if used > width:
            return text[:index]
    return text


def fair_shares(wanted: Sequence[int], room: int) -> list[int]:
    """Share `room` among some who want so much each: nobody gets more than another who lacks some.

    What cannot be shared evenly goes to the first ones.
    """
    given = [0] * len(wanted)
    while room > 0:
        lacking = [index for index, want in enumerate(wanted) if given[index] < want]
        if not lacking:
            break
        for index in lacking[:room]:
            given[index] += 1
        room -= min(room, len(lacking))
    return given


def _fit(sections: list[Section], room: int) -> list[Section]:
    shares = fair_shares([len(section) - 1 for section in sections], room)
    fitted = []
    for section, share in zip(sections, shares, strict=True):
        heading, *rows = section
        if share < len(rows):
            kept = max(0, share - 1)
            rows = [*rows[:kept], f"… and {len(rows) - kept} more"]
        fitted.append([heading, *rows])
    return fitted


def _head(status: dict[str, Any]) -> list[str]:
    facts, now = status["server"], status["time"]
    totals, machine, series = status["totals"], status["machine"], status["series"]
    names = ("done", "failed", "crashed", "canceled", "lost")
    steps = max(1, round(60 / series["step"]))
    last_minute = sum(series["ended"][-steps - 1 : -1])
    if facts["idle_timeout"] is None:
        use = ""
    elif facts["idle_left"] is None:
        use = ", in use"
    else:
        use = f", ends in {_duration(facts['idle_left'])} if unused"
    waiting = status["waiting_count"]
    oldest = f" (the oldest for {_duration(status['oldest_waiting'])})" if waiting else ""
    left = len(status["canceled_running"])
    return [
        f"seamless-jobserver {facts['version']} on {facts['hostname']}, {facts['listening']}, "
        f"up {_duration(now - facts['started'])}{use}",
        facts["access"],
        f"{len(status['running'])} running, {waiting} waiting{oldest}"
        + (f", {left} {STILL_AT_WORK}" if left else "")
        + f"; {last_minute} ended in the last minute",
        "in all: " + ", ".join(f"{totals[name]} {name}" for name in names),
        f"load {machine['load'][0]:g} on {machine['processors']} processors, "
        f"{_size(machine['available'])} of {_size(machine['memory'])} memory free",
    ]


def _workers(status: dict[str, Any]) -> Section:
    rows = []
    for worker in status["workers"]:
        doing = worker["problem"] or worker["phase"] or ""
        if worker["canceled"]:
            doing = STILL_AT_WORK
        memory = _size(worker["memory"])
        rows.append(_row(worker["number"], worker["state"], memory, worker["jobs"], doing))
    return [_row("WORKER", "STATE", "MEMORY", "JOBS", "DOING"), *rows]


def _under_way(status: dict[str, Any]) -> Section:
    now = status["time"]
    rows = [
        _job(job, job["phase"] or job["state"], now - job["started"]) for job in status["running"]
    ]
    rows += [_job(job, STILL_AT_WORK, now - job["started"]) for job in status["canceled_running"]]
    waiting = status["waiting"][:_WAITING_SHOWN]
    rows += [_job(job, "waiting", now - job["received"]) for job in waiting]
    if status["waiting_count"] > len(waiting):
        rows.append(f"… and {status['waiting_count'] - len(waiting)} more that wait")
    return [_row("JOB", "PHASE", "FOR", "WORKER", "NAME"), *rows]


def _ended(jobs: Sequence[dict[str, Any]]) -> Section:
    rows = [_job(job, job["state"], _time_run(job)) for job in jobs]
    return [_row("ENDED", "HOW", "RAN", "WORKER", "NAME"), *rows]


def _failures(jobs: Sequence[dict[str, Any]], width: int) -> Section:
    rows = []
    for job in jobs:
        name = f"{job['name'] or job['language']}: "[: max(10, width // 3)]
        rows.append(
            f"{job['checksum'][:_SHORT]:<13} {job['state']:<8} {name}{job['problem'] or ''}"
        )
    return ["LATEST FAILURES", *rows]


def _time_run(job: dict[str, Any]) -> float | None:
    if job["wall"] is not None or job["started"] is None:
        wall: float | None = job["wall"]
        return wall
    return float(job["ended"] - job["started"])


def _job(job: dict[str, Any], state: str, seconds: float | None) -> str:
    name = job["name"] or f"({job['language']})"
    inside = f" (inside job {job['within'][:_SHORT]})" if job["within"] else ""
    worker = "" if job["worker"] is None else job["worker"]
    return _row(job["checksum"][:_SHORT], state, _duration(seconds), worker, name + inside)


def _row(first: Any, second: Any, third: Any, fourth: Any, fifth: Any) -> str:
    return f"{first!s:<13} {second!s:<23} {third!s:>9} {fourth!s:>7}  {fifth}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def _size(count: float | None) -> str:
    if count is None:
        return "-"
    for unit, one in _UNITS:
        if count >= one:
            return f"{count / one:.1f} {unit}"
    return f"{count:.0f} B"
