"""``seamless-jobserver check``: is a server reachable, by me, and does a job run on it?

Each step prints one line. The first that fails ends the check where the next ones need it, and
prints what can be done.
"""

import argparse
import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from seamless_jobserver.asking import Server, Unreachable, add_target, find_server, printable

_WORKER_LIMIT: Final = 60.0
"""Seconds to wait for a worker that has nothing else to do."""
_PAUSE: Final = 0.5
_STORE_LIMIT: Final = 60.0
_JOB_LIMIT: Final = 120.0


class Step(NamedTuple):
    """What was looked at, what was found, and what to do when it is not well."""

    title: str
    found: str
    remedy: str | None = None


class _Stopped(Exception):
    """The steps that follow need one that has failed."""


def main(arguments: Sequence[str]) -> int:
    """Check the server that `arguments` name; return 0 when all is well, else 1."""
    parser = argparse.ArgumentParser(
        prog="seamless-jobserver check",
        description="Find out whether a jobserver can be reached, whether it lets you in, whether "
        "its workers reach their store, and whether a trivial job runs.",
    )
    add_target(parser)
    options = parser.parse_args(arguments)
    try:
        server = find_server(options)
    except ValueError as error:
        parser.error(str(error))
    failed = 0
    for step in steps(server):
        failed += step.remedy is not None
        mark = "ok    " if step.remedy is None else "FAILED"
        print(f"{mark} {step.title}: {printable(step.found)}", flush=True)  # noqa: T201
        if step.remedy:
            print(f"       {printable(step.remedy, lines=True)}", flush=True)  # noqa: T201
    return 1 if failed else 0


def steps(server: Server) -> Iterator[Step]:
    """Yield the steps of a check as they are done."""
    try:
        yield from _reach(server)
        status = _status(server)
        yield _describe(status)
        yield from _workers(server)
        yield from _store_and_job(server, record=bool(status["server"]["record"]))
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
        if answer.status != 200 or "workers" not in status:
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


def _workers(server: Server) -> Iterator[Step]:
    """Wait for a worker that is idle, since only such a one can be tried."""
    pause = threading.Event()  # never set: it is waited for, with a limit
    deadline = time.monotonic() + _WORKER_LIMIT
    while True:
        workers = _status(server)["workers"]
        states = [worker["state"] for worker in workers]
        found = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        problems = [worker["problem"] for worker in workers if worker["problem"]]
        if "idle" in states:
            yield Step("its workers", found)
            return
        if problems and "busy" not in states and "starting" not in states:
            raise _Stopped(Step("its workers", found or "none", problems[0]))
        if time.monotonic() > deadline:
            remedy = "All of them are busy. Try again later, or start more with --workers."
            raise _Stopped(Step("its workers", found or "none", remedy))
        pause.wait(_PAUSE)


def _store_and_job(server: Server, *, record: bool) -> Iterator[Step]:
    answer = server.ask("POST", "/check-store", timeout=_STORE_LIMIT)
    if answer.status != 200:
        raise _Stopped(Step("its store", f"answer {answer.status}", answer.text))
    found = json.loads(answer.text)
    for name in ("hashserver", "database"):
        problem = found[name]
        what = "reached from a worker" if problem is None else "not usable from a worker"
        yield Step(f"its {name}", what, problem)
    if found["hashserver"] is not None:
        return
    text = json.dumps(found["trial"], sort_keys=True, indent=2) + "\n"
    request = {
        "transformation_dict": found["trial"],
        "tf_checksum": hashlib.sha256(text.encode()).hexdigest(),
        "scratch": True,
        "record": record,
    }
    began = time.monotonic()
    answer = server.ask("GET", "/run-transformation", request, timeout=_JOB_LIMIT)
    took = time.monotonic() - began
    if answer.status == 200 and "result_checksum" in answer.text:
        yield Step("a trivial job", f"it ran, in {took:.2f} s")
    else:
        yield Step("a trivial job", f"answer {answer.status}", answer.text.strip())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
