"""What is looked at between two jobs of a process: growth, children, limits."""

import ctypes
import mmap
import os
import resource
import subprocess
import tempfile
import unittest
from multiprocessing.resource_tracker import _resource_tracker
from unittest import mock

from seamless_jobserver.worker import leftovers, limits
from seamless_jobserver.worker.leftovers import Leftovers
from seamless_jobserver.worker.limits import Limits

MEGABYTE = 2**20


class Growth(unittest.TestCase):
    def setUp(self):
        patch = mock.patch.object(leftovers, "GROWTH_LIMIT", 60 * MEGABYTE)
        patch.start()
        self.addCleanup(patch.stop)
        self.leftovers = Leftovers()

    def test_what_is_kept_on_purpose_is_none(self):
        kept = b"x" * 120 * MEGABYTE
        self.assertRegex(self.leftovers.check_growth(0), "it has grown by 1[12][0-9] MB")
        self.assertIsNone(self.leftovers.check_growth(len(kept)))

    def test_nor_is_what_is_free_and_has_only_not_been_given_back(self):
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        libc.free.argtypes = [ctypes.c_void_p]
        libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        kept = b"x" * 120 * MEGABYTE
        size = 64 * 1024  # less than what the C library gives back by itself
        blocks = [libc.malloc(size) for _ in range(2000)]
        for block in blocks:
            libc.memset(block, 1, size)
        above = libc.malloc(size)
        self.addCleanup(libc.free, above)
        for block in blocks:
            libc.free(block)
        self.assertIsNone(self.leftovers.check_growth(len(kept)))

    def test_nor_are_files_that_are_mapped(self):
        with tempfile.TemporaryFile() as file:
            file.write(bytes(120 * MEGABYTE))
            file.flush()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                self.assertEqual(mapped[:: mmap.PAGESIZE].count(0), 120 * MEGABYTE // mmap.PAGESIZE)
                self.assertIsNone(self.leftovers.check_growth(0))


class Children(unittest.TestCase):
    def test_who_may_stay(self):
        _resource_tracker.ensure_running()
        child = subprocess.Popen(["sleep", "600"])
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        for who, pid, harmless in (
            ("the resource tracker of multiprocessing", _resource_tracker._pid, True),
            ("a process that is somebody else's", os.getppid(), True),
            ("any other child", child.pid, False),
        ):
            with self.subTest(who):
                self.assertIs(leftovers._is_harmless(pid), harmless)


class Lowered(unittest.TestCase):
    def test_what_may_not_be_put_back_is_told_and_the_rest_is_put_back(self):
        present = Limits(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self.assertIsNone(present.restore())
        refused = PermissionError(1, "Operation not permitted")
        lowered = mock.Mock(return_value=os.getpriority(os.PRIO_PROCESS, 0) + 5)
        with (
            mock.patch.multiple(
                limits.os, getpriority=lowered, setpriority=mock.Mock(side_effect=refused)
            ),
        ):
            self.assertIn("Operation not permitted", present.restore())
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        core = resource.getrlimit(resource.RLIMIT_CORE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
        set_limit = resource.setrlimit

        def refuse(which, values):
            if which == resource.RLIMIT_CORE:
                raise ValueError("not allowed to raise maximum limit")
            set_limit(which, values)

        get_limit = resource.getrlimit
        with mock.patch.multiple(
            limits.resource,
            setrlimit=refuse,
            getrlimit=lambda which: (0, 0) if which == resource.RLIMIT_CORE else get_limit(which),
        ):
            told = present.restore()
        if core != (0, 0):
            self.assertIn("not allowed to raise", told)
        self.assertEqual(resource.getrlimit(resource.RLIMIT_NOFILE), (soft, hard))


if __name__ == "__main__":
    unittest.main()
