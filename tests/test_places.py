"""Places for connections: who gets one, who makes room, who only stands at the door."""

import contextlib
import socket
import threading
import unittest
from unittest import mock

from seamless_jobserver.server import doorstep, refusals
from seamless_jobserver.server.access import Refused
from seamless_jobserver.server.doorstep import Doorstep
from seamless_jobserver.server.places import Places
from seamless_jobserver.server.refusals import Refusals
from tests.stack import wait_until

MOMENT = 0.05


class Holder:
    def __init__(self, case):
        self.socket, self.client = socket.socketpair()
        for end in (self.socket, self.client):
            case.addCleanup(end.close)
            end.settimeout(20)

    @property
    def ended(self):
        """Whether it was asked to end: reading from it ends at once."""
        self.socket.settimeout(0.0)
        with contextlib.suppress(BlockingIOError):
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        return False


class RoomFor(unittest.TestCase):
    def fill(self, places, count):
        holders = [Holder(self) for _ in range(count)]
        for _ in holders:
            self.assertTrue(places.take(MOMENT))
        return holders

    def test_there_are_so_many_places_and_one_that_is_given_back_is_free(self):
        places = Places(2)
        first, _ = self.fill(places, 2)
        self.assertFalse(places.take(MOMENT))
        places.give_back(first)
        self.assertTrue(places.take(MOMENT))
        self.assertFalse(places.take(MOMENT))

    def test_a_place_that_becomes_free_is_taken_by_who_waits_for_it(self):
        places = Places(1)
        (first,) = self.fill(places, 1)
        taken = []
        waiting = threading.Thread(target=lambda: taken.append(places.take(20)))
        waiting.start()
        places.give_back(first)
        waiting.join(20)
        self.assertEqual(taken, [True])

    def test_the_one_that_has_been_idle_longest_makes_room_and_no_other(self):
        places = Places(3, least_idle=0.0)
        holders = self.fill(places, 3)
        for holder in (holders[1], holders[2], holders[0]):
            places.rest(holder)
        places.take(MOMENT)
        places.take(MOMENT)  # one that is on its way out is enough
        self.assertEqual([holder.ended for holder in holders], [False, True, False])
        self.assertFalse(places.wake(holders[1]), "it is told to end after what it is at")
        self.assertTrue(places.wake(holders[0]))

    def test_one_that_has_ended_is_neither_idle_nor_on_its_way_out_any_more(self):
        places = Places(3, least_idle=0.0)
        asked, silent, other = self.fill(places, 3)
        for holder in (asked, silent, other):
            places.rest(holder)
        self.assertFalse(places.take(MOMENT))
        self.assertTrue(asked.ended)
        for holder in (asked, silent):
            places.give_back(holder)
            self.assertTrue(places.take(MOMENT))
        self.assertFalse(other.ended)
        self.assertFalse(places.take(MOMENT))
        self.assertTrue(other.ended, "the only one that is left")

    def test_one_that_was_asked_to_end_and_is_at_work_does_not_keep_others_from_being_asked(self):
        places = Places(2, least_idle=0.0)
        first, second = self.fill(places, 2)
        for holder in (first, second):
            places.rest(holder)
        self.assertFalse(places.take(MOMENT))
        self.assertFalse(places.wake(first), "it is at its last request")
        self.assertFalse(places.take(MOMENT))
        self.assertTrue(second.ended)

    def test_while_there_is_room_nobody_has_to_end(self):
        places = Places(2, least_idle=0.0)
        holder = Holder(self)
        self.assertTrue(places.take(MOMENT))
        places.rest(holder)
        self.assertTrue(places.take(MOMENT))
        self.assertFalse(holder.ended)

    def test_a_connection_that_is_at_work_or_idle_for_a_moment_only_is_spared(self):
        places = Places(2, least_idle=60.0)
        _, idle = self.fill(places, 2)
        places.rest(idle)
        self.assertFalse(places.take(MOMENT))
        self.assertFalse(idle.ended)

    def test_one_whose_request_has_arrived_is_spared(self):
        places = Places(2, least_idle=0.0)
        first, second = self.fill(places, 2)
        for holder in (first, second):
            places.rest(holder)
        first.client.sendall(b"GET")
        places.take(MOMENT)
        self.assertEqual(first.socket.recv(3), b"GET")
        self.assertFalse(first.ended)
        self.assertTrue(second.ended)

    def test_what_had_arrived_can_still_be_read_and_answered(self):
        places = Places(1, least_idle=0.0)
        (holder,) = self.fill(places, 1)
        places.rest(holder)
        places.take(MOMENT)
        holder.socket.sendall(b"answer")
        self.assertEqual(holder.client.recv(6), b"answer")

    def test_among_strangers_the_silent_go_first_and_then_the_oldest(self):
        for sent, expected in (((0,), 1), ((0, 1, 2), 0)):
            places = Places(3, least_idle=0.0, spare=False)
            holders = self.fill(places, 3)
            for holder in holders:
                places.rest(holder)
            for number in sent:
                holders[number].client.sendall(b"GET")
            places.take(MOMENT)
            with self.subTest(expected):
                self.assertEqual(holders[expected].client.recv(1), b"", "its end is here")

    def test_one_that_was_asked_to_end_while_it_changed_its_socket_can_find_out(self):
        places = Places(1, least_idle=0.0, spare=False)
        (holder,) = self.fill(places, 1)
        places.rest(holder)
        self.assertFalse(places.is_leaving(holder))
        holder.socket.close()  # as while TLS begins
        places.take(MOMENT)
        self.assertTrue(places.is_leaving(holder))
        self.assertFalse(places.wake(holder))

    def test_one_that_is_known_is_not_pushed_out_any_more(self):
        places = Places(1, least_idle=0.0, spare=False)
        (holder,) = self.fill(places, 1)
        places.rest(holder)
        self.assertTrue(places.wake(holder))
        self.assertFalse(places.take(MOMENT))
        self.assertFalse(holder.ended)


class AtTheDoor(unittest.TestCase):
    REFUSAL = Refused("a test", "403: not you")

    def setUp(self):
        self.doorstep = Doorstep()
        self.addCleanup(self.doorstep.close)

    def arrive(self, data=b""):
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        theirs.settimeout(20)
        if data:
            theirs.sendall(data)
        self.doorstep.turn_away(ours, self.REFUSAL)
        return theirs

    def read(self, client):
        """Return all that comes until the end, which the doorstep is to bring about."""
        received = []
        client.settimeout(0.01)

        def ended():
            self.doorstep.attend()
            with contextlib.suppress(TimeoutError):
                received.append(client.recv(65536))
            return received and not received[-1]

        wait_until(ended, "it has ended")
        return b"".join(received)

    def test_who_has_asked_is_told_at_once(self):
        client = self.arrive(b"GET / HTTP/1.1\r\n\r\n")
        answer = client.recv(65536)
        self.assertTrue(answer.startswith(b"HTTP/1.1 403 "), answer)
        self.assertTrue(answer.endswith(b"\r\n\r\n403: not you"), answer)
        self.assertEqual(client.recv(1), b"", "and that this is all")

    def test_who_asks_later_is_told_then(self):
        client = self.arrive()
        self.doorstep.attend()
        client.sendall(b"GET /")
        self.doorstep.attend()
        self.assertTrue(client.recv(65536).startswith(b"HTTP/1.1 403 "))

    def test_the_answer_to_head_has_no_body(self):
        answer = self.arrive(b"HEAD / HTTP/1.1\r\n\r\n").recv(65536)
        self.assertTrue(answer.endswith(b"\r\n\r\n"), answer)
        self.assertIn(b"Content-Length: 12\r\n", answer)

    def test_a_client_that_begins_tls_gets_an_alert(self):
        answer = self.arrive(b"\x16\x03\x01\x02\x00\x01").recv(65536)
        self.assertEqual(answer, b"\x15\x03\x03\x00\x02\x02\x31")

    def test_they_are_few_and_a_new_one_pushes_out_the_oldest(self):
        clients = [self.arrive() for _ in range(doorstep.MOST + 3)]
        for client in clients[:3]:
            self.assertEqual(client.recv(1), b"")
        for client in clients[3:]:
            client.settimeout(0.0)
            with self.assertRaises(BlockingIOError):
                client.recv(1)

    def test_who_says_nothing_and_who_does_not_go_is_dropped_after_a_while(self):
        with mock.patch.object(doorstep, "PATIENCE", 0.1):
            self.assertEqual(self.read(self.arrive()), b"")
        with mock.patch.object(doorstep, "LINGER", 0.1):
            client = self.arrive(b"GET")
            self.assertIn(b"403", self.read(client))
            wait_until(lambda: self.doorstep.attend() or not self.doorstep._here, "it is dropped")
            with self.assertRaises(OSError):
                client.sendall(b"more")

    def test_who_has_been_told_late_has_a_moment_for_it_too(self):
        clock = mock.Mock(monotonic=lambda: now)
        now = 100.0
        with mock.patch.object(doorstep, "time", clock):
            client = self.arrive()
            now += doorstep.PATIENCE - 0.1
            client.sendall(b"GET /")
            for passed, here in ((0.0, 1), (doorstep.LINGER - 0.1, 1), (0.1, 0)):
                now += passed
                self.doorstep.attend()
                self.assertEqual(len(self.doorstep._here), here)
        self.assertIn(b"403", client.recv(65536))

    def test_what_is_still_being_sent_is_taken_in(self):
        with mock.patch.object(doorstep, "LINGER", 60.0):
            client = self.arrive(b"POST / HTTP/1.1\r\n")
            for _ in range(100):
                client.sendall(100_000 * b"x")
                self.doorstep.attend()
            self.assertIn(b"403", client.recv(65536))

    def test_one_that_goes_on_sending_does_not_keep_the_others_waiting(self):
        class Endless(socket.socket):
            received = 0

            def recv(self, most):
                self.received += 1
                assert self.received < 1000, "it is heard without an end"
                return most * b"x"

        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        endless = Endless(fileno=ours.detach())
        self.doorstep.turn_away(endless, self.REFUSAL)
        self.assertIn(b"403", theirs.recv(65536))
        theirs.sendall(b"more")
        heard = endless.received
        self.doorstep.attend()
        self.assertGreater(endless.received, heard, "its turn comes again")

    def test_one_that_has_gone_is_forgotten(self):
        self.arrive(b"GET").close()
        self.arrive().close()
        self.doorstep.attend()
        self.assertEqual(self.doorstep._here, {})

    def test_nor_is_it_looked_for_while_others_stand_there(self):
        other = self.arrive()
        for data in (b"GET", b""):
            self.arrive(data).close()
        for _ in range(2):
            self.doorstep.attend()
            self.assertEqual(len(self.doorstep._here), 1)
        other.sendall(b"GET")
        self.doorstep.attend()
        self.assertIn(b"403", other.recv(65536))


class InTheLog(unittest.TestCase):
    def test_the_first_is_told_and_then_a_number_every_minute(self):
        now = 100.0
        counted = Refusals(lambda: now)
        with self.assertLogs(refusals.__name__, "INFO") as logs:
            for _ in range(1000):
                counted.note("another user")
            self.assertEqual(len(logs.output), 1)
            self.assertIn("1 times another user", logs.output[0])
            now += refusals.INTERVAL - 1
            counted.report()
            self.assertEqual(len(logs.output), 1)
            counted.note("no password")
            now += 1
            counted.report()
            self.assertIn("999 times another user, 1 times no password", logs.output[1])
            now += 1000
            counted.report()
            self.assertEqual(len(logs.output), 2, "nothing is told twice, and no nothing")
            counted.note("another user")
            self.assertEqual(len(logs.output), 3, "after a while it is told at once again")
        self.assertEqual(counted.total, 1002)
