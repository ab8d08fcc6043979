"""What is not let in, counted, and told in the log without filling it.

Whoever is refused is told why. The log says of what kind it was and how often, and not who: the
first at once, then one line a minute, however many there are.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

INTERVAL: Final = 60.0
"""Seconds between two lines."""

_log = logging.getLogger(__name__)


class Refusals:
    """Any thread may call it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # over the three below
        self._total = 0
        self._untold: Counter[str] = Counter()
        self._next = clock()

    @property
    def total(self) -> int:
        """How many there have been."""
        with self._lock:
            return self._total

    def note(self, kind: str) -> None:
        """Count one, of which `kind` is what may be told to anybody."""
        with self._lock:
            self._total += 1
            self._untold[kind] += 1
        self.report()

    def report(self) -> None:
        """Log those that no line has told yet, if it is time for a line; to be called often."""
        with self._lock:
            if not self._untold or self._clock() < self._next:
                return
            untold, self._untold = self._untold, Counter()
            self._next = self._clock() + INTERVAL
        kinds = ", ".join(f"{number} times {kind}" for kind, number in sorted(untold.items()))
        _log.info("refused: %s; further ones are told once a minute", kinds)
