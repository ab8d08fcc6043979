"""What is compared: upstream's jobserver, ours, and the floor, each a process of its own."""

import contextlib
import json
import select
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.caller import Answer, BenchmarkFailed, Caller, burst, encode
from seamless_jobserver.processtree import descendants
from tests.machine import memory_of
from tests.stack import Jobserver

FLOOR: Final = "floor"
UPSTREAM: Final = "upstream"
OURS: Final = "ours"
SUBJECTS: Final = (FLOOR, UPSTREAM, OURS)
SERVERS: Final = (UPSTREAM, OURS)

_FLOOR_SCRIPT: Final = Path(__file__).with_name("floor.py")
_LIMIT: Final = 600.0
"""Seconds in which the floor does what it is given at a time."""


class Server:
    """A running jobserver, upstream's or ours; `start` starts one."""

    def __init__(self, start: Callable[[], Jobserver]) -> None:
        self._start = start
        self._jobserver = start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._jobserver.port

    def one_by_one(self, jobs: list[dict[str, Any]]) -> list[float]:
        """Run jobs one after another on one connection; return the seconds of each."""
        # One for each turn: between them a server may find that it has been idle for too long.
        with contextlib.closing(Caller(self.port)) as caller:
            return [_good(caller.call(request)).seconds for request in map(encode, jobs)]

    def at_once(self, jobs: list[dict[str, Any]], connections: int) -> list[float]:
        """Run jobs over so many connections; return when each had its answer, in seconds."""
        answers = burst(self.port, [encode(job) for job in jobs], connections)
        return [_good(answer).seconds for answer in answers]

    def memory(self) -> float:
        """Return the PSS of the server and everything below it, in bytes."""
        pids = [self._jobserver.process.pid, *descendants(self._jobserver.process.pid)]
        total = 0.0
        for pid in pids:
            with contextlib.suppress(OSError):  # one that has just ended
                total += memory_of(pid)
        return total

    def replace(self) -> None:
        """Start anew: what this one still works at would take time from the others."""
        self.stop()
        self._jobserver = self._start()

    def stop(self) -> None:
        """End the server, so that it removes what it has made, and whatever is below it."""
        self._jobserver.stop()


class Floor:
    """Bare scripts, as many as there are workers to be compared with."""

    def __init__(self, python: Path, parameters: dict[str, Any], scripts: int, log: Path) -> None:
        log.parent.mkdir(parents=True)
        self._log = log
        with open(log, "ab") as errors:
            self._scripts = [
                subprocess.Popen(
                    [python, str(_FLOOR_SCRIPT), json.dumps(parameters)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
                for _ in range(scripts)
            ]
        for script in self._scripts:
            self._line(script)

    def one_by_one(self, jobs: list[dict[str, Any]]) -> list[float]:
        """Run jobs one after another; return the seconds of each."""
        _send(self._scripts[0], jobs)
        times: list[float] = json.loads(self._line(self._scripts[0]))
        return times

    def at_once(self, jobs: list[dict[str, Any]], connections: int) -> list[float]:  # noqa: ARG002
        """Run jobs in all scripts at the same time; return when each had ended, in seconds."""
        for index, script in enumerate(self._scripts):
            _send(script, jobs[index :: len(self._scripts)])
        ends = []
        for script in self._scripts:
            end = 0.0
            for seconds in json.loads(self._line(script)):
                end += seconds
                ends.append(end)
        return sorted(ends)

    def stop(self) -> None:
        """End the scripts."""
        for script in self._scripts:
            script.kill()
            script.communicate()

    def _line(self, script: "subprocess.Popen[str]") -> str:
        assert script.stdout is not None
        line = ""
        if select.select([script.stdout], [], [], _LIMIT)[0]:
            line = script.stdout.readline()
        if not line:
            said = self._log.read_text(errors="replace")[-2000:]
            raise BenchmarkFailed(f"the floor gave no answer; it said:\n{said}")
        return line


Subject = Server | Floor


def _good(answer: Answer | None) -> Answer:
    if answer is None:
        raise BenchmarkFailed("a connection broke before its answer")
    if not answer.good:
        raise BenchmarkFailed(f"{answer.status}: {answer.body[:500]!r}")
    return answer


def _send(script: "subprocess.Popen[str]", jobs: list[dict[str, Any]]) -> None:
    assert script.stdin is not None
    script.stdin.write(json.dumps(jobs) + "\n")
    script.stdin.flush()
