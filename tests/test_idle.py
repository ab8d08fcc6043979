"""The inactivity timeout, on a clock that the test turns, and on the real one."""

import threading
import unittest

from seamless_jobserver.server.idle import Activity, IdleTimer


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

    def test_it_does_not_expire_once_it_is_closed(self):
        before = threading.active_count()
        timer, expired = self.make(0.1, Activity())
        timer.start()
        timer.close()
        self.assertFalse(expired.wait(0.3))
        self.assertEqual(threading.active_count(), before, "its thread is gone")
