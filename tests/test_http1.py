"""The framing of HTTP messages: what is taken, and what is refused with which status."""

import unittest

from seamless_jobserver import http1

GOOD_REQUESTS = {
    b"GET / HTTP/1.1\r\nHost: a": ("GET", "/", (1, 1)),
    b"GET / HTTP/1.0": ("GET", "/", (1, 0)),
    b"POST /x?y=z HTTP/1.1\r\nhost:a\r\nX-Empty:": ("POST", "/x?y=z", (1, 1)),
    b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe9\t \xff": ("GET", "/", (1, 1)),
    b"OPTIONS * HTTP/1.1\r\nHost: a": ("OPTIONS", "*", (1, 1)),
    # In absolute form, as to a proxy.
    b"GET http://b:1/x?y HTTP/1.1\r\nHost: a": ("GET", "/x?y", (1, 1)),
    b"GET HTTPS://b HTTP/1.1\r\nHost: a": ("GET", "/", (1, 1)),
    b"GET http://b?y HTTP/1.1\r\nHost: a": ("GET", "/?y", (1, 1)),
    b"GET http:///y HTTP/1.1\r\nHost: a": ("GET", "http:///y", (1, 1)),
    b"GET / HTTP/1.1\r\nHost: a" + b"\r\nX: y" * (http1.MAX_FIELDS - 1): ("GET", "/", (1, 1)),
}

BAD_REQUESTS = {
    b"": 400,
    b"GET /": 400,  # HTTP/0.9
    b"GET  / HTTP/1.1\r\nHost: a": 400,
    b"G(T / HTTP/1.1\r\nHost: a": 400,
    b"GET /\x7f HTTP/1.1\r\nHost: a": 400,
    b"GET / HTTP/11\r\nHost: a": 400,
    b"GET / HTTPS/1.1\r\nHost: a": 400,
    b"PRI * HTTP/2.0": 505,
    b"GET / HTTP/0.9\r\nHost: a": 505,
    b"GET / HTTP/1.1": 400,  # no Host
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nX": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nX : y": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\n folded": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\nY: b": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b": 400,
    # At an end of the value, where white space may be: these are none.
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nX: \x0ba": 400,
    b"GET / HTTP/1.1\nHost: a": 400,
    b"GET /" + b"a" * http1.MAX_START_LINE + b" HTTP/1.1\r\nHost: a": 414,
    b"GET / HTTP/1.1\r\nHost: a" + b"\r\nX: y" * http1.MAX_FIELDS: 431,
    b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * http1.MAX_HEAD: 431,
}

BODY_LENGTHS = {
    (): 0,
    (("Content-Length", "0"),): 0,
    (("Content-Length", "12"),): 12,
    (("Content-Length", "12"), ("content-length", "12")): 12,
    (("Content-Length", "12, 12"),): 12,
}

BAD_BODY_LENGTHS = {
    (("Content-Length", "12"), ("Content-Length", "13")): 400,
    (("Content-Length", "12, 13"),): 400,
    (("Content-Length", "-1"),): 400,
    (("Content-Length", "+1"),): 400,
    (("Content-Length", "0x10"),): 400,
    (("Content-Length", "1_0"),): 400,
    (("Content-Length", "1 0"),): 400,
    (("Content-Length", "١٢"),): 400,
    (("Content-Length", "\xa05"),): 400,
    (("Content-Length", "5\x85"),): 400,
    (("Content-Length", ""),): 400,
    (("Content-Length", "9" * 30),): 400,
    (("Transfer-Encoding", "chunked"),): 501,
    (("Transfer-Encoding", "gzip"),): 501,
    (("Transfer-Encoding", "chunked"), ("Content-Length", "3")): 400,
}


class RequestHeads(unittest.TestCase):
    def test_well_formed_heads_are_taken_apart(self):
        for block, (method, target, version) in GOOD_REQUESTS.items():
            with self.subTest(block[:60]):
                head = http1.parse_request_head(block)
                self.assertEqual(
                    (head.method, head.target, head.version), (method, target, version)
                )

    def test_malformed_heads_are_refused_with_the_right_status(self):
        for block, status in BAD_REQUESTS.items():
            with self.subTest(block[:60]), self.assertRaises(http1.MalformedMessage) as caught:
                http1.parse_request_head(block)
            self.assertEqual(caught.exception.status, status, block[:60])

    def test_the_server_that_an_absolute_form_names_counts_and_not_host(self):
        head = http1.parse_request_head(b"GET http://b:1/x HTTP/1.1\r\nhost: a")
        self.assertEqual(head.fields.all("Host"), ["b:1"])

    def test_fields_are_found_whatever_their_case(self):
        head = http1.parse_request_head(b"GET / HTTP/1.1\r\nhOST: a\r\nX: 1\r\nx:  2 ")
        self.assertEqual(head.fields.get("Host"), "a")
        self.assertEqual(head.fields.all("X"), ["1", "2"])
        self.assertIsNone(head.fields.get("Y"))

    def test_persistence_follows_version_and_connection_field(self):
        for version, connection, expected in (
            ("1.1", None, True),
            ("1.1", "close", False),
            ("1.1", "Keep-Alive, CLOSE", False),
            ("1.0", None, False),
            ("1.0", "keep-alive", True),
        ):
            line = f"\r\nConnection: {connection}" if connection else ""
            block = f"GET / HTTP/{version}\r\nHost: a{line}".encode()
            with self.subTest(block):
                self.assertIs(http1.parse_request_head(block).keep_alive, expected)


class BodyLengths(unittest.TestCase):
    def test_the_length_of_a_request_body_is_what_the_fields_say(self):
        for pairs, length in BODY_LENGTHS.items():
            with self.subTest(pairs):
                self.assertEqual(http1.request_body_length(http1.Fields(pairs)), length)

    def test_lengths_that_could_be_read_in_two_ways_are_refused(self):
        for pairs, status in BAD_BODY_LENGTHS.items():
            with self.subTest(pairs), self.assertRaises(http1.MalformedMessage) as caught:
                http1.request_body_length(http1.Fields(pairs))
            self.assertEqual(caught.exception.status, status, pairs)


class Responses(unittest.TestCase):
    def test_a_rendered_response_is_read_back_as_it_was(self):
        block = http1.render_response(200, "OK", {"X": "y"}, b"body")
        head_block, body = block.split(b"\r\n\r\n")
        head = http1.parse_response_head(head_block)
        self.assertEqual((head.status, head.reason, body), (200, "OK", b"body"))
        self.assertEqual(http1.response_body_framing("GET", head).length, 4)

    def test_an_answer_to_head_keeps_the_length_and_has_no_body(self):
        block = http1.render_response(200, "OK", {}, b"body", head_only=True)
        self.assertIn(b"Content-Length: 4", block)
        self.assertTrue(block.endswith(b"\r\n\r\n"))

    def test_an_answer_that_has_no_body_by_nature_names_no_length(self):
        self.assertEqual(
            http1.render_response(204, "No Content", {"X": "y"}, b""),
            b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n",
        )

    def test_the_end_of_a_response_body_is_found(self):
        for method, block, expected in (
            ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 7", http1.BodyFraming(length=7)),
            ("GET", b"HTTP/1.1 200 OK", http1.BodyFraming()),
            (
                "GET",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked",
                http1.BodyFraming(chunked=True),
            ),
            ("GET", b"HTTP/1.1 204 No Content", http1.BodyFraming(length=0)),
            ("GET", b"HTTP/1.1 304 X\r\nContent-Length: 7", http1.BodyFraming(length=0)),
            ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 7", http1.BodyFraming(length=0)),
        ):
            with self.subTest(block):
                head = http1.parse_response_head(block)
                self.assertEqual(http1.response_body_framing(method, head), expected)

    def test_contradicting_response_fields_are_refused(self):
        for fields in (
            b"Transfer-Encoding: chunked\r\nContent-Length: 7",
            b"Transfer-Encoding: gzip, chunked",
            b"Content-Length: 7\r\nContent-Length: 8",
        ):
            head = http1.parse_response_head(b"HTTP/1.1 200 OK\r\n" + fields)
            with self.subTest(fields), self.assertRaises(http1.MalformedMessage):
                http1.response_body_framing("GET", head)

    def test_malformed_status_lines_are_refused(self):
        for block in (
            b"",
            b"HTTP/1.1",
            b"HTTP/1.1 20 OK",
            b"HTTP/1.1 600 X",
            b"ICY 200 OK",
            b"HTTP/1.1 200 OK\nX: y",
            b"HTTP/1.1 200 OK\rX: y",
        ):
            with self.subTest(block), self.assertRaises(http1.MalformedMessage):
                http1.parse_response_head(block)

    def test_chunk_sizes_are_hexadecimal_and_bounded(self):
        self.assertEqual(http1.parse_chunk_size(b"1a;name=value"), 26)
        for line in (b"", b"-1", b"0x10", b"1" * 17, b"1\r", b"\n1", b"1\x0b"):
            with self.subTest(line), self.assertRaises(http1.MalformedMessage):
                http1.parse_chunk_size(line)

    def test_a_request_head_cannot_be_given_another_line(self):
        for end in ("\r\n", "\r", "\n"):
            with self.subTest(end):
                with self.assertRaises(ValueError):
                    http1.render_request("GET", "/", {"X": f"a{end}Y: b"})
                with self.assertRaises(ValueError):
                    http1.render_request("GET", f"/{end}Y: b", {})
