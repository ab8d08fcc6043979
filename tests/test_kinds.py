"""Every kind of transformation, through the real client, with and without a read folder."""

import gzip
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import unittest

import zstandard
from seamless.checksum.celltypes import celltypes

from tests.constants import constants
from tests.stack import JOBSERVER_PYTHON, PATIENCE, ROOT, Jobserver, run_client, run_request
from tests.test_running import IDENTITY, OnAStore

HAS_IPYTHON = not subprocess.run(
    [JOBSERVER_PYTHON, "-c", "import IPython"], stderr=subprocess.DEVNULL, check=False
).returncode

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
    # Without IPython the worker cannot tell whether it is good code, and Seamless shows just that.
    "ipython_celltype": True if HAS_IPYTHON else ("ValueError: %timeit",),
    "checksum_celltype": True,
    "several_hundred_pins": sum(range(400)),
    "module_as_pin": 15,
    "package_as_pin": 78,
    "bash": "6\nmore",
    "bash_with_several_results": {"a.txt": "one\n", "sub/b.txt": "two\n"},
    "deepcell_result_and_input": lambda leaves: [leaves, leaves + 9],
    "folder_input": lambda leaves: [leaves + 1, "leaf 7\n", "from the client"],
    "folder_result_and_deepfolder_input": lambda leaves: [leaves, f"leaf {leaves}\n"],
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


def gzip_in_two_parts(content):
    """Compress as ``bgzip`` does, which packs a part of a file at a time."""
    return gzip.compress(content[:1000]) + gzip.compress(content[1000:])


def zstd_without_size(content):
    """Compress as ``zstd`` does at the end of a pipe."""
    stream = zstandard.ZstdCompressor().compressobj()
    return stream.compress(content) + stream.flush()


PACKERS = {".gz": gzip.compress, ".zst": zstandard.compress}
PACKED_FOR_HTTP = {
    "gzip": (".gz", gzip.compress),
    "gzip in two parts": (".gz", gzip_in_two_parts),
    "zstd": (".zst", zstandard.compress),
    "zstd of unknown size": (".zst", zstd_without_size),
}


class KindsSuite(OnAStore):
    """Runs the client for each kind, which is a test of its own."""

    read_folder: bool
    leaves: int

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        parameters = cls.store.parameters(read_folder=cls.read_folder)
        # A client that has lost an input sends its request five times, and each waits for it.
        cls.server = Jobserver(
            cls.directory / "shared",
            parameters,
            workers=2,
            flags=("--input-timeout", "15"),
            env=constants(cls.directory, {"server.failures._SECOND_WAIT": 0.5}),
        )
        cls.addClassCleanup(cls.server.stop)
        cls.given = {
            "parameters": parameters,
            "jobserver": f"http://127.0.0.1:{cls.server.port}",
            "leaves": cls.leaves,
        }

        # One client for all, since a client takes longer to start than a kind to run.
        cls.outcomes = cls.run_kinds("together", EXPECTED)

    def check(self, kind):
        outcome, expected = self.outcome(kind), EXPECTED[kind]
        if callable(expected):
            expected = expected(self.leaves)
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
            outcomes = self.run_kinds(f"{kind}-{attempt}", [kind])
        raise AssertionError("three clients have hung, or lost an input that they had promised")

    @classmethod
    def run_kinds(cls, name, kinds):
        """Have one client run `kinds`; return what came of those that it got to."""
        folder = cls.directory / f"client-{name}"
        folder.mkdir()
        given = json.dumps({**cls.given, "directory": str(folder), "patience": PATIENCE})
        argv = [sys.executable, str(ROOT / "tests" / "kinds_client.py"), given, *kinds]
        output = run_client(argv, folder, timeout=PATIENCE * (1 + len(kinds)))
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
    leaves = 2000


@_one_test_a_kind
class FromTheFolder(KindsSuite):
    """Inputs come from the read folder. Leaves go out over HTTP all the same: fewer will do."""

    read_folder = True
    leaves = 300


del KindsSuite  # it is no test itself


class Documented(unittest.TestCase):
    def setUp(self):
        text = (ROOT / "docs" / "kinds.rst").read_text()
        found = re.findall(r"``(test_\w+)(?:\.(\w+))?``:\s+``(test_\w+)``", text)
        self.documented = {(module, group, name) for module, group, name in found}

    def test_each_test_that_the_table_names_is_there(self):
        self.assertGreater(len(self.documented), 40)
        for module, group, name in self.documented:
            within = importlib.import_module(f"tests.{module}")
            groups = [getattr(within, group)] if group else vars(within).values()
            with self.subTest(f"{module}.{group}.{name}"):
                self.assertTrue(any(hasattr(one, name) for one in groups))

    def test_the_table_names_each_kind_and_celltype(self):
        named = {name for _, _, name in self.documented}
        kinds = {f"test_{kind.rstrip('_')}" for kind in EXPECTED}
        self.assertEqual(kinds - named, set())
        by_others = {"checksum", "ipython", "python", "yaml"}
        self.assertEqual({*EXPECTED["celltypes"], *by_others}, set(celltypes))


class OnTwoServers(OnAStore):
    """A server with a read folder and one without, and requests to both, as HTTP."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.start_for_all("with-folder", read_folder=True)
        cls.over_http = cls.start_for_all("without-folder", read_folder=False)

    @classmethod
    def start_for_all(cls, name, read_folder):
        parameters = cls.store.parameters(read_folder=read_folder)
        server = Jobserver(cls.directory / name, parameters, workers=1)
        cls.addClassCleanup(server.stop)
        return server

    def run_bash(self, code, **formats):
        """Run bash code; each pin is a mode of the file system, a checksum, and a celltype."""
        request = self.store.request(code, language="bash", output="text")
        transformation = request["transformation_dict"]
        transformation["__format__"] = {}
        for pin, (mode, checksum, celltype) in formats.items():
            name = pin.replace("_", ".")
            transformation[name] = [celltype, None, checksum]
            transformation["__format__"][name] = {"filesystem": {"mode": mode, "optional": False}}
        return self.server.run(run_request(transformation))

    def with_input(self, code, checksum, celltype="bytes", output="plain"):
        """Return a request that runs code on ``a``, a buffer that is in the store already."""
        request = self.store.request(code, output=output)
        transformation = {**request["transformation_dict"], "a": [celltype, None, checksum]}
        return run_request(transformation)

    def store_packed(self, content, suffix, packed):
        """Put a buffer into the store as a compressed file, and nothing else; return its checksum."""
        checksum = hashlib.sha256(content).hexdigest()
        folder = self.store.buffers / checksum[:2]
        folder.mkdir(exist_ok=True)
        (folder / f"{checksum}{suffix}").write_bytes(packed)
        return checksum

    def downloads(self, checksum):
        return self.store.log().count(f'"GET /{checksum} HTTP/1.1" 200')

    def check_as_pin_and_result(self, celltype, text):
        checksum = self.store.put(text.encode())
        request = self.with_input(IDENTITY, checksum, celltype, output=celltype)
        self.assertEqual(self.result(self.server.run(request)).decode(), text)
        code = "def f(a):\n    return [type(a).__name__, a]\n"
        answer = self.server.run(self.with_input(code, checksum, celltype))
        self.assertEqual(self.value(answer), ["str", text.rstrip("\n")])


class OnTheWire(OnTwoServers):
    """Kinds that the client of today does not make; their requests are made here."""

    def test_python_and_yaml_pins(self):
        for celltype, text in (("python", "x = 1\n"), ("yaml", "a: 1\n")):
            with self.subTest(celltype):
                self.check_as_pin_and_result(celltype, text)

    def test_a_deepfolder_result_is_stored_and_is_an_input_again(self):
        code = "def f(n):\n    return {f'x/{i}': b'leaf %d' % i for i in range(n)}\n"
        request = self.store.request(code, output="deepfolder", n=2000)
        made = self.over_http.run(request)
        structure = self.value(made)
        self.assertEqual(len(structure), 2000)
        self.assertEqual([leaf for leaf in structure.values() if not self.store.holds(leaf)], [])
        self.assertEqual(self.store.get(structure["x/1999"]), b"leaf 1999")
        code = "def f(a):\n    return [len(a), a['x/7'].resolve().content.decode()]\n"
        again = self.with_input(code, made.json["result_checksum"], "deepfolder")
        self.assertEqual(self.value(self.over_http.run(again)), [2000, "leaf 7"])

    def test_a_file_pin_is_used_in_place(self):
        checksum = self.store.put(b"in a file\n")
        answer = self.run_bash(
            "test -L data.txt; cat data.txt data.txt > RESULT\n",
            data_txt=("file", checksum, "bytes"),
        )
        self.assertEqual(self.result(answer), 2 * b"in a file\n")
        self.assertEqual(self.downloads(checksum), 0)

    def test_a_compressed_file_in_the_folder_is_unpacked_for_a_file_pin(self):
        for suffix, pack in PACKERS.items():
            with self.subTest(suffix):
                content = b"in the folder, as %s\n" % suffix.encode() * 100
                checksum = self.store_packed(content, suffix, pack(content))
                answer = self.run_bash(
                    "cat data.txt data.txt > RESULT\n", data_txt=("file", checksum, "bytes")
                )
                self.assertEqual(self.result(answer), 2 * content)
                self.assertEqual(self.downloads(checksum), 0)

    def test_a_compressed_file_in_the_folder_is_used_in_place_under_its_own_ending(self):
        for suffix, pack in PACKERS.items():
            with self.subTest(suffix):
                content = b"in place, as %s\n" % suffix.encode() * 100
                packed = pack(content)
                checksum = self.store_packed(content, suffix, packed)
                name = f"data_txt{suffix.replace('.', '_')}"
                code = f"test -L data.txt{suffix}; sha256sum < data.txt{suffix} > RESULT\n"
                answer = self.run_bash(code, **{name: ("file", checksum, "bytes")})
                digest = self.result(answer).split()[0].decode()
                self.assertEqual(digest, hashlib.sha256(packed).hexdigest())

    def test_a_compressed_buffer_is_unpacked_on_its_way_over_http(self):
        length = "def f(a):\n    return len(a.content)\n"
        for way, server in (("folder", self.server), ("http", self.over_http)):
            for name, (suffix, pack) in PACKED_FOR_HTTP.items():
                with self.subTest(f"{name}, {way}"):
                    content = f"over http, {name}, {way}\n".encode() * 1000
                    checksum = self.store_packed(content, suffix, pack(content))
                    answer = server.run(self.with_input(length, checksum))
                    self.assertEqual(self.value(answer), len(content))
                    self.assertEqual(self.downloads(checksum), 1)

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

    def test_pins_of_seamless_run_come_over_http_where_there_is_no_path(self):
        leaves = {"one.txt": self.store.put(b"one\n"), "sub/two.txt": self.store.put(b"two\n")}
        tree = self.store.put(json.dumps(leaves, indent=2, sort_keys=True).encode() + b"\n")
        for file in (self.store.put(b"file\n"), "cc" * 32):
            request = self.store.request(
                "cat tree/one.txt tree/sub/two.txt data.txt > RESULT\n",
                language="bash",
                output="bytes",
            )
            # As cmd/bash_transformation.py of seamless-transformer has them.
            directory = {"filesystem": {"mode": "directory", "optional": True}}
            pins = {
                "tree": ["mixed", None, tree],
                "data.txt": ["bytes", None, file],
                "__format__": {
                    "tree": {**directory, "celltype": "deepfolder"},
                    "data.txt": {"filesystem": {"mode": "file", "optional": True}},
                },
            }
            request["transformation_dict"].update(pins)
            with self.subTest(file):
                answer = self.over_http.run(run_request(request["transformation_dict"]))
                if self.store.holds(file):
                    self.assertEqual(self.result(answer), b"one\ntwo\nfile\n")
                    continue
                self.assertEqual(answer.status, 500)
                self.assertIn("Input not found in any read folder or hashserver", answer.text)
                self.assertIn(f"data.txt: {file}", answer.text)

    def test_a_buffer_that_several_pins_have_is_fetched_once(self):
        checksum = self.store.put(b"for both " + os.urandom(8).hex().encode())
        request = self.with_input("def f(a, b):\n    return len(a) - len(b)\n", checksum)
        transformation = request["transformation_dict"]
        answer = self.over_http.run(run_request({**transformation, "b": transformation["a"]}))
        self.assertEqual(self.value(answer), 0)
        self.assertEqual(self.downloads(checksum), 1)

    def test_a_file_pin_that_is_nowhere_is_named(self):
        answer = self.run_bash("true\n", data_txt=("file", "dd" * 32, "bytes"))
        self.assertEqual(answer.status, 500)
        self.assertIn("data.txt", answer.text)
        self.assertIn("dd" * 32, answer.text)
        self.assertNotIn("Traceback", answer.text)


class Largest(OnTwoServers):
    """A kind that the client could only make in a way that the test itself could not hold."""

    def test_a_buffer_of_2_gigabytes_goes_out_and_comes_in_from_the_folder_and_over_http(self):
        # Made by one job and read by others, so that the test itself never holds it.
        make = "def f(n):\n    return bytes(n)\n"
        request = self.store.request(make, output="bytes", n=2**31 + 17)
        made = self.server.run(request)
        self.assertEqual(made.status, 200, made.text)
        checksum = made.json["result_checksum"]
        for way, server, downloads in (("folder", self.server, 0), ("http", self.over_http, 1)):
            count = f"def f(a):\n    return [{way!r}, len(a.content), a.content[-1]]\n"
            with self.subTest(way):
                answer = server.run(self.with_input(count, checksum))
                self.assertEqual(self.value(answer), [way, 2**31 + 17, 0])
                self.assertEqual(self.downloads(checksum), downloads)
        for path in self.store.buffers.rglob(checksum):
            os.unlink(path)
