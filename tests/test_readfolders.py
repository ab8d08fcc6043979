"""Buffers from read folders: found in both layouts, checked, and left alone when in doubt."""

import hashlib
import json
import unittest
from unittest import mock

from seamless_jobserver.transport import import_seamless_remote

import_seamless_remote()  # first: a thread of Seamless's own would import it on the real packages

import seamless  # noqa: E402

from seamless_jobserver.worker.nearby import Nearby  # noqa: E402
from seamless_jobserver.worker.pins import Need  # noqa: E402
from seamless_jobserver.worker.readfolders import ReadFolders, store_folder  # noqa: E402
from tests.stack import temporary_directory  # noqa: E402


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


class StoreFolder(unittest.TestCase):
    def test_it_is_that_of_the_only_store_that_takes_results(self):
        store = {"readonly": False, "remote_url": "u", "remote_directory": "/store"}
        archive = {"readonly": True, "remote_url": "v", "remote_directory": "/archive"}
        for entries, folder in (
            ([store], "/store"),
            ([archive, store], "/store"),
            ([archive], None),
            ([store, {**store, "remote_directory": "/other"}], None),
            ([{"readonly": False, "remote_url": "u"}], None),
            ([{"remote_url": "u", "remote_directory": "/store"}], None),
            ([], None),
            (None, None),
        ):
            with self.subTest(entries):
                self.assertEqual(store_folder({"buffer": entries}), folder)
        self.assertEqual(store_folder({}), None)


class Reading(unittest.TestCase):
    def setUp(self):
        self.folder = self.enterContext(temporary_directory())
        self.folders = ReadFolders([str(self.folder)])

    def enterContext(self, context):  # noqa: N802 - unittest has it from Python 3.11 on
        value = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return value

    def test_both_layouts_are_found(self):
        prefixed, flat = b"prefixed", b"flat"
        names = [hashlib.sha256(content).hexdigest() for content in (prefixed, flat)]
        put(self.folder / names[0][:2] / names[0], prefixed)
        put(self.folder / names[1], flat)
        found = self.folders.read(names)
        self.assertEqual([buffer.content for buffer in found], [prefixed, flat])
        self.assertEqual([buffer.get_checksum().hex() for buffer in found], names)

    def test_only_a_file_with_just_this_content_counts_as_the_buffer(self):
        for number in (1, 100):
            buffers = [seamless.Buffer(f"{number} {each}".encode()) for each in range(number)]
            *others, last = buffers
            name = last.get_checksum().hex()
            with self.subTest(number):
                self.assertEqual(self.folders.without(buffers), buffers)
                put(self.folder / name[:2] / name, b"wrong")
                self.assertEqual(self.folders.without(buffers), buffers)
                put(self.folder / name, last.content)
                self.assertEqual(self.folders.without(buffers), others)
                self.assertEqual(ReadFolders([]).without(buffers), buffers)

    def test_a_path_is_there_or_not(self):
        put(self.folder / "ab" / ("ab" * 32), b"a file")
        put(self.folder / ("cd" * 32 + ".zst"), b"a packed one")
        (self.folder / ("ee" * 32)).mkdir()
        there = [("ab" * 32, "file"), ("cd" * 32, "file"), ("ee" * 32, "directory")]
        for checksum, mode in there:
            other = "directory" if mode == "file" else "file"
            self.assertTrue(self.folders.has_path(checksum, mode))
            self.assertFalse(self.folders.has_path(checksum, other))
        self.assertFalse(self.folders.has_path("12" * 32, "file"))

    def test_what_is_not_there_is_none(self):
        self.assertEqual(self.folders.read(["12" * 32]), [None])
        self.assertEqual(ReadFolders([]).read(["12" * 32]), [None])

    def test_a_file_with_other_content_is_not_taken(self):
        name = hashlib.sha256(b"right").hexdigest()
        put(self.folder / name[:2] / name, b"wrong")
        self.assertEqual(self.folders.read([name]), [None])
        put(self.folder / name, b"right")
        self.assertEqual(self.folders.read([name])[0].content, b"right")

    def test_a_later_folder_is_asked_too(self):
        other = self.enterContext(temporary_directory())
        name = hashlib.sha256(b"x").hexdigest()
        put(other / name, b"x")
        (buffer,) = ReadFolders([str(self.folder), str(other)]).read([name])
        self.assertEqual(buffer.content, b"x")

    def test_many_and_large_files_come_in_the_order_asked_for(self):
        contents = [str(number).encode() * (400_000 if number < 3 else 1) for number in range(60)]
        names = [hashlib.sha256(content).hexdigest() for content in contents]
        for name, content in zip(names, contents, strict=True):
            put(self.folder / name[:2] / name, content)
        for count in (3, 60):
            found = self.folders.read(names[:count])
            self.assertEqual([buffer.content for buffer in found], contents[:count])

    def test_they_come_also_when_there_are_no_threads_to_be_had(self):
        contents = [str(number).encode() for number in range(60)]
        names = [hashlib.sha256(content).hexdigest() for content in contents]
        for name, content in zip(names, contents, strict=True):
            put(self.folder / name, content)
        want = RuntimeError("can't start new thread")
        with mock.patch("threading.Thread.start", side_effect=want):
            found = self.folders.read(names)
            self.assertEqual([buffer.content for buffer in found], contents)
            self.assertEqual(self.folders.without(found), [])

    def test_a_folder_comes_with_its_leaves_and_is_kept_for_the_jobs_to_come(self):
        leaves = [b"one leaf", b"another", b""]
        names = {
            str(number): hashlib.sha256(leaf).hexdigest() for number, leaf in enumerate(leaves)
        }
        structure = json.dumps(names).encode() + b"\n"
        contents = [structure, *leaves[:2]]  # the empty one Seamless knows by its checksum
        paths = [self.folder / hashlib.sha256(content).hexdigest() for content in contents]
        for path, content in zip(paths, contents, strict=True):
            put(path, content)
        nearby = Nearby(10**6)
        nearby._folders = self.folders
        wanted = [Need("a", "folder", paths[0].name)]
        for _ in range(2):
            found, complete = nearby.take(wanted)
            self.assertTrue(complete)
            self.assertEqual({buffer.content for buffer in found}, set(contents))
            del found
            for path in paths:
                path.unlink(missing_ok=True)
