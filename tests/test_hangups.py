"""Clients that hang up, noticed for threads that wait."""

import contextlib
import os
import socket
import threading
import unittest

from seamless_jobserver.server.hangups import Hangups
from tests.stack import wait_until


class Watching(unittest.TestCase):
    def setUp(self):
        self.hangups = Hangups()
        self.addCleanup(self.hangups.close, 20.0)

    def pair(self):
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        return ours, theirs

    def test_a_peer_that_hangs_up_is_told_of_however_it_does(self):
        for how in (
            lambda peer: peer.close(),
            lambda peer: peer.shutdown(socket.SHUT_WR),
            lambda peer: (peer.sendall(b"more"), peer.close()),
        ):
            ours, theirs = self.pair()
            woken = threading.Event()
            with self.subTest(how), self.hangups.watching(ours, woken.set):
                self.assertFalse(woken.is_set())
                how(theirs)
                self.assertTrue(woken.wait(20))

    def test_one_that_had_gone_before_is_told_of_too(self):
        ours, theirs = self.pair()
        theirs.close()
        woken = threading.Event()
        with self.hangups.watching(ours, woken.set):
            self.assertTrue(woken.wait(20))

    def test_what_a_peer_sends_is_no_reason_to_wake(self):
        ours, theirs = self.pair()
        other, gone = self.pair()
        woken, after = threading.Event(), threading.Event()
        with self.hangups.watching(ours, woken.set), self.hangups.watching(other, after.set):
            theirs.sendall(b"more")
            gone.close()
            self.assertTrue(after.wait(20))
            self.assertFalse(woken.is_set())

    def test_nobody_is_woken_once_the_block_has_ended(self):
        ours, theirs = self.pair()
        other, gone = self.pair()
        woken, after = threading.Event(), threading.Event()
        with self.hangups.watching(ours, woken.set):
            pass
        with self.hangups.watching(other, after.set):
            theirs.close()
            gone.close()
            self.assertTrue(after.wait(20))
        self.assertFalse(woken.is_set())

    def test_a_connection_that_is_closed_inside_the_block_does_no_harm(self):
        ours, _theirs = self.pair()
        with self.hangups.watching(ours, lambda: None):
            ours.close()
        again, peer = self.pair()
        woken = threading.Event()
        with self.hangups.watching(again, woken.set):
            peer.close()
            self.assertTrue(woken.wait(20))

    def test_the_end_of_its_block_does_not_concern_another_that_has_its_number_by_then(self):
        ours, _theirs = self.pair()
        again, peer = self.pair()
        woken = threading.Event()
        with contextlib.ExitStack() as second:
            with self.hangups.watching(ours, lambda: None):
                number = ours.detach()
                reused = socket.socket(fileno=os.dup2(again.fileno(), number, inheritable=False))
                self.addCleanup(reused.close)
                second.enter_context(self.hangups.watching(reused, woken.set))
            peer.close()
            self.assertTrue(woken.wait(20))

    def test_who_is_told_of_a_peer_that_has_gone_is_told_once(self):
        ours, theirs = self.pair()
        other, gone = self.pair()
        told, after = [], threading.Event()
        with (
            self.hangups.watching(ours, lambda: told.append(None)),
            self.hangups.watching(other, after.set),
        ):
            theirs.close()
            wait_until(lambda: told, "it is told")
            gone.close()
            self.assertTrue(after.wait(20))
            self.assertEqual(len(told), 1)

    def test_one_that_was_closed_before_is_not_watched(self):
        ours, _theirs = self.pair()
        ours.close()
        with self.hangups.watching(ours, self.fail):
            self.assertEqual(self.hangups._wake, {})

    def test_many_are_watched_by_one_thread(self):
        before = len(os.listdir("/proc/self/task"))
        with contextlib.ExitStack() as stack:
            woken = [threading.Event() for _ in range(200)]
            pairs = [self.pair() for _ in woken]
            for (ours, _), event in zip(pairs, woken, strict=True):
                stack.enter_context(self.hangups.watching(ours, event.set))
            # One that has ended may be listed for a moment.
            self.assertLessEqual(len(os.listdir("/proc/self/task")), before)
            for _, theirs in pairs:
                theirs.close()
            for event in woken:
                self.assertTrue(event.wait(20))


class Closing(unittest.TestCase):
    def test_thread_and_descriptors_are_gone(self):
        descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        hangups = Hangups()
        ours, theirs = socket.socketpair()
        with ours, theirs, hangups.watching(ours, lambda: None):
            hangups.close(20.0)
        self.assertEqual(threading.active_count(), threads)
        self.assertEqual(len(os.listdir("/proc/self/fd")), descriptors)

    def test_later_blocks_watch_nothing(self):
        hangups = Hangups()
        hangups.close(20.0)
        ours, theirs = socket.socketpair()
        with ours, theirs, hangups.watching(ours, lambda: None):
            pass
