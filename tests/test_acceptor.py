"""The thread that accepts, on its own: halted, started again, ended, or ended by an error."""

import queue
import socket
import threading
import unittest
from unittest import mock

from seamless_jobserver.server.acceptor import Acceptor
from tests.stack import PATIENCE


class Halts(unittest.TestCase):
    def setUp(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.listener.setblocking(False)
        self.begun = queue.SimpleQueue()
        self.arrivals = queue.SimpleQueue()
        self.acceptor = self.make(self.accept)

    def make(self, accept, attend=lambda: None):
        acceptor = Acceptor(
            self.listener,
            accept=accept,
            go_on=lambda: self.begun.put(threading.current_thread()),
            attend=attend,
        )
        self.addCleanup(acceptor.end)
        return acceptor

    def accept(self):
        try:
            peer, address = self.listener.accept()
        except BlockingIOError:
            return False
        peer.close()
        self.arrivals.put(address)
        return True

    def connect(self):
        peer = socket.create_connection(self.listener.getsockname(), timeout=PATIENCE)
        self.addCleanup(peer.close)
        return peer.getsockname()

    def test_it_accepts_while_it_is_started_in_one_thread_all_the_time(self):
        self.acceptor.start()
        thread = self.begun.get(timeout=PATIENCE)
        first = self.connect()
        self.assertEqual(self.arrivals.get(timeout=PATIENCE), first)
        self.assertTrue(self.acceptor.halt())
        second = self.connect()
        self.assertTrue(self.arrivals.empty())
        self.acceptor.start()
        self.assertEqual(self.arrivals.get(timeout=PATIENCE), second)
        self.assertIs(self.begun.get(timeout=PATIENCE), thread)

    def test_what_has_to_be_done_now_and_then_is_done_however_many_come(self):
        attended = threading.Event()
        self.acceptor = self.make(lambda: True, attended.set)
        self.acceptor.start()
        self.assertTrue(attended.wait(PATIENCE))

    def test_of_many_that_come_at_one_moment_none_is_accepted_once_it_is_halted(self):
        accepted = []

        def accept():
            accepted.append(None)
            self.arrivals.put(None)
            self.acceptor.over_within(10 * PATIENCE)
            return True

        self.acceptor = self.make(accept)
        self.acceptor.start()
        self.arrivals.get(timeout=PATIENCE)
        self.assertTrue(self.acceptor.halt())
        self.assertEqual(len(accepted), 1)

    def test_what_it_waits_for_is_given_up_when_it_is_halted(self):
        given_up = queue.SimpleQueue()

        def accept():
            self.arrivals.put(None)
            given_up.put(self.acceptor.over_within(10 * PATIENCE))
            return False

        self.acceptor = self.make(accept)
        self.acceptor.start()
        self.connect()
        self.arrivals.get(timeout=PATIENCE)
        self.assertTrue(self.acceptor.halt())
        self.assertTrue(given_up.get(timeout=PATIENCE))

    def test_who_halts_it_waits_until_it_is_at_nothing_any_more(self):
        finish, given_up, halted = threading.Event(), queue.SimpleQueue(), queue.SimpleQueue()

        def accept():
            self.arrivals.put(None)
            self.acceptor.over_within(10 * PATIENCE)
            given_up.put(None)
            finish.wait(PATIENCE)
            return False

        self.acceptor = self.make(accept)
        self.addCleanup(finish.set)
        self.acceptor.start()
        self.connect()
        self.arrivals.get(timeout=PATIENCE)

        def halt():
            halted.put((self.acceptor.halt(), finish.is_set()))

        halting = threading.Thread(target=halt)
        halting.start()
        self.addCleanup(halting.join, PATIENCE)
        given_up.get(timeout=PATIENCE)
        finish.set()
        self.assertEqual(halted.get(timeout=PATIENCE), (True, True))

    def test_who_halts_one_that_an_error_has_ended_does_not_wait_for_it(self):
        self.acceptor = self.make(mock.Mock(side_effect=ZeroDivisionError))
        told = queue.SimpleQueue()
        with mock.patch.object(threading, "excepthook", told.put):
            self.acceptor.start()
            self.connect()
            self.assertIs(told.get(timeout=PATIENCE).exc_type, ZeroDivisionError)
        self.assertTrue(self.acceptor.halt())

    def test_its_end_leaves_no_thread_and_comes_at_once_also_while_it_is_halted(self):
        for halted in (False, True):
            with self.subTest(halted=halted):
                acceptor = self.make(self.accept)
                acceptor.start()
                thread = self.begun.get(timeout=PATIENCE)
                if halted:
                    acceptor.halt()
                acceptor.end()
                self.assertFalse(thread.is_alive())
                acceptor.end()
