"""Ending process trees: nobody gets away, and nobody else is hit."""

import contextlib
import io
import os
import select
import subprocess
import sys
import unittest
from unittest import mock

from seamless_jobserver import processtree
from seamless_jobserver.processtree import ProcessId, children, descendants, kill_tree, tree_memory
from tests.stack import PATIENCE, ROOT, temporary_directory, wait_until

# Each prints the pids of what it has started, then stays.
SHAPES = {
    "a child": "sleep 600 & echo $!; wait",
    "a child in a session of its own": "setsid sleep 600 & echo $!; wait",
    "a grandchild": "(sleep 600 & echo $!; wait) ; wait",
    "an orphan": "(sleep 600 & echo $!) ; sleep 600",
    "an orphan in a session of its own": "(setsid sleep 600 & echo $!) ; sleep 600",
    "a stopped child": "sleep 600 & kill -STOP $!; echo $!; wait",
    "a child that ignores signals": "(trap '' TERM INT HUP; sleep 600) & echo $!; wait",
}
SUBREAPER = (
    "import subprocess, sys; from seamless_jobserver import processtree;"
    "processtree.become_subreaper(); subprocess.run(['bash', '-c', sys.argv[1]]);"
    "import signal; signal.pause()"
)


class _Older:
    """The module `os` of an interpreter that was built for an older system."""

    def __getattr__(self, name):
        if name == "pidfd_open":
            raise AttributeError(name)
        return getattr(os, name)


class Trees(unittest.TestCase):
    def start(self, shape):
        process = subprocess.Popen(
            [sys.executable, "-c", SUBREAPER, shape], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        identity = ProcessId.of(process.pid)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(lambda: identity is not None and kill_tree(identity))
        started = ProcessId.of(int(process.stdout.readline()))
        self.assertIsNotNone(started)
        return process, started

    def test_whatever_a_process_has_started_dies_with_it(self):
        for name, shape in SHAPES.items():
            with self.subTest(name):
                process, started = self.start(shape)

                def look(process=process, started=started):
                    seen = [ProcessId.of(pid) for pid in descendants(process.pid)]
                    # A subshell that has nothing more to do may end meanwhile, and what it has
                    # started have another parent then.
                    return seen if started in seen else None

                everybody = [one for one in wait_until(look, "it is seen") if one is not None]
                self.assertEqual(kill_tree(ProcessId.of(process.pid)), set())
                self.assertEqual(process.wait(20), -9)
                wait_until(lambda all_=everybody: not any(p.alive for p in all_), "all are gone")

    def test_the_root_can_be_spared(self):
        process, started = self.start("sleep 600 & echo $!; wait")
        kill_tree(ProcessId.of(process.pid), spare_root=True)
        wait_until(lambda: not started.alive, "the child is gone")
        self.assertIsNone(process.poll())

    def test_a_later_process_with_the_same_pid_is_left_alone(self):
        process, started = self.start("sleep 600 & echo $!; wait")
        someone_else = ProcessId(process.pid, ProcessId.of(process.pid).start + 1)
        self.assertFalse(someone_else.alive)
        kill_tree(someone_else)
        self.assertIsNone(process.poll())
        self.assertTrue(started.alive)

    def test_a_process_that_is_gone_or_a_zombie_is_not_alive(self):
        process = subprocess.Popen(["true"])
        identity = ProcessId.of(process.pid)
        if identity is not None:
            wait_until(lambda: not identity.alive, "it has ended, though nobody has asked how")
        process.wait(PATIENCE)
        self.assertIsNone(ProcessId.of(process.pid))

    def test_the_end_of_a_child_is_told_by_old_and_new_interpreters(self):
        for python in ("new", "old"):
            with self.subTest(python), contextlib.ExitStack() as stack:
                if python == "old" and hasattr(os, "pidfd_open"):
                    stack.enter_context(mock.patch.object(processtree, "os", _Older()))
                child = subprocess.Popen(["sleep", "600"])
                stack.callback(child.wait)
                stack.callback(child.kill)
                descriptor = processtree.open_process(child.pid)
                stack.callback(os.close, descriptor)
                self.assertFalse(os.get_inheritable(descriptor))
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                self.assertEqual(poll.poll(0), [])
                child.kill()
                self.assertEqual(len(poll.poll(1000 * PATIENCE)), 1)
                child.wait(PATIENCE)
                with self.assertRaises(OSError):
                    processtree.open_process(child.pid)

    def test_a_process_that_is_hidden_is_left_alone(self):
        # /proc with hidepid=1, and a process of another user, such as a set-uid program.
        hidden = PermissionError(1, "Operation not permitted")
        with (
            mock.patch.object(processtree, "_read", side_effect=hidden),
            mock.patch.object(processtree.os, "listdir", side_effect=hidden),
        ):
            self.assertIsNone(ProcessId.of(1))
            self.assertEqual(children(1), set())
            self.assertEqual(processtree.read_memory(1), (0, 0, 0, 0))

    def test_children_are_found_without_the_kernels_list_too(self):
        process, _ = self.start("sleep 600 & echo $!; wait")
        self.assertEqual(processtree._scanned_children(process.pid), children(process.pid))
        self.assertIn(process.pid, children(os.getpid()))


# Each prints a line when it has taken its memory, and stays until it is killed.
MEGABYTES = {
    "itself": ("block = b'x' * 200 * 2**20", 200),
    "three idle forks": ("block = b'x' * 200 * 2**20; forks(3, 0)", 200),
    "forks with memory of their own": ("block = b'x' * 200 * 2**20; forks(3, 50)", 350),
    "forks of what their parent has let go of": (
        "block = b'x' * 200 * 2**20; forks(2, 0); del block",
        200,
    ),
    "forks below a child": (
        "import os; r, w = os.pipe(); pid = os.fork()\n"
        "if pid: os.close(w); os.read(r, 1)\n"
        "else: block = b'x' * 200 * 2**20; forks(3, 50); os.write(w, b'x'); pause()",
        350,
    ),
    "memory that is made to be shared": (
        "import mmap; m = mmap.mmap(-1, 200 * 2**20); m.write(b'x' * len(m))\n"
        "forks(3, 0, lambda: m[::4096])",
        200,
    ),
    "a child that is not on its own yet": (
        "import os, threading, sys, tempfile; block = b'x' * 200 * 2**20\n"
        "os.mkfifo('fifo')\n"
        "say()\n"
        "os.posix_spawn('/bin/true', ['true'], {}, "
        "file_actions=[(os.POSIX_SPAWN_OPEN, 3, 'fifo', os.O_RDONLY, 0)])",
        200,
    ),
    "another program": (
        "import subprocess, sys\n"
        "block = b'x' * 100 * 2**20\n"
        "child = subprocess.Popen([sys.executable, '-c', "
        "'b = b\"x\" * 100 * 2**20; print(1, flush=True); input()'],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()",
        200,
    ),
}
FORKS = """
def pause():
    import signal
    while True: signal.pause()
def say():
    print("there", flush=True)
def forks(count, more, use=lambda: None):
    import os
    r, w = os.pipe()
    for _ in range(count):
        if not os.fork():
            use()
            own = b"y" * more * 2**20
            os.write(w, b"x")
            pause()
    while count:
        count -= len(os.read(r, count))
"""


class Shared(unittest.TestCase):
    def start(self, code):
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        directory = stack.enter_context(temporary_directory())
        process = subprocess.Popen(
            [sys.executable, "-c", f"{FORKS}\n{code}\nsay()\npause()"],
            stdout=subprocess.PIPE,
            cwd=directory,
        )
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(kill_tree, ProcessId.of(process.pid))
        self.assertEqual(process.stdout.readline(), b"there\n")
        return process.pid

    def test_what_processes_share_counts_once(self):
        alone = tree_memory(self.start("pass")) / 2**20
        for name, (code, expected) in MEGABYTES.items():
            pid = self.start(code)
            with self.subTest(name):
                # The child of posix_spawn is there a moment after it was announced, if at all.
                if "posix_spawn" in code:
                    wait_until(lambda pid=pid: children(pid), "the child is there")
                self.assertAlmostEqual(tree_memory(pid) / 2**20, expected + alone, delta=25)

    def test_where_the_kernel_does_not_tell_what_is_shared_all_of_it_counts(self):
        pid = self.start("block = b'x' * 100 * 2**20; forks(2, 0)")
        read = processtree._read
        for answer in (PermissionError, FileNotFoundError, b"1-2 [rollup]\nRss: 5 kB\nPss: 5 kB\n"):

            def older(path, answer=answer):
                if "smaps_rollup" not in path:
                    return read(path)
                if isinstance(answer, bytes):
                    return answer
                raise answer(path)

            with self.subTest(answer), mock.patch.object(processtree, "_read", older):
                self.assertGreater(tree_memory(pid), 300 * 2**20)


class Guardian(unittest.TestCase):
    def start_guardian(self, directory):
        guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", processtree.__file__, str(directory)],
            stdin=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(guardian.wait)
        return guardian

    def test_at_the_end_of_its_input_it_removes_the_directory_of_the_server(self):
        with temporary_directory() as directory:
            private = directory / "private"
            (private / "1").mkdir(parents=True)
            (private / "1" / "progress").touch()
            guardian = self.start_guardian(private)
            guardian.stdin.close()
            self.assertEqual(guardian.wait(20), 0)
            self.assertEqual(list(directory.iterdir()), [])

    def test_one_tree_that_cannot_be_looked_at_does_not_save_the_others(self):
        processes = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
        for process in processes:
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
        watched = "".join(
            "watch {} {}\n".format(*ProcessId.of(process.pid)) for process in processes
        )
        want = mock.Mock(side_effect=OSError(24, "no files"))
        with mock.patch.object(processtree, "kill_tree", want):
            with mock.patch.object(processtree, "_read_stat", want):
                processtree.guard(io.StringIO(watched), "/nonexistent")
            self.assertEqual([process.poll() for process in processes], [None, None])
            processtree.guard(io.StringIO(watched), "/nonexistent")
        self.assertEqual([process.wait(20) for process in processes], [-9, -9])

    def test_at_the_end_of_its_input_it_kills_what_it_watches_and_not_what_it_should_forget(self):
        watched = subprocess.Popen(["sleep", "600"])
        forgotten = subprocess.Popen(["sleep", "600"])
        self.addCleanup(forgotten.wait)
        self.addCleanup(forgotten.kill)
        guardian = self.start_guardian("/nonexistent")
        for verb, process in (("watch", watched), ("watch", forgotten), ("forget", forgotten)):
            print(verb, *ProcessId.of(process.pid), file=guardian.stdin)
        guardian.stdin.close()
        self.assertEqual(guardian.wait(20), 0)
        self.assertEqual(watched.wait(20), -9)
        self.assertIsNone(forgotten.poll())
