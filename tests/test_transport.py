"""The transport: one suite over real aiohttp and over our stand-in; then what only ours does."""

import asyncio
import base64
import gzip
import hashlib
import importlib.util
import json
import socket
import subprocess
import sys
import threading
import unittest
import zlib
from unittest import mock

from seamless_jobserver.transport import aiofiles_standin, aiohttp_standin, connection
from seamless_jobserver.transport.connector import KEPT_ALIVE, Connector
from seamless_jobserver.transport.frozendict_standin import frozendict
from seamless_jobserver.transport.request import Origin, decode
from seamless_jobserver.worker.lane import within
from tests.scripted_server import OK, Peer, ScriptedServer
from tests.stack import ROOT, free_port, temporary_directory

BIG = bytes(range(256)) * 80 * 1024  # 20 MB
HEAD_OF_100 = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def answer_each(peer: Peer) -> None:
    while peer.read_request()[0]:
        peer.send(OK)


def hold(peer: Peer) -> None:
    while peer.socket.recv(65536):
        continue


def after_request(data: bytes):
    """A script that reads one request, sends `data`, and closes."""

    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(data)

    return script


def then_hold(data: bytes):
    def script(peer: Peer) -> None:
        after_request(data)(peer)
        hold(peer)

    return script


def reset_after_request(peer: Peer) -> None:
    peer.read_request()
    peer.reset()


def reset_in_body(peer: Peer, head: bytes = HEAD_OF_100) -> None:
    peer.read_request()
    peer.send(head + b"x" * 10)
    peer.reset()


# What the server does -> the types that the client's exception must have, and must not have.
FAULTS = {
    "it closes before answering": (
        after_request(b""),
        ("ServerDisconnectedError", "ClientConnectionError"),
        ("ClientPayloadError",),
    ),
    "it resets before answering": (
        reset_after_request,
        ("ClientOSError", "ClientConnectionError"),
        ("ClientPayloadError",),
    ),
    "it never answers": (
        hold,
        ("ServerTimeoutError", "ClientConnectionError", "TimeoutError"),
        ("ClientPayloadError",),
    ),
    "it closes in the middle of the head": (
        after_request(b"HTTP/1.1 200 OK\r\nContent-"),
        ("ClientConnectionError",),
        (),
    ),
    "it closes in the middle of the body": (
        after_request(HEAD_OF_100 + b"x" * 10),
        ("ClientPayloadError",),
        ("ClientConnectionError",),
    ),
    "it resets in the middle of the body": (
        reset_in_body,
        ("ClientError",),
        (),
    ),
    "it stops in the middle of the body": (
        then_hold(HEAD_OF_100 + b"x" * 10),
        ("ServerTimeoutError", "TimeoutError"),
        (),
    ),
    "it closes in the middle of a chunk": (
        after_request(CHUNKED + b"10\r\nabc"),
        ("ClientPayloadError",),
        ("ClientConnectionError",),
    ),
    "it sends a chunk size that is none": (
        # aiohttp blames the head or the body, as both happen to arrive together or not.
        after_request(CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n"),
        ("ClientError",),
        ("ClientConnectionError",),
    ),
    "it sends a chunk that is longer than it said": (
        after_request(CHUNKED + b"2\r\nabc\r\n0\r\n\r\n"),
        ("ClientError",),
        ("ClientConnectionError",),
    ),
    "it does not speak HTTP": (
        after_request(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        ("ClientError",),
        ("ClientConnectionError", "ClientPayloadError"),
    ),
    "it sends gzip that is none": (
        after_request(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd"
        ),
        ("ClientPayloadError",),
        ("ClientConnectionError",),
    ),
}


class Limits(unittest.IsolatedAsyncioTestCase):
    async def wait(self, event):
        return await event

    async def test_what_takes_too_long_is_ended_and_the_task_goes_on(self):
        never = asyncio.get_running_loop().create_future()
        with self.assertRaises(asyncio.TimeoutError):
            await within(0.01, self.wait(never))
        self.assertTrue(never.cancelled())
        self.assertEqual(await within(20, self.wait(asyncio.sleep(0, 3))), 3)

    async def test_a_cancellation_in_the_turn_in_which_the_work_ends_is_not_lost(self):
        event = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(within(20, self.wait(event)))
        await asyncio.sleep(0)
        event.set_result(1)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task

    async def test_a_cancellation_in_the_turn_in_which_the_time_is_over_is_not_lost(self):
        never = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(within(0.01, self.wait(never)))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.01, task.cancel)
        threading.Event().wait(0.05)  # both are due
        # Before Python 3.11 a task does not know how often it was canceled.
        knows = hasattr(asyncio.Task, "cancelling")
        with self.assertRaises(asyncio.CancelledError if knows else asyncio.TimeoutError):
            await task


class Kept(unittest.IsolatedAsyncioTestCase):
    async def test_nothing_is_kept_once_all_was_dropped(self):
        connector = Connector(asyncio.get_running_loop())
        origin = Origin(False, "127.0.0.1", 1)
        connector.drop_all()
        late = mock.Mock(usable=True)
        connector.keep(origin, late, 0.0)
        late.close.assert_called_once_with()
        self.assertIsNone(connector.take(origin, 0.0))

    async def test_of_those_kept_the_one_used_last_is_taken_and_none_grows_old(self):
        connector = Connector(asyncio.get_running_loop())
        origin = Origin(False, "127.0.0.1", 1)
        old, first, last = (mock.Mock(usable=True, idle=True) for _ in range(3))
        connector.keep(origin, old, 0.0)
        connector.keep(origin, first, KEPT_ALIVE - 1)
        old.close.assert_not_called()
        connector.keep(origin, last, KEPT_ALIVE)
        old.close.assert_called_once_with()
        self.assertIs(connector.take(origin, KEPT_ALIVE), last)
        self.assertIsNone(connector.take(origin, 3 * KEPT_ALIVE))
        first.close.assert_called_once_with()

    def test_it_can_be_closed_when_its_loop_is(self):
        loop = asyncio.new_event_loop()
        connector = Connector(loop)
        connector.keep(Origin(False, "127.0.0.1", 1), mock.Mock(usable=True), 0.0)
        loop.close()
        connector._close()
        self.assertEqual(connector._idle, {})


class ClientSuite:
    """What seamless-remote relies on, over whatever `self.client` is."""

    client: object

    def serve(self, script) -> ScriptedServer:
        server = ScriptedServer(script)
        self.addCleanup(server.close)
        return server

    def run_session(self, work, **limits):
        """Run the coroutine function `work` with a session, and return what it returns."""

        async def main():
            session = self.client.ClientSession(timeout=self.client.ClientTimeout(**limits))
            try:
                return await work(session)
            finally:
                await session.close()

        return asyncio.run(asyncio.wait_for(main(), 60))

    def fetch(self, url, **limits):
        async def work(session):
            async with session.get(url) as response:
                return response.status, await response.read()

        return self.run_session(work, **limits)

    def test_a_request_arrives_whole_and_its_answer_comes_back(self):
        seen = []

        def script(peer):
            while (request := peer.read_request())[0]:
                seen.append(request)
                peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nd\xc3\xa4h!")

        server = self.serve(script)

        async def work(session):
            async with session.get(f"{server.url}/a/b", json={"x": [1]}) as response:
                self.assertEqual(await response.text(), "däh!")
            async with session.put(f"{server.url}/c", data=b"\0\xff") as response:
                self.assertEqual(response.status, 404)
            async with session.post(server.url) as response:
                self.assertEqual(response.status, 404)
            async with session.put(f"{server.url}/a b%20ü?q=ü", data=b"") as response:
                self.assertEqual(response.status, 404)

        self.run_session(work)
        (get, get_body), (put, put_body), (post, post_body), (empty, _) = seen
        self.assertTrue(get.startswith("GET /a/b HTTP/1.1\r\n"))
        self.assertEqual(json.loads(get_body), {"x": [1]})
        self.assertIn("application/json", get)
        self.assertIn(f"Host: 127.0.0.1:{server.port}\r\n", get)
        self.assertTrue(put.startswith("PUT /c "))
        self.assertEqual(put_body, b"\0\xff")
        self.assertTrue(post.startswith("POST / "))
        self.assertEqual(post_body, b"")
        self.assertTrue(empty.startswith("PUT /a%20b%20%C3%BC?q=%C3%BC HTTP/1.1\r\n"), empty)
        self.assertIn("Content-Length: 0\r\n", empty + "\r\n")

    def test_requests_share_a_kept_connection(self):
        server = self.serve(answer_each)

        async def work(session):
            for _ in range(5):
                async with session.get(server.url) as response:
                    self.assertEqual(await response.read(), b"ok")

        self.run_session(work)
        self.assertEqual(server.connections, 1)

    def test_one_whose_short_answer_was_not_read_is_used_again(self):
        server = self.serve(answer_each)

        async def work(session):
            for _ in range(5):
                async with session.put(server.url, data=b"x") as response:
                    self.assertEqual(response.status, 200)

        self.run_session(work)
        self.assertEqual(server.connections, 1)

    def test_user_and_password_of_a_url_are_sent_as_they_are_meant(self):
        seen = []

        def script(peer):
            seen.append(peer.read_request()[0])
            peer.send(OK)

        server = self.serve(script)
        self.fetch(f"http://us%20er:p%40ss%3A@127.0.0.1:{server.port}/")
        meant = base64.b64encode(b"us er:p@ss:").decode()
        self.assertIn(f"Authorization: Basic {meant}", seen[0])

    def test_a_connection_that_the_server_closes_is_not_used_again(self):
        closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
        old = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"
        for data, script in (
            (OK, after_request),
            (closing, after_request),
            (old, after_request),
            # It will take no more, and has not closed it yet.
            (closing, then_hold),
            (old, then_hold),
        ):
            server = self.serve(script(data))

            async def work(session, url=server.url):
                for _ in range(3):
                    async with session.get(url) as response:
                        self.assertEqual(await response.read(), b"ok")

            with self.subTest(data, script=script.__name__):
                self.run_session(work)
                self.assertEqual(server.connections, 3)

    def test_an_answer_that_was_not_read_does_not_spoil_the_next(self):
        server = self.serve(answer_each)

        async def work(session):
            async with session.get(server.url) as response:
                self.assertEqual(response.status, 200)
            async with session.get(server.url) as response:
                self.assertEqual(await response.text(), "ok")

        self.run_session(work)

    def test_concurrent_requests_use_connections_of_their_own(self):
        everybody = threading.Barrier(4)

        def script(peer):
            peer.read_request()
            everybody.wait(20)
            peer.send(OK)

        server = self.serve(script)

        async def work(session):
            async def one():
                async with session.get(server.url) as response:
                    return await response.text()

            return await asyncio.gather(*(one() for _ in range(4)))

        self.assertEqual(self.run_session(work), ["ok"] * 4)

    def test_large_bodies_pass_unharmed_both_ways(self):
        seen = []

        def script(peer):
            head = peer.read_head()
            if "expect: 100-continue" in head.lower():
                peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            seen.append(peer.read_body(len(BIG)))
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BIG) + BIG)
            answer_each(peer)

        server = self.serve(script)

        async def work(session):
            async with session.put(server.url, data=BIG) as response:
                body = await response.read()
            async with session.get(server.url) as response:
                self.assertEqual(await response.read(), b"ok")
            return body

        body = self.run_session(work)
        self.assertEqual(hashlib.sha256(seen[0]).digest(), hashlib.sha256(BIG).digest())
        self.assertEqual(hashlib.sha256(body).digest(), hashlib.sha256(BIG).digest())
        self.assertIs(type(body), bytes)

    def test_every_way_to_end_a_body_is_understood(self):
        packed = gzip.compress(b"hello")
        for data in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
            CHUNKED + b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nTrailer: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
            + packed,
        ):
            server = self.serve(after_request(data))
            with self.subTest(data):
                self.assertEqual(self.fetch(server.url), (200, b"hello"))

    def test_interim_answers_are_skipped_and_reset_the_read_timeout(self):
        done = threading.Event()

        def script(peer):
            peer.read_request()
            for _ in range(12):
                peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
                done.wait(0.25)
            peer.send(OK)

        server = self.serve(script)
        self.assertEqual(self.fetch(server.url, sock_read=2.0), (200, b"ok"))

    def test_each_fault_is_the_exception_that_retries_depend_on(self):
        for name, (script, expected, excluded) in FAULTS.items():
            server = self.serve(script)
            with self.subTest(name), self.assertRaises(Exception) as caught:
                self.fetch(server.url, sock_read=0.5)
            for kind in expected:
                self.assertIsInstance(caught.exception, self.exception(kind), name)
            for kind in excluded:
                self.assertNotIsInstance(caught.exception, self.exception(kind), name)

    def exception(self, name):
        return asyncio.TimeoutError if name == "TimeoutError" else getattr(self.client, name)

    def test_a_refused_connection_says_why(self):
        with self.assertRaises(self.client.ClientConnectionError) as caught:
            self.fetch(f"http://127.0.0.1:{free_port()}/")
        self.assertIsInstance(caught.exception, OSError)
        self.assertIsInstance(caught.exception.os_error, OSError)

    def test_an_unknown_host_is_a_connection_error(self):
        with self.assertRaises(self.client.ClientConnectionError):
            self.fetch("http://no-such-host.invalid/")

    def test_a_url_that_is_none_is_refused(self):
        with self.assertRaises(ValueError):
            self.fetch("/relative")

    def test_the_total_limit_holds_however_the_answer_trickles(self):
        def script(peer):
            peer.read_request()
            peer.send(HEAD_OF_100)
            pause = threading.Event()
            while not pause.wait(0.05):
                peer.send(b"x")

        server = self.serve(script)
        with self.assertRaises(asyncio.TimeoutError) as caught:
            self.fetch(server.url, total=0.5, sock_read=5)
        self.assertNotIsInstance(caught.exception, self.client.ClientConnectionError)

    def test_a_connection_that_cannot_be_made_in_time_is_a_timeout(self):
        # A listening socket whose backlog is full lets further connections wait.
        with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
            port = listener.getsockname()[1]
            fillers = []
            try:
                for _ in range(4):
                    filler = socket.socket()
                    filler.setblocking(False)
                    filler.connect_ex(("127.0.0.1", port))
                    fillers.append(filler)
                with self.assertRaises(asyncio.TimeoutError) as caught:
                    self.fetch(f"http://127.0.0.1:{port}/", sock_connect=0.5, sock_read=1)
                self.assertIsInstance(caught.exception, self.client.ClientConnectionError)
            finally:
                for filler in fillers:
                    filler.close()

    def test_a_canceled_request_drops_its_connection(self):
        arrived, gone = threading.Event(), threading.Event()

        def script(peer):
            peer.read_request()
            arrived.set()
            try:
                hold(peer)
            finally:
                gone.set()

        server = self.serve(script)

        async def work(session):
            async def one():
                async with session.get(server.url) as response:
                    await response.read()

            task = asyncio.ensure_future(one())
            await asyncio.to_thread(arrived.wait, 20)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(gone.wait, 20)
            return gone.is_set()

        self.assertTrue(self.run_session(work))

    def test_a_session_knows_its_loop_and_whether_it_is_closed(self):
        async def main():
            session = self.client.ClientSession(timeout=self.client.ClientTimeout(total=1))
            self.assertIs(session._loop, asyncio.get_running_loop())
            self.assertFalse(session.closed)
            await session.close()
            self.assertTrue(session.closed)
            with self.assertRaises(RuntimeError):
                async with session.get("http://127.0.0.1:9/"):
                    pass
            other = self.client.ClientSession()
            self.assertTrue(callable(other._connector._close))
            connector = other._connector
            other.detach()
            self.assertTrue(other.closed)
            connector._close()

        asyncio.run(main())


class StandIn(ClientSuite, unittest.TestCase):
    """The suite over our stand-in."""

    client = aiohttp_standin

    def test_a_request_whose_kept_connection_the_server_has_dropped_is_sent_again(self):
        # What the server sends of an answer before it closes, and whether that was none.
        for beginning, repeated in ((b"", True), (b"HTTP/1.1 2", False)):
            requests = []

            def script(peer, beginning=beginning, requests=requests):
                for answer in (OK, beginning) if not requests else (OK,):
                    requests.append(peer.read_head())
                    peer.send(answer)

            server = self.serve(script)

            async def work(session, url=server.url):
                for _ in range(2):
                    async with session.get(url) as response:
                        self.assertEqual(await response.read(), b"ok")

            with self.subTest(beginning):
                if repeated:
                    self.run_session(work)
                else:
                    with self.assertRaises(aiohttp_standin.ServerDisconnectedError):
                        self.run_session(work)
                self.assertEqual(len(requests), 3 if repeated else 2)

    def test_what_comes_behind_an_answer_is_not_taken_for_the_next(self):
        stray = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray"
        answers = [OK + stray, OK]

        def script(peer):
            while peer.read_head():
                peer.send(answers.pop(0))

        server = self.serve(script)

        async def work(session):
            for _ in range(2):
                async with session.get(server.url) as response:
                    self.assertEqual(await response.read(), b"ok")

        self.run_session(work)
        self.assertEqual(server.connections, 2)

    def test_a_reset_is_not_taken_for_the_end_of_a_body_that_ends_with_the_connection(self):
        # As it is by aiohttp.
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        server = self.serve(lambda peer: reset_in_body(peer, head))
        with self.assertRaises(aiohttp_standin.ClientError):
            self.fetch(server.url)

    def test_what_has_no_end_is_given_up(self):
        endless = 200_000 * b"a"
        for beginning, expected in (
            (b"HTTP/1.1 200 OK\r\nX: ", aiohttp_standin.ClientResponseError),
            (CHUNKED + b"1;", aiohttp_standin.ClientPayloadError),
        ):
            server = self.serve(then_hold(beginning + endless))
            with self.subTest(beginning), self.assertRaises(expected):
                self.fetch(server.url, sock_read=5.0)

    def test_so_many_requests_are_under_way_at_a_time(self):
        under_way, most = set(), []

        async def send(_method, target, *_):
            under_way.add(target.path)
            most.append(len(under_way))
            await asyncio.sleep(0)
            under_way.remove(target.path)
            return mock.Mock()

        async def work(session):
            async def one(number):
                async with session.get(f"http://127.0.0.1/{number}"):
                    pass

            with mock.patch.object(session, "_send", send):
                await asyncio.gather(*map(one, range(10)))

        with mock.patch.object(aiohttp_standin, "CONNECTION_LIMIT", 3):
            self.run_session(work)
        self.assertEqual((len(most), max(most)), (10, 3))

    def test_nothing_is_left_of_a_connection_that_is_not_waited_for_any_more(self):
        async def abandon_late():
            opening = asyncio.get_running_loop().create_future()
            opened = mock.Mock()
            opening.set_result((None, opened))
            aiohttp_standin._abandon(opening)
            await asyncio.sleep(0)
            opened.close.assert_called_once_with()

        asyncio.run(abandon_late())

        async def work(session):
            connecting = asyncio.Event()

            async def connect(*_, **__):
                connecting.set()
                await asyncio.get_running_loop().create_future()

            async def one():
                async with session.get("http://127.0.0.1:1/"):
                    pass

            before = asyncio.all_tasks()
            with mock.patch.object(session._own_loop, "create_connection", connect):
                task = asyncio.ensure_future(one())
                await connecting.wait()
                others = asyncio.all_tasks() - before - {task}
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task
                self.assertEqual(len(others), 1)
                _, left = await asyncio.wait(others, timeout=5)
            self.assertEqual(left, set())

        self.run_session(work)

    def test_the_limit_of_a_request_that_has_ended_concerns_nobody_any_more(self):
        good, bad = self.serve(answer_each), self.serve(after_request(b""))

        async def work(session):
            async with (pending := session.get(good.url)) as response:
                await response.read()
            self.assertTrue(pending._expiry.cancelled())
            with self.assertRaises(aiohttp_standin.ServerDisconnectedError):
                async with (pending := session.get(bad.url)):
                    pass
            self.assertTrue(pending._expiry.cancelled())

        self.run_session(work, total=600)

    def test_a_cancellation_at_the_moment_of_a_timeout_is_not_lost(self):
        server = self.serve(hold)
        # Before Python 3.11 a task does not know how often it was canceled.
        known = hasattr(asyncio.Task, "cancelling")

        async def work(session):
            async def one(canceled):
                task = asyncio.current_task()

                def expire_too(pending, expire=aiohttp_standin._Pending._expire):
                    expire(pending, task)
                    if canceled:
                        task.cancel()

                with mock.patch.object(
                    aiohttp_standin._Pending, "_expire", lambda pending, _: expire_too(pending)
                ):
                    try:
                        async with session.get(server.url):
                            pass
                    except asyncio.TimeoutError:
                        # As before: whoever asks later is not to find a cancellation.
                        if known:
                            self.assertEqual(task.cancelling(), 0)
                        raise

            with self.assertRaises(asyncio.TimeoutError):
                await asyncio.ensure_future(one(False))
            if known:
                with self.assertRaises(asyncio.CancelledError):
                    await asyncio.ensure_future(one(True))

        self.run_session(work, total=0.05)

    def test_a_large_body_is_kept_back_when_the_server_does_not_want_it(self):
        after = []

        def script(peer):
            head = peer.read_head()
            if head.startswith("GET"):
                peer.send(OK)
                return
            self.assertIn("Expect: 100-continue", head)
            peer.send(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
            after.append(peer.socket.recv(1))

        server = self.serve(script)

        async def work(session):
            async with session.put(server.url, data=BIG) as response:
                self.assertEqual(response.status, 201)
            async with session.get(server.url) as response:
                self.assertEqual(await response.read(), b"ok")

        self.run_session(work)
        server.close()
        self.assertEqual(after, [b""], "no byte of the body was sent, and the connection is closed")

    def test_a_large_body_is_sent_to_a_server_that_does_not_know_the_question(self):
        def script(peer):
            _, body = peer.read_request()
            peer.send(OK if body == BIG else b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n")

        self.assertEqual(self.put_big(script, patience=0.2), 200)

    def put_big(self, script, patience):
        """Return the status that `script` answers; it is asked for leave for `patience` seconds."""
        server = self.serve(script)

        async def work(session):
            async with session.put(server.url, data=BIG) as response:
                return response.status

        with mock.patch.object(connection, "CONTINUE_PATIENCE", patience):
            return self.run_session(work)

    def test_a_server_may_want_the_body_when_it_is_on_its_way_already(self):
        def script(peer):
            head = peer.read_head()
            body = peer.read_body(1000)
            # Both, while the sender waits for room: the first is no answer.
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n")
            length = int(head.lower().partition("content-length: ")[2].split()[0])
            body += peer.read_body(length - len(body))
            peer.send(OK if body == BIG else b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n")

        self.assertEqual(self.put_big(script, patience=0.05), 200)

    def test_an_answer_in_the_middle_of_a_body_ends_the_sending(self):
        def script(peer):
            if peer.read_head().startswith("GET"):
                peer.send(OK)
                return
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = peer.read_body(1000)
            peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
            peer.read_body(len(BIG) - len(body))
            answer_each(peer)  # where all of it was on its way already

        server = self.serve(script)

        async def work(session):
            async with session.put(server.url, data=BIG) as response:
                self.assertEqual(response.status, 413)
            # There the server would take it for the rest of the body.
            async with session.get(server.url) as response:
                self.assertEqual(await response.read(), b"ok")

        self.run_session(work)

    def test_answers_can_be_observed(self):
        server = self.serve(answer_each)

        async def work(session):
            with aiohttp_standin.observe_answers() as answers:
                async with session.put(f"{server.url}/x", data=b"1"):
                    pass
            async with session.get(server.url):
                pass
            return answers

        self.assertEqual(self.run_session(work), [("PUT", f"{server.url}/x", 200)])

    def test_a_password_in_the_url_becomes_basic_authentication(self):
        heads = []

        def script(peer):
            heads.append(peer.read_head())
            peer.send(OK)

        server = self.serve(script)
        self.fetch(server.url.replace("//", "//me:se:cret@"))
        self.assertIn("Authorization: Basic bWU6c2U6Y3JldA==", heads[0])
        self.assertNotIn("me:se", heads[0].partition("Authorization")[0])

    def test_a_request_that_may_not_be_repeated_is_sent_once(self):
        requests = []

        def script(peer):
            requests.append(peer.read_request())
            peer.send(OK)
            requests.append(peer.read_request())
            # closed without an answer: the client cannot know whether it was carried out

        server = self.serve(script)

        async def work(session):
            async with session.get(server.url) as response:
                await response.read()
            async with session.post(server.url) as response:
                await response.read()

        with self.assertRaises(aiohttp_standin.ServerDisconnectedError):
            self.run_session(work)
        self.assertEqual(len(requests), 2)

    def test_the_rest_of_a_short_answer_that_was_not_read_may_come_later(self):
        gone_on, served = threading.Event(), []

        def script(peer):
            while (request := peer.read_request())[0]:
                served.append(request[1])
                peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nl")
                if len(served) == 1:
                    gone_on.wait(20)
                peer.send(b"ate")

        server = self.serve(script)

        async def put(session, data):
            async with session.put(server.url, data=data) as response:
                self.assertEqual(response.status, 200)

        async def work(session):
            await put(session, b"1")
            (first,) = kept = next(iter(session._connector._idle.values()))
            self.assertFalse(first.idle)
            # Another request does not wait for it.
            await put(session, b"2")
            self.assertEqual(server.connections, 2)
            gone_on.set()
            for each in kept:
                if not each.idle:
                    await each._wait(20)  # for the rest to come
            async with session.get(server.url) as one, session.get(server.url) as other:
                self.assertEqual([await one.text(), await other.text()], ["late", "late"])
            self.assertEqual(server.connections, 2)

        self.run_session(work)
        self.assertEqual(served, [b"1", b"2", b"", b""])

    def test_a_long_answer_that_was_not_read_ends_its_connection(self):
        gone = threading.Event()

        def script(peer):
            peer.read_request()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n")
            if not peer.read_head():
                gone.set()

        server = self.serve(script)

        async def work(session):
            async with session.put(server.url, data=b"x") as response:
                self.assertEqual(response.status, 200)
            self.assertTrue(await asyncio.to_thread(gone.wait, 20))

        self.run_session(work)

    def test_a_session_is_closed_from_another_thread_without_waiting_for_its_loop(self):
        server = self.serve(answer_each)

        async def work(session):
            async with session.get(server.url) as response:
                await response.read()
            (kept,) = next(iter(session._connector._idle.values()))

            def close_like_seamless_remote():
                self.assertIsNone(session._loop)
                session._connector._close()
                session.detach()

            # The loop does nothing meanwhile: it is the one that waits.
            thread = threading.Thread(target=close_like_seamless_remote)
            thread.start()
            thread.join(20)
            self.assertFalse(thread.is_alive())
            self.assertTrue(session.closed)
            await asyncio.sleep(0)
            self.assertFalse(kept.usable)

        self.run_session(work)


if importlib.util.find_spec("aiohttp") is not None:
    import aiohttp

    class RealAiohttp(ClientSuite, unittest.TestCase):
        """The suite over the original, which shows that it asks for the right things."""

        client = aiohttp


class Waiting(unittest.IsolatedAsyncioTestCase):
    async def test_a_cancellation_in_the_same_turn_as_news_is_not_forgotten(self):
        for order in ("news first", "cancellation first"):
            with self.subTest(order):
                peer = connection.Connection()
                wait = asyncio.ensure_future(peer._wait(20.0))
                await asyncio.sleep(0)
                if order == "news first":
                    peer._announce()
                wait.cancel()
                peer._announce()
                with self.assertRaises(asyncio.CancelledError):
                    await wait

    async def test_who_waits_for_room_is_told_of_the_connections_end(self):
        peer = connection.Connection()
        peer.connection_made(mock.Mock())
        peer.pause_writing()
        sending = asyncio.ensure_future(peer._send(b"more", None))
        await asyncio.sleep(0)
        self.assertFalse(sending.done())
        peer.connection_lost(ConnectionResetError())
        await asyncio.wait({sending}, timeout=20)
        self.assertTrue(sending.done())

    async def test_room_that_does_not_come_is_not_waited_for_longer(self):
        peer = connection.Connection()
        peer.connection_made(mock.Mock())
        peer.pause_writing()
        with self.assertRaises(connection.TimedOut):
            await asyncio.wait_for(peer._send(b"more", 0.01), 20)

    async def test_what_does_not_come_is_not_waited_for_longer(self):
        with self.assertRaises(connection.TimedOut):
            await connection.Connection()._wait(0.01)


class Codings(unittest.TestCase):
    def test_what_was_asked_for_is_undone_and_nothing_else_passes(self):
        for coding, body in {
            None: b"hello",
            "identity": b"hello",
            "gzip": gzip.compress(b"he") + gzip.compress(b"llo"),
            "X-GZIP": gzip.compress(b"hello"),
            "deflate": zlib.compress(b"hello"),
        }.items():
            with self.subTest(coding):
                self.assertEqual(decode(body, coding), b"hello")
        for coding, body in {"br": b"hello", "gzip": b"hello", "deflate": b"hello"}.items():
            with self.subTest(coding), self.assertRaises(aiohttp_standin.ClientPayloadError):
                decode(body, coding)


class Aiofiles(unittest.TestCase):
    def test_files_are_read_and_looked_for(self):
        async def main(directory):
            path = directory / "x"
            path.write_bytes(b"abc")
            async with aiofiles_standin.open(str(path), "rb") as file:
                self.assertEqual(await file.read(), b"abc")
            self.assertEqual((await aiofiles_standin.os.stat(path)).st_size, 3)
            self.assertTrue(await aiofiles_standin.os.path.exists(path))
            self.assertFalse(await aiofiles_standin.os.path.exists(directory / "y"))
            with self.assertRaises(FileNotFoundError):
                await aiofiles_standin.os.stat(directory / "y")
            with self.assertRaises(FileNotFoundError):
                async with aiofiles_standin.open(directory / "y", "rb"):
                    pass

        with temporary_directory() as directory:
            asyncio.run(main(directory))


class Frozendict(unittest.TestCase):
    def test_it_is_a_dict_that_serves_as_a_key_and_does_not_change(self):
        frozen = frozendict({"a": 1, "b": frozendict(c=2)})
        self.assertEqual(frozen, {"a": 1, "b": {"c": 2}})
        self.assertEqual({frozen: "found"}[frozendict(b=frozendict(c=2), a=1)], "found")
        for change in (
            lambda: frozen.__setitem__("a", 2),
            lambda: frozen.__delitem__("a"),
            lambda: frozen.update(a=2),
            lambda: frozen.setdefault("z", 2),
            lambda: frozen.pop("a"),
            lambda: frozen.popitem(),
            lambda: frozen.clear(),
            lambda: frozen.__ior__({"a": 2}),
        ):
            with self.assertRaises(TypeError):
                change()
        self.assertEqual(frozen["a"], 1)

    def test_unhashable_values_make_it_unhashable(self):
        with self.assertRaises(TypeError):
            hash(frozendict(a=[]))


class Substitution(unittest.TestCase):
    """Which modules an import finds, before and after. In processes of their own."""

    def check(self, code):
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)

    def test_seamless_remote_gets_the_stand_ins_and_keeps_them(self):
        self.check(
            "from seamless_jobserver import transport\n"
            "transport.import_seamless_remote(); transport.import_seamless_remote()\n"
            "import seamless_remote.client as c, seamless_remote.buffer_client as b\n"
            "assert c.aiohttp is transport.aiohttp_standin\n"
            "assert b.aiofiles is transport.aiofiles_standin\n"
            "assert b.frozendict is transport.frozendict_standin.frozendict\n"
        )

    def test_a_jobs_own_import_finds_the_real_package_or_nothing(self):
        self.check(
            "import importlib.util, sys\n"
            "before = importlib.util.find_spec('aiohttp')\n"
            "from seamless_jobserver import transport\n"
            "transport.import_seamless_remote()\n"
            "for name in transport.STAND_INS: assert name not in sys.modules, name\n"
            "after = importlib.util.find_spec('aiohttp')\n"
            "assert (before is None) == (after is None)\n"
            "try: import aiohttp, aiofiles, frozendict\n"
            "except ImportError: assert before is None\n"
            "else: assert 'standin' not in aiohttp.__file__ + aiofiles.__file__\n"
        )

    def test_packages_that_were_imported_before_are_put_back(self):
        self.check(
            "import sys, types\n"
            "real = sys.modules['aiofiles'] = types.ModuleType('aiofiles')\n"
            "from seamless_jobserver import transport\n"
            "transport.import_seamless_remote()\n"
            "assert sys.modules['aiofiles'] is real\n"
            "assert 'aiofiles.os' not in sys.modules\n"
        )

    def test_a_seamless_remote_on_real_packages_is_reported(self):
        self.check(
            "import sys, types\n"
            "client = sys.modules['seamless_remote.client'] = types.ModuleType('x')\n"
            "client.aiohttp = types.ModuleType('aiohttp')\n"
            "from seamless_jobserver import transport\n"
            "try: transport.import_seamless_remote()\n"
            "except RuntimeError as error: assert 'before' in str(error)\n"
            "else: raise AssertionError\n"
        )
