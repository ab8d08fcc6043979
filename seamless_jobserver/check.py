"""``seamless-jobserver check``: is a server reachable, by me, and does a job run on it?

Each step prints one line. The first that fails ends the check where the next ones need it, and
prints what can be done. A server whose workers are all busy is not at fault: what cannot be tried
then is said, and is no failure.
"""

import argparse
import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from seamless_jobserver.asking import (
    Server,
    TooSlow,
    Unreachable,
    add_target,
    find_server,
    nobody_reads,
    understand,
)
from seamless_jobserver.display import escape

_START_LIMIT: Final = 60.0
"""Seconds to wait for the first worker to start."""
_WAIT: Final = 10.0
"""Seconds to wait for a worker that has nothing else to do, unless told otherwise."""
_PAUSE: Final = 0.5
_STORE_LIMIT: Final = 60.0
_JOB_LIMIT: Final = 120.0
_NO_PROBES: Final = "bucket probes"
"""In the message of seamless-transformer about probes that are missing, or out of date."""


class Step(NamedTuple):
    """What was looked at, what was found, and what to do when it is not well.

    One that is not `tried` is neither well nor a failure.
    """

    title: str
    found: str
    remedy: str | None = None
    tried: bool = True


class _Stopped(Exception):
    """The steps that follow need one that has failed, or cannot be tried."""


def main(arguments: Sequence[str]) -> int:
    """Check the server that `arguments` name; return 1 when anything fails, else 0."""
    parser = argparse.ArgumentParser(
        prog="seamless-jobserver check",
        description="Find out whether a jobserver can be reached, whether it lets you in, whether "
        "its workers reach their store, and whether a trivial job runs. The exit code is 1 when "
        "one of that fails; what cannot be tried because all workers are busy is no failure.",
    )
    add_target(parser)
    parser.add_argument(
        "--wait",
        type=float,
        default=_WAIT,
        metavar="SECONDS",
        help=f"how long to wait for a worker that is not busy (default {_WAIT:g})",
    )
    options = parser.parse_args(arguments)
    try:
        server = find_server(options)
    except ValueError as error:
        parser.error(str(error))
    if not 0 <= options.wait <= 3600:
        parser.error("--wait: use 0 to 3600 seconds")
    failed = 0
    try:
        for step in steps(server, options.wait):
            failed += step.tried and step.remedy is not None
            _show(step)
    except BrokenPipeError:
        nobody_reads()
    return 1 if failed else 0


def _show(step: Step) -> None:
    mark = "ok    " if step.remedy is None else "FAILED"
    if not step.tried:
        mark = "later "
    print(f"{mark} {step.title}: {escape(step.found)}", flush=True)  # noqa: T201
    if step.remedy:
        for line in step.remedy.splitlines():
            print(f"       {escape(line)}", flush=True)  # noqa: T201


def steps(server: Server, wait: float) -> Iterator[Step]:
    """Yield the steps of a check as they are done; `wait` is in seconds, for a free worker."""
    try:
        yield from _reach(server)
        status = _status(server)
        yield understand(server, _describe, status)
        record = understand(server, lambda given: bool(given["server"]["record"]), status)
        yield from _workers(server, wait)
        yield from _store_and_job(server, wait, record=record)
    except Unreachable as error:
        yield Step("reach it", f"no answer from {server.address}", str(error))
    except _Stopped as end:
        yield end.args[0]


def _reach(server: Server) -> Iterator[Step]:
    answer = server.ask("GET", "/healthcheck")
    if answer.status in (401, 403, 426):
        raise _Stopped(Step("reach it", "it answers, and does not let you in", answer.text))
    if answer.status != 200 or answer.text != "OK":
        remedy = "Something else listens there. The status file says where the jobserver does."
        raise _Stopped(Step("reach it", f"{server.address} answers {answer.status}", remedy))
    yield Step("reach it", f"{server.address} answers, and lets you in")


def _status(server: Server) -> dict[str, Any]:
    answer = server.ask("GET", "/status")
    try:
        status: dict[str, Any] = json.loads(answer.text)
        if answer.status != 200 or not isinstance(status, dict) or "workers" not in status:
            raise ValueError
    except ValueError:
        remedy = (
            "Something else listens there, or another kind of jobserver: look into the status file."
        )
        raise _Stopped(Step("its state", "it does not tell", remedy)) from None
    return status


def _describe(status: dict[str, Any]) -> Step:
    facts = status["server"]
    minutes = (status["time"] - facts["started"]) / 60
    found = (
        f"version {facts['version']} of user {facts['user']} on {facts['hostname']}, up for "
        f"{minutes:.0f} min, {len(status['running'])} running, {status['waiting_count']} waiting"
    )
    if facts["ending"]:
        return Step("its state", found, "It is about to end. Start it again.")
    return Step("its state", found)


def _workers(server: Server, wait: float) -> Iterator[Step]:
    """Wait for the workers to have started, and say how they are."""
    pause = threading.Event()  # never set: it is waited for, with a limit
    deadline = time.monotonic() + _START_LIMIT
    while True:
        states, problems = understand(server, _how_they_are, _status(server))
        found = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        if "idle" in states:
            yield Step("its workers", found)
            return
        if "busy" in states:
            until = f"waiting up to {wait:g} s for one that is free"
            yield Step("its workers", f"{found}; {until}")
            return
        if problems and "starting" not in states:
            raise _Stopped(Step("its workers", found or "none", problems[0]))
        if time.monotonic() > deadline:
            remedy = "None of them has started in time. The log of the jobserver may say why."
            raise _Stopped(Step("its workers", found or "none", remedy))
        pause.wait(_PAUSE)


def _how_they_are(status: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the state of each worker, and why any could not be started."""
    workers = status["workers"]
    problems = [str(worker["problem"]) for worker in workers if worker["problem"]]
    return [str(worker["state"]) for worker in workers], problems


def _store_and_job(server: Server, wait: float, *, record: bool) -> Iterator[Step]:
    found = _check_store(server, wait)
    for name in ("hashserver", "database"):
        problem = found[name]
        what = "reached from a worker" if problem is None else "not usable from a worker"
        yield Step(f"its {name}", what, problem)
    if found["hashserver"] is None:
        yield _run(server, found["trial"], record=record)


def _check_store(server: Server, wait: float) -> dict[str, Any]:
    """Have a worker use its store. Only one that is idle can be asked to."""
    pause = threading.Event()  # never set: it is waited for, with a limit
    deadline = time.monotonic() + wait
    while True:
        answer = server.ask("POST", "/check-store", timeout=_STORE_LIMIT)
        if answer.status == 200:
            found: dict[str, Any] = understand(server, _store_found, answer.text)
            return found
        if answer.status != 503:
            raise _Stopped(Step("its store", f"answer {answer.status}", answer.text))
        if time.monotonic() > deadline:
            remedy = "A longer --wait, more --workers, or another moment may do."
            words = "not tried, and no job either: all workers are busy"
            raise _Stopped(Step("its store", words, remedy, tried=False))
        pause.wait(_PAUSE)


def _store_found(text: str) -> dict[str, Any]:
    found = json.loads(text)
    return {name: found[name] for name in ("hashserver", "database", "trial")}


def _run(server: Server, trial: dict[str, Any], *, record: bool) -> Step:
    text = json.dumps(trial, sort_keys=True, indent=2) + "\n"
    request = {
        "transformation_dict": trial,
        "tf_checksum": hashlib.sha256(text.encode()).hexdigest(),
        "scratch": True,
        "record": record,
    }
    began = time.monotonic()
    try:
        answer = server.ask("GET", "/run-transformation", request, timeout=_JOB_LIMIT)
    except TooSlow:
        words = f"not run within {_JOB_LIMIT:g} s: other jobs have all workers"
        return Step("a trivial job", words, "Try again when fewer jobs wait.", tried=False)
    took = time.monotonic() - began
    if answer.status == 200 and "result_checksum" in answer.text:
        return Step("a trivial job", f"it ran, in {took:.2f} s")
    if record and _NO_PROBES in answer.text:
        words = "not tried: in record mode a client makes the probes of this machine first"
        return Step("a trivial job", words, answer.text.strip(), tried=False)
    return Step("a trivial job", f"answer {answer.status}", answer.text.strip())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
