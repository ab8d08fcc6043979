"""The inactivity timeout, on a clock that the test turns, and on the real one."""

import concurrent.futures
import contextlib
import errno
import os
import queue
import socket
import threading
import time
import unittest
from socketserver import TCPServer
from unittest import mock

from seamless_jobserver.errors import ShuttingDown, WorkersUnavailable
from seamless_jobserver.server import ending, lifecycle
from seamless_jobserver.server.access import AccessRules, Gate, Refused, Standing
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

    def test_it_may_be_said_more_than_once(self):
        activity = Activity()
        with activity.ongoing() as mark:
            for counts in (False, False, True, True, False, False):
                mark.counts = counts
            with activity.ongoing():
                self.assertEqual(activity.idle_seconds(), 0)
            self.assertGreater(activity.idle_seconds(), 0)


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
        peer.close()
        wait_until(lambda: self.server._terms.places._free == 10, "it has ended")
        self.clock.now += self.TIMEOUT
        self.assertTrue(is_unused(self.server, self.activity, self.TIMEOUT), "once it is over")

    def test_nor_does_one_end_while_that_want_lasts(self):
        self.server.suspend()
        peer = self.connect()
        want = OSError(errno.EMFILE, "Too many open files")
        with mock.patch.object(TCPServer, "get_request", side_effect=want):
            self.assertFalse(is_unused(self.server, self.activity, self.TIMEOUT))
        self.ask(peer)

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

    def test_whatever_it_waits_for_it_keeps_it_and_who_stands_at_the_door_is_looked_after(self):
        places = self.server._terms.places
        start = threading.Thread.start

        def start_or_not(one):
            if one.name.startswith("jobserver-connection"):
                raise RuntimeError("can't start new thread")
            start(one)

        want = OSError(errno.EMFILE, "Too many open files")
        for name, shortage in {
            "a place": mock.patch.object(places, "_free", 0),
            "a thread": mock.patch.object(threading.Thread, "start", start_or_not),
            "a descriptor": mock.patch.object(Gate, "admit", side_effect=want),
        }.items():
            looked_after = threading.Event()
            with self.subTest(name):
                with shortage, mock.patch.object(self.server, "service_actions", looked_after.set):
                    peer = self.connect()
                    self.assertTrue(looked_after.wait(20))
                    self.assertFalse(is_unused(self.server, self.activity, self.TIMEOUT))
                self.ask(peer)
                peer.close()
                wait_until(lambda: places._free == 10, "its place is free again")
                self.clock.now += self.TIMEOUT

    def test_who_stands_at_the_door_at_the_end_is_hung_up_on(self):
        with mock.patch.object(Gate, "admit", side_effect=Refused("a test", "403: not you")):
            peer = self.connect()
            wait_until(lambda: self.server._doorstep._here, "it stands there")
            self.server.stop_accepting()
            self.assertEqual(peer.recv(1), b"")

    def test_who_gets_the_place_of_another_may_count_on_its_descriptor_too(self):
        gone, places = [], self.server._terms.places
        close, give_back = self.server.shutdown_request, places.give_back
        peer = self.connect()
        self.ask(peer)
        with (
            mock.patch.object(
                self.server, "shutdown_request", lambda one: (close(one), gone.append("descriptor"))
            ),
            mock.patch.object(
                places, "give_back", lambda one: (gone.append("place"), give_back(one))
            ),
        ):
            peer.close()
            wait_until(lambda: len(gone) == 2, "both are free")
        self.assertEqual(gone, ["descriptor", "place"])

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


class LastMoments(unittest.TestCase):
    """Who comes when the idle timer has expired, to a server that the test controls."""

    def make(self):
        return mock.Mock(), mock.Mock(**{"idle_seconds.return_value": 1000.0})

    def test_who_comes_gets_a_moment_each_time_but_not_for_ever(self):
        # Who has come after each moment, and whether one cannot be served then -> how many moments.
        table = {
            "nobody": ([0], [False], 1),
            "one": ([1, 0], [False], 2),
            "one who cannot be served": ([0, 0], [True, False], 2),
            "again and again": (100 * [1], [], ending._MOMENTS),
        }
        for name, (came, held, moments) in table.items():
            with self.subTest(name), mock.patch.object(ending, "_MOMENT", 0.0):
                http, activity = self.make()
                http.accept_waiting.side_effect = came
                type(http).holds = mock.PropertyMock(side_effect=held)
                self.assertTrue(is_unused(http, activity, 5.0))
                self.assertEqual(http.accept_waiting.call_count, moments)
                http.start.assert_not_called()

    def test_a_request_that_comes_in_the_second_moment_counts(self):
        http, activity = self.make()
        http.holds = False

        def accept():
            activity.idle_seconds.return_value = 0.0
            return 1

        http.accept_waiting.side_effect = accept
        with mock.patch.object(ending, "_MOMENT", 0.1):
            self.assertFalse(is_unused(http, activity, 5.0))
        http.start.assert_called_once()


class TakenDown(unittest.TestCase):
    """A server that ends, whose parts the test controls."""

    def end(self, reason, grace=3.0, *, hangs=(), signals=()):
        """Return which calls its parts got, when the work of those in `hangs` comes to no end."""
        parts, interrupts = mock.Mock(), queue.SimpleQueue()
        for signal in signals:
            interrupts.put(signal)

        def submit(work):
            future = concurrent.futures.Future()
            if work not in hangs:
                future.set_result(None)
            return future

        parts.refuse.side_effect = lambda refusal: type(refusal)
        parts.close_service.side_effect = lambda grace: grace
        parts.close.return_value = 0
        service = mock.Mock(refuse=parts.refuse, close=parts.close_service)
        ending.end(parts, mock.Mock(submit=submit), service, interrupts, reason, grace)
        return parts.mock_calls

    def test_it_is_taken_down_in_order_and_those_who_ask_are_told_why(self):
        for reason, refusal in (
            (ending.Reason("SIGTERM"), ShuttingDown),
            (ending.Reason("no worker can be had", failure=True), WorkersUnavailable),
        ):
            with self.subTest(reason):
                stopped, refused, closed, left = self.end(reason)
                self.assertEqual(stopped, mock.call.stop_accepting())
                self.assertEqual(refused, mock.call.refuse(mock.ANY))
                self.assertIs(type(refused.args[0]), refusal)
                self.assertEqual(closed, mock.call.close_service(3.0))
                self.assertEqual(left, mock.call.close(mock.ANY))

    def test_a_second_signal_leaves_no_grace_and_little_time_for_the_rest(self):
        with self.assertLogs("seamless_jobserver.server.ending", "WARNING") as logged:
            *_, first, second, left = self.end(
                ending.Reason("SIGTERM"),
                3600.0,
                hangs=(3600.0,),
                signals=[ending.Reason("SIGINT")],
            )
        self.assertIn("SIGINT", logged.output[0])
        self.assertEqual([first, second], [mock.call.close_service(one) for one in (3600.0, 0.0)])
        self.assertLessEqual(left.args[0], ending._HURRIED)

    def test_what_hangs_is_not_waited_for_for_ever(self):
        with (
            mock.patch.object(ending, "CLOSING", 0.0),
            self.assertLogs("seamless_jobserver.server.ending", "ERROR") as logged,
        ):
            *_, left = self.end(ending.Reason("SIGTERM"), 0.0, hangs=(ShuttingDown, 0.0))
        self.assertEqual(len(logged.output), 2)
        self.assertEqual(left, mock.call.close(mock.ANY))


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

    def test_one_that_is_closed_as_it_fires_neither_expires_nor_looks_again(self):
        for timeout, goes_on in ((0.0, False), (1000.0, True)):
            activity = Activity()
            timer, expired = self.make(timeout, activity)
            with self.subTest(goes_on=goes_on), contextlib.ExitStack() as stack:
                if goes_on:
                    stack.enter_context(activity.ongoing())
                timer.close()
                timer._look()
                self.assertFalse(expired.is_set())
                self.assertIsNone(timer._timer)

    def test_closing_it_ends_its_thread_also_the_one_that_waits_without_others(self):
        for looks in (False, True):
            timer, _ = self.make(1000.0, Activity())
            before, looked = set(threading.enumerate()), threading.Event()

            def refuse(_, looked=looked):
                looked.set()
                raise RuntimeError("can't start new thread")

            with self.subTest(looks=looks):
                if looks:
                    with mock.patch.object(threading.Timer, "start", refuse):
                        threading.Thread(target=timer._look, daemon=True).start()
                        self.assertTrue(looked.wait(20))
                else:
                    timer.start()
                (thread,) = set(threading.enumerate()) - before
                timer.close()
                thread.join(20)
                self.assertFalse(thread.is_alive())

    def test_it_may_be_closed_by_what_it_calls(self):
        closed = threading.Event()
        timer = IdleTimer(0.01, Activity(), lambda: (timer.close(), closed.set()))
        timer.start()
        self.assertTrue(closed.wait(20))

    def test_a_timeout_longer_than_any_thread_can_wait_is_none_for_long_enough(self):
        timer, _ = self.make(1e30, Activity())
        timer.start()
        self.assertLessEqual(timer._timer.interval, threading.TIMEOUT_MAX)

    def test_it_does_not_expire_once_it_is_closed(self):
        before = threading.active_count()
        timer, expired = self.make(1.0, Activity())
        timer.start()
        timer.close()
        self.assertFalse(expired.wait(1.5))
        self.assertEqual(threading.active_count(), before, "its thread is gone")
