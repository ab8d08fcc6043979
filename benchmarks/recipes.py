"""Jobs to run: transformations whose inputs are in the store, no two alike.

Inputs are written into the store's folder as the hashserver itself keeps them, since uploading
hundreds of buffers would take longer than the jobs that use them.
"""

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any, Final

from tests.stack import Store, run_request

ADD: Final = "def f(a, b, c, d):\n    return a + b + c + d\n"
COUNT: Final = "def f(**pins):\n    return len(pins)\n"
STRETCH: Final = "def f(data, tag):\n    return str(tag).encode() + data.content\n"
LENGTH: Final = "def f(data, tag):\n    return len(data.content) + tag\n"
GROW: Final = "def f(size, tag):\n    return str(tag).encode() + bytes(size)\n"
SLEEP: Final = "def f(seconds, tag):\n    import time\n    time.sleep(seconds)\n    return tag\n"
FAN_OUT: Final = """
def f(count, seconds, tag):
    from seamless.transformer import delayed

    @delayed
    def nap(number, seconds, tag):
        import time
        time.sleep(seconds)
        return number

    naps = [nap(number, seconds, tag) for number in range(count)]
    for one in naps:
        one.start()
    return sum(one.run() for one in naps)
"""
THREE_LEVELS: Final = """
def f(tag):
    from seamless.transformer import direct

    @direct
    def second(tag):
        from seamless.transformer import direct

        @direct
        def third(tag):
            return tag

        return third(tag) + 1

    return second(tag) + 1
"""


class Recipes:
    """Makes run requests for one store."""

    def __init__(self, store: Store) -> None:
        self._folder = store.buffers
        self._numbers = itertools.count(int.from_bytes(os.urandom(4), "big"))

    def small(self, count: int) -> list[dict[str, Any]]:
        """Return small Python jobs with one code and four small inputs each, all new."""
        number = self._number
        return [self.job(ADD, a=number(), b=number(), c=number(), d=number()) for _ in range(count)]

    def pins(self, number: int) -> dict[str, Any]:
        """Return a job with so many small inputs, none of which was used before."""
        inputs: dict[str, Any] = {f"pin{index}": self._number() for index in range(number)}
        return self.job(COUNT, **inputs)

    def through(self, size: int) -> dict[str, Any]:
        """Return a job that takes a buffer of so many new bytes, and gives back as many."""
        return self.job(STRETCH, output="bytes", data=os.urandom(size), tag=self._number())

    def shared(self, size: int, count: int) -> list[dict[str, Any]]:
        """Return jobs that have one and the same large input, new for these jobs."""
        data = os.urandom(size)
        return [self.job(LENGTH, data=data, tag=self._number()) for _ in range(count)]

    def growing(self, size: int, count: int) -> list[dict[str, Any]]:
        """Return jobs with a large result and small inputs."""
        return [self.job(GROW, output="bytes", size=size, tag=self._number()) for _ in range(count)]

    def sleeping(self, seconds: float) -> dict[str, Any]:
        """Return a job that only sleeps."""
        return self.job(SLEEP, seconds=seconds, tag=self._number())

    def fanning_out(self, count: int, seconds: float) -> dict[str, Any]:
        """Return a job that starts `count` nested jobs, which sleep, and waits for them all."""
        return self.job(FAN_OUT, count=count, seconds=seconds, tag=self._number())

    def three_levels(self) -> dict[str, Any]:
        """Return a job that asks for a nested one, which asks for another."""
        return self.job(THREE_LEVELS, tag=self._number())

    def job(self, code: str, *, output: str = "mixed", **inputs: Any) -> dict[str, Any]:
        """Return a run request with its inputs in the store; JSON values, or bytes as they are."""
        transformation: dict[str, Any] = {
            "__language__": "python",
            "__output__": ["result", output, None],
            "code": ["python", "transformer", self._put(code.encode())],
        }
        for name, value in inputs.items():
            if isinstance(value, bytes):
                transformation[name] = ["bytes", None, self._put(value)]
            else:
                transformation[name] = ["plain", None, self._put(_encode(value))]
        self._put(_encode(transformation))  # upstream fetches it too
        return {**run_request(transformation), "tf_checksum": _checksum(_encode(transformation))}

    def _number(self) -> int:
        return next(self._numbers)

    def _put(self, content: bytes) -> str:
        checksum = _checksum(content)
        path: Path = self._folder / checksum[:2] / checksum
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        return checksum


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _encode(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"
