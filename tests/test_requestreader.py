"""Reading requests from a connection, whatever the pieces in which they come."""

import time
import unittest

from seamless_jobserver import http1
from seamless_jobserver.server.requestreader import ClientGone, RequestReader

REQUEST = b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
# What may stand before a request and after it.
STREAMS = {
    "a request": REQUEST,
    "after an empty line": b"\r\n" + REQUEST,
    "after two": b"\r\n\r\n" + REQUEST,
    "two of them": 2 * REQUEST,
}


class Pieces:
    """A connection that gives what it has in the pieces that the test says."""

    def __init__(self, pieces):
        self.pieces = list(pieces)
        self.told = b""

    def settimeout(self, seconds):
        assert seconds > 0

    def recv(self, most):
        piece = self.pieces.pop(0) if self.pieces else b""
        assert len(piece) <= most
        return piece

    def sendall(self, data):
        self.told += data


class Reading(unittest.TestCase):
    def read(self, pieces, requests):
        reader, connection = RequestReader(1000), Pieces(pieces)
        deadline = time.monotonic() + 60
        for _ in range(requests):
            head = http1.parse_request_head(reader.head(connection, deadline))
            self.assertEqual(head.target, "/a")
            self.assertEqual(reader.body(connection, head, deadline), b"abc")
        self.assertEqual(reader.pending, 0)

    def test_a_request_is_the_same_wherever_it_is_cut(self):
        for name, stream in STREAMS.items():
            requests = stream.count(b"GET")
            with self.subTest(name):
                self.read([stream], requests)
                self.read([bytes([byte]) for byte in stream], requests)
                for cut in range(1, len(stream)):
                    self.read([stream[:cut], stream[cut:]], requests)

    def test_a_body_may_have_as_many_bytes_as_are_allowed(self):
        reader = RequestReader(3)
        deadline = time.monotonic() + 60
        head = http1.parse_request_head(reader.head(Pieces([REQUEST]), deadline))
        self.assertEqual(reader.body(Pieces([]), head, deadline), b"abc")

    def test_only_who_waits_to_be_asked_for_a_body_is_asked(self):
        asks = "Expect: 100-continue\r\n"
        # An HTTP/1.0 client would take it for the answer (RFC 9110 §15.2).
        for version, fields, body_is_here, asked in (
            ("1.1", asks, False, True),
            ("1.1", asks, True, False),
            ("1.1", "", False, False),
            ("1.0", asks, False, False),
        ):
            head = f"GET /a HTTP/{version}\r\nHost: x\r\n{fields}Content-Length: 3\r\n\r\n".encode()
            connection = Pieces([head + b"abc"] if body_is_here else [head, b"abc"])
            reader, deadline = RequestReader(1000), time.monotonic() + 60
            with self.subTest(head, body_is_here=body_is_here):
                parsed = http1.parse_request_head(reader.head(connection, deadline))
                self.assertEqual(reader.body(connection, parsed, deadline), b"abc")
                self.assertEqual(connection.told, b"HTTP/1.1 100 Continue\r\n\r\n" * asked)

    def test_what_has_not_come_when_its_time_is_over_is_not_waited_for(self):
        reader, connection, now = RequestReader(1000), Pieces([REQUEST[:-1]]), time.monotonic()
        late = http1.parse_request_head(reader.head(connection, now + 60))
        for read in (
            lambda: RequestReader(1000).head(connection, now),
            lambda: reader.body(connection, late, now),
        ):
            with self.assertRaises(http1.MalformedMessage) as caught:
                read()
            self.assertEqual(caught.exception.status, 408)

    def test_one_that_ends_early_or_is_too_long_is_none(self):
        for cut in (1, 10, len(REQUEST) - 1):
            with self.subTest(cut=cut), self.assertRaises(ClientGone):
                self.read([REQUEST[:cut]], 1)
        with self.assertRaises(http1.MalformedMessage) as caught:
            self.read([b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n"], 1)
        self.assertEqual(caught.exception.status, 413)
