"""Syntax trees, made by several threads of one process."""

import subprocess
import sys
import unittest

from seamless_jobserver.worker import syntaxtrees
from tests.stack import PATIENCE

# A collection lets other threads go on, as it does wherever something written in Python cleans up.
SEVERAL_THREADS = """
import ast, gc, itertools, os, sys, threading, time
from seamless_jobserver.worker.syntaxtrees import one_at_a_time
from seamless_transformer.cached_compile import analyze_code, cached_compile
from seamless_transformer import cached_compile as compiling

guarded = sys.argv[1] == "guarded"
if guarded:
    one_at_a_time()
    one_at_a_time()
gc.set_threshold(50, 5, 5)
gc.callbacks.append(lambda *_: time.sleep(0))
code = "def f(a, b):\\n    import os\\n    return [a, os.path.join(str(b), str(os.getpid()))]\\n"
faults = []
until = time.monotonic() + float(sys.argv[2])

def parse(number):
    for turn in itertools.count():
        if turn > 400 and (faults or time.monotonic() > until):
            return
        try:
            if number % 2:
                ast.parse(code)
            else:
                compiling.analyze_code.__wrapped__(code, f"code {number} {turn}")
        except SystemError as fault:
            faults.append(fault)

threads = [threading.Thread(target=parse, args=(number,)) for number in range(6)]
for thread in threads:
    thread.start()
if guarded:
    # What is forked meanwhile can make trees, too.
    for _ in range(20):
        child = os.fork()
        if not child:
            trees = [ast.parse(code)]
            thread = threading.Thread(target=lambda: trees.append(ast.parse(code)), daemon=True)
            thread.start()
            thread.join(30)
            os._exit(len(trees) - 2)
        assert os.waitpid(child, 0)[1] == 0
for thread in threads:
    thread.join()
print(len(faults))
"""


class SeveralThreads(unittest.TestCase):
    def faults(self, how, seconds=0):
        """Return how many there are in 400 turns, or until one is met in so many seconds."""
        command = [sys.executable, "-W", "ignore", "-c", SEVERAL_THREADS, how, str(seconds)]
        return int(
            subprocess.run(command, timeout=PATIENCE, check=True, capture_output=True).stdout
        )

    def test_they_do_not_get_in_each_others_way(self):
        self.assertEqual(self.faults("guarded"), 0)

    def test_they_are_kept_apart_where_that_is_needed_and_only_there(self):
        affected = syntaxtrees.AFFECTED
        self.assertEqual(self.faults("as it is", 30 if affected else 0) > 0, affected)
