"""Buffers from read folders: found in both layouts, checked, and left alone when in doubt."""

import hashlib
import unittest

from seamless_jobserver.transport import import_seamless_remote

import_seamless_remote()

from seamless_jobserver.worker.readfolders import ReadFolders  # noqa: E402
from tests.stack import temporary_directory  # noqa: E402


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


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
