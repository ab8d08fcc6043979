"""Whatever comes over the wire: parsers, validation and a whole connection under hypothesis.

``python -m tests.test_fuzz MINUTES`` goes on for so long, each round with other examples, and prints
how many there were; a failure ends it.
"""

import json
import logging
import re
import socket
import sys
import threading
import time
import unittest

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seamless_jobserver import http1
from seamless_jobserver.errors import InvalidJSON, InvalidPayload
from seamless_jobserver.messages import RunRequest
from seamless_jobserver.server.access import AccessRules, Gate, Standing
from seamless_jobserver.server.connection import ClientGone, Connection, Terms
from seamless_jobserver.server.hangups import Hangups
from seamless_jobserver.server.idle import Activity
from seamless_jobserver.server.payload import parse_run_request
from seamless_jobserver.server.places import Places
from seamless_jobserver.server.response import text_response
from tests.test_access import TRANSFORMATION

FUZZ = settings(
    deadline=None,
    database=None,
    max_examples=4000,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
MAX_BODY = 4096
count = 0

# Pieces of which both good and bad requests are made, good ones more often.
METHODS = st.sampled_from([b"GET", b"POST", b"HEAD", b"PUT", b"get", b"G@T", b"", b"A" * 9000])
TARGETS = st.one_of(
    st.sampled_from([b"/", b"/run-transformation", b"*", b"http://x/", b"/%00", b"/ a", b""]),
    st.binary(max_size=20),
)
VERSIONS = st.sampled_from(
    [
        b"HTTP/1.1",
        b"HTTP/1.1",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"HTTP/1.10",
        b"http/1.1",
        b"",
    ]
)
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b""])
FIELDS = st.one_of(
    st.sampled_from(
        [
            b"Host: x",
            b"Host: y",
            b"Connection: close",
            b"Connection: keep-alive",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding : chunked",
            b"Expect: 100-continue",
            b"Expect: x",
            b"X: a\0b",
            b" folded",
            b"X",
            b": x",
            b"Content-Length: 5, 5",
            b"content-length: +5",
        ]
    ),
    st.integers(-1, 40).map(lambda length: b"Content-Length: %d" % length),
    st.binary(max_size=30),
)


@st.composite
def requests(draw):
    """Return bytes that look like one request, more or less."""
    line = b" ".join((draw(METHODS), draw(TARGETS), draw(VERSIONS)))
    fields = draw(st.lists(FIELDS, max_size=5))
    rows = [line, b"Host: x" if draw(st.booleans()) else b"X: y", *fields]
    head = b"".join(row + draw(ENDS) for row in rows)
    return head + draw(ENDS) + draw(st.binary(max_size=40))


STREAMS = st.one_of(
    st.binary(max_size=400), st.lists(requests(), min_size=1, max_size=4).map(b"".join)
)

# A second, independent reading of RFC 9112, stricter than any server need be.
_REQUEST = re.compile(
    rb"(?:\r\n)*([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e]+) HTTP/1\.([0-9])\r\n"
    rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*)\r\n"
)


def strict_reading(stream):
    """Return the requests at the beginning of `stream`, up to the first that is not well formed."""
    found = []
    while (match := _REQUEST.match(stream)) is not None:
        method, target, minor, block = match.groups()
        names = [
            (row.partition(b":")[0].lower(), row.partition(b":")[2].strip(b" \t"))
            for row in block.split(b"\r\n")[:-1]
        ]
        lengths = {value for name, value in names if name == b"content-length"}
        numbers = {part.strip(b" \t") for value in lengths for part in value.split(b",")}
        coded = any(name == b"transfer-encoding" for name, _ in names)
        if coded or len(numbers) > 1 or not all(number.isdigit() for number in numbers):
            return found
        length = int(numbers.pop()) if numbers else 0
        start = match.end()
        if len(stream) < start + length:
            return found
        found.append((method.decode(), target.decode(), stream[start : start + length]))
        stream = stream[start + length :]
        del minor
    return found


_TERMS = Terms(
    Gate(AccessRules(any_user=True)),
    None,
    MAX_BODY,
    lambda: False,
    lambda kind: None,
    Places(1),
    Places(1),
    Hangups(),
)


def converse(stream, cuts):
    """Send `stream`, cut in pieces, to a connection; return what it asked and what it answered."""
    asked = []

    def answer(head, body, _waiting):
        asked.append((head.method, head.target, body))
        return text_response(200, "OK")

    theirs, ours = socket.socketpair()
    failures = []

    def serve():
        try:
            with ours:
                Connection(ours, _TERMS, Standing.OWNER).serve(answer, Activity())
        except (OSError, ClientGone):
            pass
        except Exception as error:  # noqa: BLE001 - it is what is looked for
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    received = b""
    with theirs:
        theirs.settimeout(20)
        try:
            position = 0
            for cut in (*sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)):
                theirs.sendall(stream[position:cut])
                position = cut
            theirs.shutdown(socket.SHUT_WR)
            while piece := theirs.recv(65536):
                received += piece
        except (BrokenPipeError, ConnectionResetError):
            pass
    thread.join(20)
    if thread.is_alive():
        raise AssertionError("the connection does not end")
    if failures:
        raise failures[0]
    return asked, received


class Requests(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    @FUZZ
    @given(st.one_of(st.binary(max_size=300), requests()))
    def test_a_head_is_parsed_or_refused(self, block):
        note()
        try:
            head = http1.parse_request_head(block)
            length = http1.request_body_length(head.fields)
        except http1.MalformedMessage as fault:
            self.assertIn(fault.status, {400, 413, 414, 431, 501, 505})
            self.assertLess(len(str(fault)), 500)
        else:
            self.assertGreaterEqual(length, 0)
            self.assertNotRegex(head.target, r"[\s\x00]")

    @settings(FUZZ, max_examples=3000)
    @given(STREAMS, st.lists(st.integers(0, 500), max_size=4))
    def test_a_connection_answers_what_a_strict_reading_finds_and_nothing_else(self, stream, cuts):
        note()
        asked, received = converse(stream, cuts)
        self.assertEqual(asked, strict_reading(stream)[: len(asked)])
        for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received):
            self.assertTrue(status < b"500" or status in (b"501", b"505"), received[:200])

    @FUZZ
    @given(st.binary(max_size=300), st.sampled_from(["GET", "HEAD", "PUT"]))
    def test_an_answer_of_a_server_is_parsed_or_refused(self, noise, method):
        note()
        for block in (noise, b"HTTP/1.1 200 OK\r\n" + noise, b"HTTP/1.1 204 \r\n" + noise):
            try:
                http1.response_body_framing(method, http1.parse_response_head(block))
                http1.parse_chunk_size(noise)
            except http1.MalformedMessage:
                continue


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELD_NAMES = st.sampled_from(
    ["transformation_dict", "tf_checksum", "tf_dunder", "scratch", "strict_dunder", "record", "x"]
)
PIN_NAMES = st.sampled_from(
    ["code", "a", "__language__", "__output__", "__as__", "__format__", "__meta__", "__env__"]
)


class Payloads(unittest.TestCase):
    @FUZZ
    @given(
        JSON,
        st.dictionaries(FIELD_NAMES, JSON, max_size=3),
        st.dictionaries(PIN_NAMES, JSON, max_size=3),
        st.binary(max_size=60),
    )
    def test_a_body_is_a_request_or_refused_with_a_bounded_message(
        self, anything, fields, pins, noise
    ):
        note()
        good = {"transformation_dict": {**TRANSFORMATION, **pins}, "tf_checksum": "ab" * 32}
        for body in (
            noise,
            json.dumps(anything).encode(),
            json.dumps({**good, **fields}).encode(),
            json.dumps(good).encode()[: len(noise) * 5],
        ):
            try:
                request = parse_run_request(body)
            except (InvalidJSON, InvalidPayload) as refusal:
                self.assertLess(len(str(refusal)), 1000)
            else:
                self.assertIsInstance(request, RunRequest)
                self.assertRegex(request.checksum, r"\A[0-9a-f]{64}\Z")


def note():
    global count
    count += 1


def main(minutes):
    """Fuzz for so many minutes; return an exit code."""
    deadline = time.monotonic() + 60 * minutes
    rounds = 0
    while time.monotonic() < deadline:
        suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__])
        result = unittest.TextTestRunner(verbosity=0).run(suite)
        rounds += 1
        print(f"{rounds} rounds, {count} examples", flush=True)
        if not result.wasSuccessful():
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
