"""The status file: read once, kept as it was, replaced whole."""

import json
import os
import queue
import threading
import unittest
from unittest import mock

from seamless_jobserver.errors import StartupError
from seamless_jobserver.server import statusfile
from seamless_jobserver.server.statusfile import StatusFile
from tests.stack import temporary_directory

CONTENT = {
    "workdir": "/tmp",
    "uid": 7,
    "pid": 12,
    "status": "starting",
    "parameters": {"database": [], "buffer": [{"readonly": True}], "record": True},
}
BAD_FILES = {
    b"": "is not JSON",
    b"{": "is not JSON",
    b"\xff": "is not JSON",
    b"[]": "no JSON object",
    b"null": "no JSON object",
}
BAD_PARAMETERS = {
    "'parameters' is not an object": [],
    "'parameters.buffer' is not a list of objects": {"buffer": {}},
    "'parameters.database' is not a list of objects": {"database": ["http://x"]},
    "'parameters.record' is not a boolean": {"record": "yes"},
}


class StatusFiles(unittest.TestCase):
    def setUp(self):
        context = temporary_directory()
        self.directory = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        self.path = self.directory / "status.json"
        self.interrupts = queue.SimpleQueue()

    def write(self, content):
        self.path.write_bytes(
            content if isinstance(content, bytes) else json.dumps(content).encode()
        )

    def read(self):
        return StatusFile.read(self.path, self.interrupts)

    def test_the_launchers_keys_are_kept_and_ours_added(self):
        self.write(CONTENT)
        self.read().write_running(4711)
        after = json.loads(self.path.read_bytes())
        self.assertEqual(after, {**CONTENT, "status": "running", "port": 4711})

    def test_a_failure_is_written_without_a_port(self):
        self.write(CONTENT)
        self.read().write_failed()
        self.assertEqual(json.loads(self.path.read_bytes()), {**CONTENT, "status": "failed"})

    def test_the_file_is_replaced_by_a_rename_and_keeps_its_mode(self):
        self.write(CONTENT)
        os.chmod(self.path, 0o640)
        before = self.path.stat().st_ino
        with open(self.path) as reader:
            self.read().write_running(1)
            self.assertEqual(json.load(reader), CONTENT, "a reader of the old file is undisturbed")
        self.assertNotEqual(self.path.stat().st_ino, before)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o640)
        self.assertEqual(os.listdir(self.directory), ["status.json"])

    def test_a_file_that_everybody_can_change_is_not_believed(self):
        self.write(CONTENT)
        for mode in (0o666, 0o602, 0o646):
            os.chmod(self.path, mode)
            with (
                self.subTest(oct(mode)),
                self.assertRaisesRegex(
                    StartupError, f"changed by everybody: chmod 600 {self.path}"
                ),
            ):
                self.read()

    def test_a_file_that_a_group_can_change_gets_a_warning(self):
        self.write(CONTENT)
        os.chmod(self.path, 0o660)
        with self.assertLogs(statusfile.__name__, "WARNING") as logs:
            self.read()
        self.assertIn(f"{self.path} can be changed by group", logs.output[0])
        os.chmod(self.path, 0o644)
        with self.assertNoLogs(statusfile.__name__, "WARNING"):
            self.read()

    def test_what_is_written_has_the_mode_that_was_read_whatever_is_there_since(self):
        for change in (lambda: os.chmod(self.path, 0o666), self.path.unlink, self.plant_link):
            self.write(CONTENT)
            os.chmod(self.path, 0o600)
            status_file = self.read()
            before = os.umask(0)
            self.addCleanup(os.umask, before)
            change()
            status_file.write_running(1)
            os.umask(before)
            self.assertEqual(self.path.lstat().st_mode, 0o100600)
            self.assertEqual(json.loads(self.path.read_bytes())["status"], "running")

    def plant_link(self):
        target = self.directory / "target"
        target.touch(0o666)
        self.path.unlink()
        self.path.symlink_to(target)

    def test_a_file_that_appears_late_is_waited_for(self):
        def appear():
            ready = self.directory / "ready"  # whole at once, as the launcher does it
            ready.write_text(json.dumps(CONTENT))
            ready.rename(self.path)

        writer = threading.Timer(0.3, appear)
        writer.start()
        self.addCleanup(writer.join)
        self.assertEqual(self.read().parameters["record"], True)

    def test_a_file_that_never_appears_is_named(self):
        with (
            mock.patch.object(statusfile, "APPEARANCE_LIMIT", 0.2),
            self.assertRaisesRegex(StartupError, f"{self.path} did not appear"),
        ):
            self.read()

    def test_an_interrupt_ends_the_waiting_and_is_left_for_others(self):
        self.interrupts.put("SIGTERM")
        self.assertIsNone(self.read())
        self.assertEqual(self.interrupts.get_nowait(), "SIGTERM")

    def test_what_is_no_status_file_is_refused(self):
        for content, message in BAD_FILES.items():
            self.write(content)
            with self.subTest(content), self.assertRaisesRegex(StartupError, message):
                self.read()

    def test_what_is_no_file_is_refused_and_not_waited_for(self):
        said = queue.SimpleQueue()

        def read():
            try:
                self.read()
            except StartupError as error:
                said.put(str(error))

        os.mkfifo(self.path)
        threading.Thread(target=read, daemon=True).start()
        self.assertIn("is no regular file", said.get(timeout=20))

    def test_one_that_may_not_be_read_is_one_line(self):
        self.write(CONTENT)
        want = PermissionError(13, "Permission denied")
        with (
            mock.patch.object(statusfile.os, "open", side_effect=want),
            self.assertRaisesRegex(StartupError, "cannot be read: Permission denied"),
        ):
            self.read()

    @unittest.skipUnless(os.geteuid() == 0, "only root can give files away")
    def test_it_belongs_to_who_runs_the_server_or_to_the_administrator(self):
        somebody, other = 54321, 54322
        # The file, a link in its place if there is one, and who we are -> whether it is believed.
        table = (
            (somebody, None, somebody, True),
            (0, None, somebody, True),
            (0, 0, somebody, True),
            (other, None, somebody, False),
            (other, None, 0, False),
            (other, somebody, somebody, False),
            (somebody, other, somebody, False),
            (0, other, somebody, False),
        )
        real = self.directory / "real.json"
        for owner, link_owner, user, believed in table:
            with self.subTest(owner=owner, link_owner=link_owner, user=user):
                self.write(CONTENT)
                os.chown(self.path, owner, -1)
                if link_owner is not None:
                    self.path.rename(real)
                    self.path.symlink_to(real)
                    os.lchown(self.path, link_owner, -1)
                with mock.patch.object(statusfile.os, "geteuid", return_value=user):
                    if believed:
                        self.assertIsNotNone(self.read())
                    else:
                        self.assertRaisesRegex(StartupError, "not a file of yours", self.read)
                self.path.unlink()

    def test_parameters_may_be_absent_but_not_malformed(self):
        self.write({})
        self.assertEqual(self.read().parameters, {})
        for message, parameters in BAD_PARAMETERS.items():
            self.write({"parameters": parameters})
            with self.subTest(message), self.assertRaisesRegex(StartupError, message):
                _ = self.read().parameters

    def test_a_file_that_cannot_be_replaced_is_an_error_that_leaves_nothing_behind(self):
        self.write(CONTENT)
        status_file = self.read()
        with (
            mock.patch(
                "os.replace", side_effect=PermissionError(13, "Permission denied")
            ) as replace,
            self.assertRaisesRegex(StartupError, "Permission denied"),
        ):
            status_file.write_running(1)
        temporary, _ = replace.call_args.args
        self.assertEqual(os.path.dirname(temporary), str(self.directory), "on the same disk")
        self.assertEqual(os.listdir(self.directory), ["status.json"])
