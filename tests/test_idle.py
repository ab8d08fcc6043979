"""The inactivity timeout, on a clock that the test turns, and on the real one."""

import errno
import os
import queue
import socket
import threading
import time
import unittest
from socketserver import TCPServer
from unittest import mock

from seamless_jobserver.server import ending, lifecycle
from seamless_jobserver.server.access import AccessRules, Gate, Standing
from seamless_jobserver.server.ending import is_unused
from seamless_jobserver.server.http import JobHTTPServer
from seamless_jobserver.server.idle import Activity, IdleTimer
from seamless_jobserver.server.response import text_response
from tests.stack import wait_until


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Activities(unittest.TestCase):
    def test_nothing_is_idle_while_anything_goes_on(self):
        clock = Clock()
        activity = Activity(clock)
        with activity.ongoing():
            with activity.ongoing():
                clock.now += 100
                self.assertEqual(activity.idle_seconds(), 0)
            clock.now += 100
            self.assertEqual(activity.idle_seconds(), 0)
        self.assertEqual(activity.idle_seconds(), 0)

    def test_idleness_counts_from_the_end_of_the_last_activity(self):
        clock = Clock()
        activity = Activity(clock)
        clock.now += 5
        self.assertEqual(activity.idle_seconds(), 5)
        with activity.ongoing():
            clock.now += 50
        clock.now += 7
        self.assertEqual(activity.idle_seconds(), 7)

    def test_a_changed_system_time_changes_nothing(self):
        activity = Activity()
        with mock.patch.object(time, "time", return_value=4e9):
            self.assertLess(activity.idle_seconds(), 60)
        self.assertIs(activity._clock, time.monotonic)

    def test_a_machine_that_was_suspended_has_not_been_idle_meanwhile(self):
        # CLOCK_MONOTONIC stands still then (clock_gettime(2)), and CLOCK_BOOTTIME would not.
        clock = time.get_clock_info("monotonic")
        self.assertEqual(clock.implementation, "clock_gettime(CLOCK_MONOTONIC)")
        # A timer that fires all the same, since it was due meanwhile, looks at that clock.
        clock, expired = Clock(), threading.Event()
        activity, looked = Activity(clock), threading.Event()
        idle = activity.idle_seconds
        activity.idle_seconds = lambda: (looked.set(), idle())[1]
        timer = IdleTimer(0.05, activity, expired.set)
        self.addCleanup(timer.close)
        timer.start()
        self.assertTrue(looked.wait(20))
        self.assertFalse(expired.wait(0.5))
        clock.now += 0.06
        self.assertTrue(expired.wait(20))

    def test_who_only_watches_does_not_put_the_end_off(self):
        clock = Clock()
        activity = Activity(clock)
        clock.now += 10
        with activity.ongoing() as mark:
            self.assertEqual(activity.idle_seconds(), 0)
            mark.counts = False
            self.assertEqual(activity.idle_seconds(), 10)
        self.assertEqual(activity.idle_seconds(), 10)

    def test_a_watcher_is_left_out_and_everything_else_still_counts(self):
        clock = Clock()
        activity = Activity(clock)
        clock.now += 10
        with activity.ongoing() as mark, activity.watched():
            self.assertEqual(activity.idle_seconds(), 10)
            with activity.ongoing():
                self.assertEqual(activity.idle_seconds(), 0)
            clock.now += 3
            self.assertEqual(activity.idle_seconds(), 3)
            mark.counts = False
        clock.now += 1
        self.assertEqual(activity.idle_seconds(), 4)


class Marks(unittest.TestCase):
    def test_what_turns_out_to_count_does_so_from_then_on(self):
        clock = Clock()
        activity = Activity(clock)
        clock.now += 10
        with activity.ongoing() as mark:
            mark.counts = False
            self.assertEqual(activity.idle_seconds(), 10)
            mark.counts = True
            self.assertEqual(activity.idle_seconds(), 0)
        self.assertEqual(activity.idle_seconds(), 0)
        clock.now += 5
        self.assertEqual(activity.idle_seconds(), 5)


class AtTheVeryMoment(unittest.TestCase):
    """A connection that was made as the idle timer expired, on a real socket."""

    TIMEOUT = 1000.0

    def setUp(self):
        self.clock = Clock()
        self.activity = Activity(self.clock)
        self.server = self.make(0)
        self.addCleanup(self.server.close, 1.0)
        self.addCleanup(self.server.stop_accepting)
        self.server.start()
        self.clock.now += self.TIMEOUT

    def make(self, port):
        return JobHTTPServer(
            socket.AF_INET,
            ("127.0.0.1", port),
            lambda *_: text_response(200, "here"),
            self.activity,
            gate=Gate(AccessRules()),
            tls=None,
            max_connections=10,
            max_body=1000,
        )

    def connect(self):
        peer = socket.create_connection(("127.0.0.1", self.server.port), timeout=20)
        self.addCleanup(peer.close)
        return peer

    def ask(self, peer):
        peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertTrue(peer.recv(1000).startswith(b"HTTP/1.1 200 "))

    def test_a_request_keeps_the_server_and_all_who_come_later_are_served(self):
        self.server.suspend()
        peer = self.connect()  # it is in the backlog, as after the last look
        peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with mock.patch.object(ending, "_MOMENT", 20.0):  # it is over as soon as the request is in
            self.assertFalse(is_unused(self.server, self.activity, self.TIMEOUT))
        self.assertTrue(peer.recv(1000).startswith(b"HTTP/1.1 200 "))
        self.ask(self.connect())

    def test_one_that_cannot_be_accepted_for_want_of_descriptors_keeps_the_server(self):
        self.server.suspend()
        peer = self.connect()
        peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        accept = TCPServer.get_request
        want = [OSError(errno.EMFILE, "Too many open files")]

        def accept_or_not(server):
            if want:
                raise want.pop()
            return accept(server)

        with mock.patch.object(TCPServer, "get_request", accept_or_not):
            self.assertFalse(is_unused(self.server, self.activity, self.TIMEOUT))
            self.assertEqual(want, [])
            self.assertTrue(peer.recv(1000).startswith(b"HTTP/1.1 200 "))

    def test_a_connection_waits_for_a_thread_when_there_is_none_to_be_had(self):
        start = threading.Thread.start
        refused = []

        def start_or_not(one):
            if one.name.startswith("jobserver-connection") and len(refused) < 2:
                refused.append(one)
                raise RuntimeError("can't start new thread")
            start(one)

        with (
            mock.patch.object(threading.Thread, "start", start_or_not),
            self.assertLogs("seamless_jobserver.server.http", "ERROR") as logged,
        ):
            self.ask(self.connect())
        self.assertEqual(len(logged.output), 1)
        self.assertEqual(len(refused), 2)
        self.assertEqual(self.server.counts[0], 1)

    def test_whose_it_is_is_asked_again_when_there_was_no_descriptor_to_ask_with(self):
        want = OSError(errno.EMFILE, "Too many open files")
        answers = mock.Mock(side_effect=[want, want, Standing.OWNER])
        with mock.patch.object(Gate, "admit", answers):
            self.ask(self.connect())
        self.assertEqual(answers.call_count, 3)

    def test_of_a_port_that_cannot_be_had_nothing_is_left(self):
        before = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
        with self.assertRaises(OSError):
            self.make(self.server.port)
        self.assertEqual((set(threading.enumerate()), len(os.listdir("/proc/self/fd"))), before)

    def test_one_that_cannot_be_served_for_the_moment_keeps_it_and_is_served_later(self):
        start, threads, shortage = threading.Thread.start, [], threading.Event()

        def start_or_not(one):
            if one.name.startswith("jobserver-connection") and shortage.is_set():
                threads.append(one)
                raise RuntimeError("can't start new thread")
            start(one)

        shortage.set()
        with mock.patch.object(threading.Thread, "start", start_or_not):
            peer = self.connect()
            wait_until(lambda: threads, "it waits for a thread")
            began = time.monotonic()
            self.assertFalse(is_unused(self.server, self.activity, self.TIMEOUT))
            self.assertLess(time.monotonic() - began, 10)
            shortage.clear()
            self.ask(peer)
        self.assertEqual(self.server.counts[:2], (1, 1))

    def test_one_that_cannot_be_served_at_the_end_is_hung_up_on(self):
        start = threading.Thread.start

        def start_or_not(one):
            if one.name.startswith("jobserver-connection"):
                raise RuntimeError("can't start new thread")
            start(one)

        with mock.patch.object(threading.Thread, "start", start_or_not):
            peer = self.connect()
            wait_until(lambda: self.server.counts[1] == 1, "it is accepted")
            self.server.stop_accepting()
            self.assertEqual(peer.recv(1), b"")

    def test_a_connection_that_asks_for_nothing_does_not_keep_it(self):
        self.connect()
        self.assertTrue(is_unused(self.server, self.activity, self.TIMEOUT))

    def test_what_is_under_way_keeps_it(self):
        with self.activity.ongoing():
            self.assertFalse(is_unused(self.server, self.activity, self.TIMEOUT))
        self.ask(self.connect())


class Ends(unittest.TestCase):
    def test_without_a_thread_for_the_timer_a_server_goes_on_until_it_is_told_to_end(self):
        interrupts, tries = queue.SimpleQueue(), []

        def start(timer):
            tries.append(timer)
            if len(tries) == 2:
                interrupts.put(ending.Reason("somebody said so"))
            raise RuntimeError("can't start new thread")

        with (
            mock.patch.object(IdleTimer, "start", start),
            mock.patch.object(lifecycle, "_AGAIN", 0.01),
        ):
            reason = lifecycle._await_end(mock.Mock(), Activity(), interrupts, 5.0)
        self.assertEqual((reason.text, len(tries)), ("somebody said so", 2))


class Timers(unittest.TestCase):
    def make(self, timeout, activity):
        expired = threading.Event()
        timer = IdleTimer(timeout, activity, expired.set)
        self.addCleanup(timer.close)
        return timer, expired

    def test_it_expires_when_nothing_happens(self):
        timer, expired = self.make(0.05, Activity())
        timer.start()
        self.assertTrue(expired.wait(20))

    def test_it_goes_on_without_threads_for_further_timers(self):
        activity = Activity()
        timer, expired = self.make(0.05, activity)
        with activity.ongoing():
            self.start_without_others(timer)
        self.assertTrue(expired.wait(20))

    def test_it_can_be_closed_while_it_goes_on_so(self):
        activity = Activity()
        timer, expired = self.make(0.05, activity)
        with activity.ongoing():
            thread = self.start_without_others(timer)
            timer.close()
            self.assertFalse(thread.is_alive())
        self.assertFalse(expired.is_set())

    def start_without_others(self, timer):
        """Start `timer`, and return its thread when that has found that there is no other."""
        threads, looked = [], threading.Event()
        start = threading.Timer.start

        def start_or_not(one):
            if threads:
                looked.set()
                raise RuntimeError("can't start new thread")
            threads.append(one)
            start(one)

        patch = mock.patch.object(threading.Timer, "start", start_or_not)
        patch.start()
        self.addCleanup(patch.stop)
        timer.start()
        self.assertTrue(looked.wait(20))
        return threads[0]

    def test_it_does_not_expire_while_something_goes_on(self):
        activity = Activity()
        timer, expired = self.make(0.05, activity)
        with activity.ongoing():
            timer.start()
            self.assertFalse(expired.wait(0.5))
        self.assertTrue(expired.wait(20))

    def test_a_look_under_way_as_it_fires_does_not_put_the_end_off_by_a_timeout(self):
        clock = Clock()
        activity = Activity(clock)
        timer, expired = self.make(1000, activity)
        with activity.ongoing() as mark:
            clock.now += 1001
            with mock.patch.object(timer, "_set") as later:
                timer._look()
            (pause,) = later.call_args.args
            self.assertLess(pause, 10)
            mark.counts = False
        timer._look()
        self.assertTrue(expired.is_set())

    def test_it_does_not_expire_once_it_is_closed(self):
        before = threading.active_count()
        timer, expired = self.make(1.0, Activity())
        timer.start()
        timer.close()
        self.assertFalse(expired.wait(1.5))
        self.assertEqual(threading.active_count(), before, "its thread is gone")
