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

    def settimeout(self, seconds):
        assert seconds > 0

    def recv(self, most):
        piece = self.pieces.pop(0) if self.pieces else b""
        assert len(piece) <= most
        return piece


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

    def test_one_that_ends_early_or_is_too_long_is_none(self):
        for cut in (1, 10, len(REQUEST) - 1):
            with self.subTest(cut=cut), self.assertRaises(ClientGone):
                self.read([REQUEST[:cut]], 1)
        with self.assertRaises(http1.MalformedMessage) as caught:
            self.read([b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n"], 1)
        self.assertEqual(caught.exception.status, 413)
