"""What a job prints: all of it goes to the job's own file, and nothing else does."""

import os
import subprocess
import sys
import unittest

from tests.stack import PATIENCE, ROOT, temporary_directory

PROGRAM = """
import ctypes, os, sys
from seamless_jobserver.worker.capture import OutputCapture

capture = OutputCapture(sys.argv[1])
libc = ctypes.CDLL(None)
{before}
with capture.to_file(os.path.join(sys.argv[1], "job")):
{during}
with capture.to_file(os.path.join(sys.argv[1], "next")):
    pass
"""
# What is done before a job, in it, and what its file holds then.
PRINTED = {
    "what was written before it is not its own": (
        "sys.stdout.write('before'); libc.printf(b'in C before')",
        "print('mine')",
        "mine\n",
    ),
    "what it has written to no end of a line is": (
        "pass",
        "sys.stdout.write('mine')",
        "mine",
    ),
    "what it has written in C is": (
        "pass",
        "libc.printf(b'mine')",
        "mine",
    ),
    "its file is not what it reads from": (
        "os.close(0)",
        "print(os.readlink('/proc/self/fd/0'))",
        "/dev/null\n",
    ),
    "what is written after its code, whose stream has closed the descriptor, is": (
        "pass",
        "sys.stdout = open(1, 'w'); capture.mend(); print('mine')",
        "mine\n",
    ),
    "that it has closed its stream is no loss of anything": (
        "pass",
        "sys.stdout = open(1, 'w', closefd=False); sys.stdout.close(); capture.mend(); print('mine')",
        "mine\n",
    ),
}


class Printed(unittest.TestCase):
    def test_it_is_in_the_file_of_its_job(self):
        for what, (before, during, expected) in PRINTED.items():
            with self.subTest(what), temporary_directory() as directory:
                program = PROGRAM.format(before=before, during=f"    {during}")
                # With which the C library would keep nothing back.
                environment = {**os.environ}
                environment.pop("PYTHONUNBUFFERED", None)
                subprocess.run(
                    [sys.executable, "-W", "ignore", "-c", program, str(directory)],
                    cwd=ROOT,
                    env=environment,
                    capture_output=True,
                    timeout=PATIENCE,
                    check=True,
                )
                self.assertEqual((directory / "job").read_text(), expected)
                self.assertEqual((directory / "next").read_text(), "")


if __name__ == "__main__":
    unittest.main()
