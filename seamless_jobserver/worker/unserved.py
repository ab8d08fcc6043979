"""What the store did not do for a job: never the job's own failure, and told apart from it.

Attempts at a store are repeated, by `fetching` and `storing`, with the same growing pauses.
"""

from typing import Final

from seamless_jobserver.messages import Ending
from seamless_jobserver.worker.pins import Need

FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 10.0
"""Seconds between attempts at a store that is away, or that somebody else is sending to."""
NO_STORE: Final = (
    "There is no hashserver that takes results: the status file that this jobserver was started "
    "with names no writable one under parameters.buffer.\n"
)


class Unserved(Exception):
    """The store did not do what a job needs, which is no failure of the job: `ending` says what."""

    ending: Ending


class InputMissing(Unserved):
    """Buffers that are neither in a read folder nor on a hashserver; `needs` says which."""

    ending = Ending.INPUT_MISSING

    def __init__(self, missing: list[Need]) -> None:
        self.needs = missing
        named = "\n".join(f"  {need.name}: {need.checksum}" for need in missing[:20])
        rest = f"\n  … and {len(missing) - 20} more" if len(missing) > 20 else ""
        super().__init__(
            f"Input not found in any read folder or hashserver (pin: checksum):\n{named}{rest}\n"
            "The client has not uploaded it, or the store has lost it. Run the workflow again "
            "where the input is at hand, so that it is uploaded.\n"
        )


class InputUndelivered(Unserved):
    """A buffer has been promised, but has not come in time; the message says what to do."""

    ending = Ending.INPUT_UNDELIVERED


class StoreUnavailable(Unserved):
    """The hashserver did not take or give a buffer; the message says what it did instead."""

    ending = Ending.STORE_FAILED
