"""The inactivity timeout, on a clock that the test turns, and on the real one."""

import queue
import threading
import time
import unittest
from unittest import mock

from seamless_jobserver.server.idle import Activity, IdleTimer
from seamless_jobserver.server.lifecycle import Reason, drain


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


class AtTheVeryMoment(unittest.TestCase):
    """A request comes in when the timer has just expired."""

    def setUp(self):
        self.activity = Activity()
        self.interrupts = queue.SimpleQueue()
        self.http = mock.Mock()
        self.reasons = []

    def drain(self):
        thread = threading.Thread(
            target=lambda: self.reasons.append(drain(self.http, self.activity, self.interrupts))
        )
        thread.start()
        return thread

    def test_it_is_served_to_its_end_and_nothing_more_is_accepted(self):
        with self.activity.ongoing():
            draining = self.drain()
            draining.join(0.3)
            self.assertTrue(draining.is_alive())
            self.http.stop_accepting.assert_called_once()
        draining.join(20)
        self.assertEqual(self.reasons, [None])

    def test_a_signal_ends_the_server_all_the_same(self):
        signaled = Reason("received SIGTERM")
        with self.activity.ongoing():
            draining = self.drain()
            self.interrupts.put(signaled)
            draining.join(20)
        self.assertEqual(self.reasons, [signaled])


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
        timer, expired = self.make(0.1, Activity())
        timer.start()
        timer.close()
        self.assertFalse(expired.wait(0.3))
        self.assertEqual(threading.active_count(), before, "its thread is gone")
