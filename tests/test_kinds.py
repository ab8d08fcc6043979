"""Every kind of transformation, through the real client, with and without a read folder."""

import gzip
import hashlib
import json
import os
import sys

from tests.stack import ROOT, ClientHung, Jobserver, run_client
from tests.test_running import IDENTITY, MEGABYTE, OnAStore

# What `kinds_client` must print for each kind: a value, or a part of an exception's text.
EXPECTED = {
    "function": 3,
    "block": 41,
    "expression": 10,
    "lambda_": 5,
    "celltypes": dict.fromkeys(
        ("plain", "mixed", "text", "bytes", "binary", "str", "int", "float", "bool"),
        True,
    ),
    "checksum_celltype": True,
    "several_hundred_pins": sum(range(400)),
    "module_as_pin": 15,
    "package_as_pin": 78,
    "bash": "6\nmore",
    "bash_with_several_results": {"a.txt": "one\n", "sub/b.txt": "two\n"},
    "deepcell_result_and_input": [3000, 3009],
    "folder_input": [2001, "leaf 7\n", "from the client"],
    "folder_result_and_deepfolder_input": [2000, "leaf 2000\n"],
    "scratch": True,
    "driver": [1, True],
    "local": True,
    "write_remote_job": ["infile", "transform.sh"],
    "allow_input_fingertip": "made " * 12,
    "conda_environment_that_does_not_exist": ("Cannot activate conda environment",),
    "none_as_result": ("RuntimeError: Result is empty",),
    "empty_buffer": True,
    "compiled": 304,
    "compiled_metadata": [64, True],
    "compiled_with_extra_object": 17,
}


class KindsSuite(OnAStore):
    """Runs the client for each kind, which is a test of its own."""

    read_folder: bool

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        parameters = cls.store.parameters(read_folder=cls.read_folder)
        flags = ("--input-timeout", "20")  # for inputs that a client has lost
        cls.server = Jobserver(cls.directory / "shared", parameters, workers=2, flags=flags)
        cls.addClassCleanup(cls.server.stop)
        cls.given = {
            "parameters": parameters,
            "jobserver": f"http://127.0.0.1:{cls.server.port}",
        }

        # One client for all, since a client takes longer to start than a kind to run.
        cls.outcomes = cls.run_kinds("together", EXPECTED, timeout=150)

    def check(self, kind):
        outcome, expected = self.outcome(kind), EXPECTED[kind]
        if isinstance(expected, tuple):
            self.assertIn(expected[0], outcome.get("value") or outcome.get("error"))
        else:
            self.assertEqual(outcome, {"value": expected})
        self.assertNotIn("is replaced", self.server.log, "no ordinary kind costs a worker")

    def outcome(self, kind):
        """Return what came of a kind, from a client of its own where the one for all failed.

        A client whose store was given to it, and not launched, can wait for itself for ever
        (seamless-remote 0.4.0, a flush on a running loop), or lose an input that it has promised
        (protocol.md, promises). It is started again then.
        """
        outcomes = self.outcomes
        for attempt in range(3):
            outcome = outcomes.get(kind)
            if outcome is not None and "Input not delivered" not in str(outcome):
                return outcome
            outcomes = self.run_kinds(f"{kind}-{attempt}", [kind], timeout=60)
        raise AssertionError("three clients have hung, or lost an input that they had promised")

    @classmethod
    def run_kinds(cls, name, kinds, timeout):
        """Have one client run `kinds`; return what came of those that it got to."""
        folder = cls.directory / f"client-{name}"
        folder.mkdir()
        given = json.dumps({**cls.given, "directory": str(folder)})
        client = str(ROOT / "tests" / "kinds_client.py")
        try:
            output = run_client([sys.executable, client, given, *kinds], folder, timeout=timeout)
        except ClientHung as hung:
            output = str(hung)
        outcomes = {}
        for line in output.splitlines():
            if line.startswith("OUTCOME "):
                kind, _, outcome = line.removeprefix("OUTCOME ").partition(" ")
                outcomes[kind] = json.loads(outcome)
        lost = [kind for kind in kinds if "Input not delivered" in str(outcomes.get(kind))]
        if lost or len(outcomes) < len(kinds):
            print(output[-20_000:], cls.store.log()[-5000:], sep="\n", file=sys.stderr)
        return outcomes


def _one_test_a_kind(suite):
    for kind in EXPECTED:
        name = f"test_{kind.rstrip('_')}"
        setattr(suite, name, lambda self, kind=kind: self.check(kind))
    return suite


@_one_test_a_kind
class FromTheServer(KindsSuite):
    """Inputs come over HTTP."""

    read_folder = False


@_one_test_a_kind
class FromTheFolder(KindsSuite):
    """Inputs come from the read folder."""

    read_folder = True


del KindsSuite  # it is no test itself


class OnTheWire(OnAStore):
    """Kinds that the client of today does not make, or not in a way that a test can hold."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = Jobserver(
            cls.directory / "shared", cls.store.parameters(read_folder=True), workers=1
        )
        cls.addClassCleanup(cls.server.stop)

    def run_bash(self, code, **formats):
        """Run bash code; each pin is a mode of the file system, a checksum, and a celltype."""
        request = self.store.request(code, language="bash", output="text")
        transformation = request["transformation_dict"]
        transformation["__format__"] = {}
        for pin, (mode, checksum, celltype) in formats.items():
            name = pin.replace("_", ".")
            transformation[name] = [celltype, None, checksum]
            transformation["__format__"][name] = {"filesystem": {"mode": mode, "optional": False}}
        digest = hashlib.sha256(json.dumps(transformation).encode()).hexdigest()
        return self.server.run({**request, "tf_checksum": digest})

    def test_python_and_yaml_pins(self):
        for celltype, text in (("python", "x = 1\n"), ("yaml", "a: 1\n")):
            request = self.store.request(IDENTITY, output="text", a=1)
            request["transformation_dict"]["a"] = [celltype, None, self.store.put(text.encode())]
            with self.subTest(celltype):
                self.assertEqual(self.result(self.server.run(request)).decode(), text)

    def test_a_file_pin_is_used_in_place(self):
        checksum = self.store.put(b"in a file\n")
        answer = self.run_bash(
            "test -L data.txt; cat data.txt data.txt > RESULT\n",
            data_txt=("file", checksum, "bytes"),
        )
        self.assertEqual(self.result(answer), 2 * b"in a file\n")
        self.assertNotIn(f"GET /{checksum}", self.store.log().replace("GET /has", ""))

    def test_a_compressed_file_is_unpacked_on_the_way(self):
        content = b"packed\n" * 100
        checksum = hashlib.sha256(content).hexdigest()
        folder = self.store.buffers / checksum[:2]
        folder.mkdir(exist_ok=True)
        (folder / f"{checksum}.gz").write_bytes(gzip.compress(content))
        answer = self.run_bash("cat data.txt > RESULT\n", data_txt=("file", checksum, "bytes"))
        self.assertEqual(self.result(answer), content)
        request = self.store.request("def f(a):\n    return len(a.content)\n", a=b"x")
        request["transformation_dict"]["a"][2] = checksum
        self.assertEqual(self.value(self.server.run(request)), len(content))

    def test_a_directory_pin_is_used_in_place(self):
        leaves = {"one.txt": self.store.put(b"1\n"), "sub/two.txt": self.store.put(b"2\n")}
        checksum = self.store.put(json.dumps(leaves, indent=2, sort_keys=True).encode() + b"\n")
        answer = self.run_bash(
            "cat tree/one.txt tree/sub/two.txt > RESULT\n", tree=("directory", checksum, "folder")
        )
        self.assertEqual(self.result(answer), b"1\n2\n")
        folder = self.store.buffers / ("ee" * 32)
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "three.txt").write_text("3\n")
        answer = self.run_bash(
            "test -L tree; cat tree/sub/three.txt > RESULT\n",
            tree=("directory", "ee" * 32, "folder"),
        )
        self.assertEqual(self.result(answer), b"3\n")

    def test_a_file_pin_that_is_nowhere_is_named(self):
        answer = self.run_bash("true\n", data_txt=("file", "dd" * 32, "bytes"))
        self.assertEqual(answer.status, 500)
        self.assertIn("data.txt", answer.text)
        self.assertIn("dd" * 32, answer.text)
        self.assertNotIn("Traceback", answer.text)

    def test_a_buffer_of_2_gigabytes_comes_in_and_goes_out(self):
        # Made by one job and read by another, so that the test itself never holds it.
        make = "def f(n):\n    return bytes(n)\n"
        request = self.store.request(make, output="bytes", n=2**31 + 17)
        made = self.server.run(request)
        self.assertEqual(made.status, 200, made.text)
        count = "def f(a):\n    return [len(a.content), a.content[-1]]\n"
        request = self.store.request(count, output="plain", a=b"x")
        request["transformation_dict"]["a"][2] = made.json["result_checksum"]
        self.assertEqual(self.value(self.server.run(request)), [2**31 + 17, 0])
        for path in self.store.buffers.rglob(made.json["result_checksum"]):
            os.unlink(path)

    def test_a_large_buffer_over_http_too(self):
        server = self.start()
        content = os.urandom(300 * MEGABYTE)
        request = self.store.request(IDENTITY, output="bytes", a=content)
        answer = server.run(request)
        self.assertEqual(answer.json["result_checksum"], hashlib.sha256(content).hexdigest())
