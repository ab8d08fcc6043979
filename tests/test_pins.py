"""What a transformation needs before it can run."""

import unittest

from seamless_jobserver.worker.pins import needs, pins_with

A, B, C, D = (digit * 64 for digit in "abcd")


def names(transformation, dunder=None):
    return {(need.name, need.checksum) for need in needs(transformation, dunder or {})}


class Needs(unittest.TestCase):
    def test_pins_and_code_are_needed_and_settings_are_not(self):
        transformation = {
            "__language__": "python",
            "__output__": ["result", "mixed", None],
            "__meta__": {"x": A},
            "code": ["python", "transformer", A],
            "x": ["plain", None, B],
            "nothing": ["plain", None, None],
        }
        self.assertEqual(names(transformation), {("code", A), ("x", B)})

    def test_environment_schema_and_header_count_wherever_they_stand(self):
        transformation = {"code": ["text", None, A], "__language__": "c", "__schema__": B}
        dunder = {"__env__": C, "__header__": D, "__schema__": None}
        self.assertEqual(
            names(transformation, dunder),
            {("code", A), ("__schema__", B), ("__env__", C), ("__header__", D)},
        )

    def test_python_code_is_fetched_as_it_was_written(self):
        transformation = {"code": ["python", None, A], "__code_checksum__": B}
        self.assertEqual(names(transformation), {("code", B)})
        transformation["__language__"] = "bash"
        self.assertEqual(names(transformation), {("code", A)})

    def test_pins_that_are_used_by_path_are_not_loaded(self):
        transformation = {
            "code": ["text", None, A],
            "file": ["bytes", None, B],
            "plain": ["bytes", None, C],
            "__format__": {"file": {"filesystem": {"mode": "file"}}, "plain": {"celltype": "x"}},
        }
        self.assertEqual(names(transformation), {("code", A), ("plain", C)})

    def test_pins_that_may_be_used_by_path_are_loaded_where_there_is_no_path(self):
        directory = {"filesystem": {"mode": "directory"}}
        either = {"filesystem": {"mode": "file", "optional": True}}
        deep = {"filesystem": {"mode": "directory", "optional": True}, "celltype": "deepfolder"}
        transformation = {
            "__language__": "bash",
            "code": ["text", None, A],
            "folder": ["folder", None, B],
            "either": ["bytes", None, C],
            "deep": ["mixed", None, D],
            "__format__": {"folder": directory, "either": either, "deep": deep},
        }
        paths = set()
        for present, wanted in (
            ({}, {("folder", "folder", B), ("either", "bytes", C), ("deep", "mixed", D)}),
            ({(B, "directory")}, {("either", "bytes", C), ("deep", "mixed", D)}),
            ({(B, "directory"), (C, "file"), (D, "directory")}, set()),
        ):
            paths = present
            found = needs(transformation, {}, lambda *asked, there=paths: asked in there)
            kinds = {(need.name, need.celltype, need.checksum) for need in found}
            self.assertEqual(kinds - {("code", "text", A)}, wanted)

    def test_missing_inputs_are_fatal_unless_there_is_another_way_to_them(self):
        pins = {"code": ["python", None, A], "x": ["plain", None, B]}
        optional = {need.name: need.optional for need in needs(pins, {})}
        self.assertEqual(optional, {"code": False, "x": False})
        with_text = {**pins, "__code_text__": "1"}
        optional = {need.name: need.optional for need in needs(with_text, {})}
        self.assertEqual(optional, {"code": True, "x": False})
        fingertip = {"__meta__": {"allow_input_fingertip": True}}
        optional = {need.name: need.optional for need in needs(pins, fingertip)}
        self.assertEqual(optional, {"code": True, "x": True})

    def test_a_checksum_may_be_in_capital_letters(self):
        asked = []
        transformation = {
            "code": ["text", None, A.upper()],
            "tree": ["mixed", None, B.upper()],
            "__language__": "bash",
            "__schema__": C.upper(),
            "__format__": {"tree": {"filesystem": {"mode": "directory"}}},
        }
        found = needs(transformation, {}, lambda *one: asked.append(one))
        self.assertEqual([need.checksum for need in found], [A, B, C])
        self.assertEqual(asked, [(B, "directory")])

    def test_a_checksum_is_traced_back_to_its_pins(self):
        transformation = {"code": ["python", None, A], "x": ["plain", None, B], "y": ["", None, B]}
        self.assertEqual(pins_with(B, transformation, {"__env__": B}), ["x", "y", "__env__"])
        self.assertEqual(pins_with(C, transformation, {}), [])
        written = {"code": ["python", None, A], "__code_checksum__": C}
        self.assertEqual(pins_with(C, written, {}), ["__code_checksum__"])
