"""Run requests: each malformed field is refused, and named."""

import json
import pickle
import unittest
from unittest import mock

from seamless_jobserver.errors import InvalidJSON, InvalidPayload
from seamless_jobserver.server.payload import parse_checksum, parse_run_request

CHECKSUM = "ab" * 32
PIN = ["plain", None, CHECKSUM]
OUTPUT = ["result", "mixed", None]


def payload(**changes):
    """Return a valid payload, with fields changed; the value ``...`` leaves a field out."""
    fields = {
        "transformation_dict": {"__output__": OUTPUT, "code": PIN, "a": PIN},
        "tf_checksum": CHECKSUM,
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


def transformation(**changes):
    fields = {"__output__": OUTPUT, "code": PIN, **changes}
    fields = {name: value for name, value in fields.items() if value is not ...}
    return payload(transformation_dict=fields)


BAD_FIELDS = [
    ([], "body"),
    ("text", "body"),
    (None, "body"),
    (payload(transformation_dict=...), "transformation_dict"),
    (payload(transformation_dict=None), "transformation_dict"),
    (payload(transformation_dict=[]), "transformation_dict"),
    (payload(tf_checksum=...), "tf_checksum"),
    (payload(tf_checksum=7), "tf_checksum"),
    (payload(tf_checksum="zz" * 32), "tf_checksum"),
    (payload(tf_checksum=CHECKSUM + "\n"), "tf_checksum"),
    (payload(tf_checksum="ab" * 31), "tf_checksum"),
    (payload(tf_checksum="٠" * 64), "tf_checksum"),
    (payload(tf_dunder=[]), "tf_dunder"),
    (payload(tf_dunder={"__meta__": 1}), "tf_dunder.__meta__"),
    (payload(tf_dunder={"__env__": "x"}), "tf_dunder.__env__"),
    (payload(scratch=1), "scratch"),
    (payload(scratch="true"), "scratch"),
    (payload(strict_dunder=0), "strict_dunder"),
    (payload(record="no"), "record"),
    (transformation(code=...), "transformation_dict.code"),
    (transformation(__output__=...), "transformation_dict.__output__"),
    (transformation(__output__="result"), "transformation_dict.__output__"),
    (transformation(__output__=["result", "mixed"]), "transformation_dict.__output__"),
    (transformation(__output__=["result", None, None]), "transformation_dict.__output__"),
    (transformation(__output__=["", "mixed", None]), "transformation_dict.__output__"),
    (transformation(__output__=["result", "mixed", 1]), "transformation_dict.__output__"),
    (transformation(a=CHECKSUM), "transformation_dict.a"),
    (transformation(a=["plain", CHECKSUM]), "transformation_dict.a"),
    (transformation(a=[1, None, CHECKSUM]), "transformation_dict.a"),
    (transformation(a=["plain", 1, CHECKSUM]), "transformation_dict.a"),
    (transformation(a=["plain", None, "ab"]), "transformation_dict.a"),
    (transformation(a=["plain", None, 5]), "transformation_dict.a"),
    (transformation(__language__=1), "transformation_dict.__language__"),
    (transformation(__env__={}), "transformation_dict.__env__"),
    (transformation(__schema__="x"), "transformation_dict.__schema__"),
    (transformation(__header__="x"), "transformation_dict.__header__"),
    (transformation(__compilation__="x"), "transformation_dict.__compilation__"),
    (transformation(__code_text__=[]), "transformation_dict.__code_text__"),
    (transformation(__meta__=[]), "transformation_dict.__meta__"),
    (transformation(__as__="x"), "transformation_dict.__as__"),
    (transformation(__format__=[]), "transformation_dict.__format__"),
    (transformation(code=["python", "transformer", None]), "transformation_dict.code"),
    (transformation(__as__={"a": ["x"]}), "transformation_dict.__as__.a"),
    (transformation(__format__={"a": "file"}), "transformation_dict.__format__.a"),
    (
        transformation(__format__={"a": {"filesystem": "file"}}),
        "transformation_dict.__format__.a",
    ),
    (transformation(__code_checksum__="x"), "transformation_dict.__code_checksum__"),
]

BAD_JSON = [
    b"",
    b"{",
    b"\xff\xfe",
    b'{"a": NaN}',
    b'{"a": Infinity}',
    b"[" * 200_000,
    b'{"a": ' + b"9" * 5000 + b"}x",
    b"{} {}",
]


class RunRequests(unittest.TestCase):
    def test_a_minimal_request_gets_the_defaults(self):
        request = parse_run_request(json.dumps(payload()).encode())
        self.assertEqual(request.checksum, CHECKSUM)
        self.assertEqual(request.dunder, {})
        self.assertFalse(request.scratch or request.strict_dunder or request.record)

    def test_all_fields_are_taken_over(self):
        request = parse_run_request(
            json.dumps(
                payload(
                    tf_checksum=CHECKSUM.upper(),
                    tf_dunder={"__meta__": {"local": False}},
                    scratch=True,
                    strict_dunder=True,
                    record=True,
                )
            ).encode()
        )
        self.assertEqual(request.checksum, CHECKSUM)
        self.assertEqual(request.dunder, {"__meta__": {"local": False}})
        self.assertTrue(request.scratch and request.strict_dunder and request.record)

    def test_what_clients_may_leave_open_can_be_null(self):
        body = json.dumps(payload(tf_dunder=None, scratch=None, record=None)).encode()
        self.assertEqual(parse_run_request(body).dunder, {})

    def test_pins_without_a_checksum_and_unknown_keys_pass(self):
        body = json.dumps(transformation(a=["plain", None, None], __newer__=1)).encode()
        self.assertIn("a", parse_run_request(body).transformation)

    def test_each_malformed_field_is_named(self):
        for value, field in BAD_FIELDS:
            with self.subTest(field), self.assertRaises(InvalidPayload) as caught:
                parse_run_request(json.dumps(value).encode())
            self.assertEqual(caught.exception.field, field)
            self.assertIn(f"Invalid payload: {field}: ", str(caught.exception))

    def test_what_is_not_json_is_called_that(self):
        for body in BAD_JSON:
            with self.subTest(body[:20]), self.assertRaises(InvalidJSON) as caught:
                parse_run_request(body)
            self.assertTrue(str(caught.exception).startswith("Invalid JSON: "))

    def test_hostile_names_and_values_do_not_blow_up_the_message(self):
        for value in (transformation(**{"x" * 100_000: 1}), payload(tf_checksum="y" * 100_000)):
            with self.assertRaises(InvalidPayload) as caught:
                parse_run_request(json.dumps(value).encode())
            self.assertLess(len(str(caught.exception)), 300)

    def test_more_values_than_can_be_parsed_in_a_moment_are_refused_before(self):
        for value, count in (
            ("[],", 1_000_001),
            ("1,", 1_000_001),
            ('{"a":1},', 1_000_001),
            # There are few commas in these.
            (100 * "[" + 100 * "]" + ",", 10_000),
            (50 * '{"a":' + "1" + 50 * "}" + ",", 20_000),
        ):
            body = b"[" + value.encode() * count + b"1]"
            with (
                self.subTest(value[:10]),
                mock.patch.object(json, "loads") as parse,
                self.assertRaisesRegex(InvalidJSON, "over 1,000,000 values"),
            ):
                parse_run_request(body)
            parse.assert_not_called()

    def test_what_is_nested_so_deeply_that_a_worker_could_not_be_sent_it_is_refused(self):
        whole = json.dumps(payload(tf_dunder={"__meta__": {"deep": 0}}))
        for depth, fits in ((90, True), (101, False), (600, False), (980, False)):
            body = whole.replace('"deep": 0', '"deep": ' + depth * "[" + depth * "]").encode()
            with self.subTest(depth):
                if fits:
                    pickle.dumps(parse_run_request(body))
                else:
                    self.assertRaises(InvalidJSON, parse_run_request, body)

    def test_checksums_are_normalized(self):
        self.assertEqual(parse_checksum(CHECKSUM.upper()), CHECKSUM)
        self.assertIsNone(parse_checksum("0x" + CHECKSUM[2:]))
