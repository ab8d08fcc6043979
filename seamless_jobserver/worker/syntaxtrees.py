"""Making syntax trees one at a time, for Python 3.11.

It counts how deep it is in a tree in one place for all threads, and takes it for an error of its
own (``SystemError: AST constructor recursion depth mismatch``) when another thread makes a tree at
the same time. That happens when a garbage collection in the middle runs something that is written
in Python. Seamless has a tree made of the code of every job, and then calls that code invalid: so a
job failed now and then whose nested jobs ran in threads of one worker.
"""

import ast
import functools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from seamless_transformer import cached_compile

AFFECTED: Final = sys.version_info[:2] == (3, 11)
"""Before, the depth is not counted; from then on, no collection runs while a tree is made."""

_making: Final = threading.RLock()


def one_at_a_time() -> None:
    """Have syntax trees made by one thread at a time, by whatever makes them in this process.

    Of the standard library, since Seamless and the code of jobs both call it; and of Seamless's own
    way around it, which is private: what a later one does not have is left alone.
    """
    if not AFFECTED or hasattr(ast.parse, "__wrapped__"):
        return
    for module in (ast, cached_compile):
        name = "parse" if module is ast else "cached_compile"
        if hasattr(module, name):
            setattr(module, name, _alone(getattr(module, name)))
    # A process that a job forks has none of the other threads, one of which may have the lock.
    os.register_at_fork(
        before=_making.acquire, after_in_parent=_making.release, after_in_child=_making.release
    )


def _alone(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def making(*arguments: Any, **named: Any) -> Any:
        with _making:
            return make(*arguments, **named)

    return making
