"""Results that no store would take: how they are kept, found again, and delivered."""

import asyncio
import contextlib
import dataclasses
import io
import json
import os
import unittest
import urllib.parse
from pathlib import Path
from unittest import mock

from seamless_jobserver import spool, upload
from seamless_jobserver.transport import import_seamless_remote

import_seamless_remote()

import seamless  # noqa: E402

from seamless_jobserver.messages import Ending, Outcome, RunRequest  # noqa: E402
from seamless_jobserver.worker import storing  # noqa: E402
from seamless_jobserver.worker.safekeeping import Safekeeping  # noqa: E402
from seamless_jobserver.worker.unserved import StoreUnavailable  # noqa: E402
from tests.stack import run_request, temporary_directory  # noqa: E402

SENT = run_request({"__language__": "python", "__output__": ["result", "bytes", None]})
REQUEST = RunRequest(SENT["tf_checksum"], SENT["transformation_dict"])
RESULT = seamless.Buffer(b"a result that took hours")
OUTCOME = Outcome(
    Ending.RESULT,
    result_checksum=RESULT.get_checksum().hex(),
    runtime={"wall_time_seconds": 3600.0},
    extra={"probe_context": {"node": "n"}, "compilation_context": "c", "job_validation": {"v": 1}},
)


class Offers(unittest.TestCase):
    def test_they_are_repeated_with_growing_pauses(self):
        tries = mock.AsyncMock(side_effect=[*(12 * ["it refuses"]), None])
        with (
            mock.patch.object(storing, "_try_to_store", tries),
            mock.patch.object(asyncio, "sleep", mock.AsyncMock()) as pause,
        ):
            asyncio.run(storing._store(RESULT, 600.0))
        pauses = [call.args[0] for call in pause.await_args_list]
        self.assertEqual(pauses, [min(0.02 * 2**number, 10.0) for number in range(12)])


class Kept(unittest.TestCase):
    def setUp(self):
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.directory = stack.enter_context(temporary_directory())
        stack.enter_context(
            mock.patch.dict(os.environ, {"SEAMLESS_JOBSERVER_SPOOL": str(self.directory / "spool")})
        )
        self.staging = mock.Mock()
        self.safekeeping = Safekeeping({})

    def keep(self):
        told = self.safekeeping.keep(REQUEST, OUTCOME, [RESULT], whole=True)
        self.assertIn("is kept on this machine", told)
        kept = self.safekeeping.find(REQUEST)
        self.assertIsNotNone(kept)
        return kept

    def test_it_is_delivered_as_it_was_with_all_that_the_answer_has_in_record_mode(self):
        delivered = self.safekeeping.deliver(self.keep(), self.staging)
        for field in ("ending", "result_checksum", "runtime", "extra"):
            self.assertEqual(getattr(delivered, field), getattr(OUTCOME, field), field)
        (stored,) = self.staging.store.call_args.args[0]
        self.assertEqual(stored.content, RESULT.content)
        self.assertIsNone(self.safekeeping.find(REQUEST))

    def test_when_the_store_is_still_away_it_stays_kept_and_its_caller_is_told_where(self):
        kept = self.keep()
        self.staging.store.side_effect = StoreUnavailable("No store.\n")
        with self.assertRaises(StoreUnavailable) as caught:
            self.safekeeping.deliver(kept, self.staging)
        self.assertIn(f"seamless-jobserver upload {kept.path}\n", str(caught.exception))
        self.assertIsNotNone(self.safekeeping.find(REQUEST))

    def test_it_is_kept_in_the_users_own_state_by_itself(self):
        for variables, place in (
            ({"HOME": "/home/me"}, "/home/me/.local/state/seamless-jobserver/spool"),
            ({"HOME": "/home/me", "XDG_STATE_HOME": "/state"}, "/state/seamless-jobserver/spool"),
            (
                {"HOME": "/home/me", "XDG_STATE_HOME": "state"},
                "/home/me/.local/state/seamless-jobserver/spool",
            ),
            ({"SEAMLESS_JOBSERVER_SPOOL": "/spool"}, "/spool"),
        ):
            with mock.patch.dict(os.environ, variables, clear=True):
                self.assertEqual(str(spool.spool_directory()), place)

    def test_one_that_has_not_what_record_mode_wants_is_not_for_it(self):
        self.keep()
        recorded = dataclasses.replace(REQUEST, record=True)
        self.assertIsNone(self.safekeeping.find(recorded))
        self.safekeeping.keep(recorded, OUTCOME, [RESULT], whole=False)
        self.assertIsNone(self.safekeeping.find(recorded))
        self.safekeeping.keep(recorded, OUTCOME, [RESULT], whole=True)
        self.assertIsNotNone(self.safekeeping.find(recorded))
        self.assertIsNotNone(self.safekeeping.find(REQUEST))

    def test_user_and_password_of_a_store_are_sent_to_it(self):
        for url, expected in (
            ("http://store", {}),
            ("http://me:open%20sesame@store", {"Authorization": "Basic bWU6b3BlbiBzZXNhbWU="}),
        ):
            self.assertEqual(upload._credentials(urllib.parse.urlsplit(url)), expected)

    def test_the_database_is_not_told_of_one_that_still_wants_its_record(self):
        clients = {
            "buffer": [
                {"readonly": True, "remote_url": "http://archive:1"},
                {
                    "readonly": False,
                    "remote_url": "http://store:1",
                    "url": "http://by-another-way:1",
                },
                {"readonly": False, "remote_url": "http://store:2"},
            ],
            "database": [{"readonly": False, "remote_url": "http://database:1"}],
        }
        for record, whole, told in ((False, True, True), (True, True, False), (True, False, False)):
            with self.subTest(record=record, whole=whole), temporary_directory() as directory:
                request = dataclasses.replace(REQUEST, record=record)
                with mock.patch.dict(os.environ, {spool.VARIABLE: str(directory)}):
                    Safekeeping(clients).keep(request, OUTCOME, [RESULT], whole=whole)
                (path,) = spool.entries(directory)
                with mock.patch.object(upload, "_put", return_value=201) as put:
                    upload._upload(path, None, None)
                asked = [call.args[0] for call in put.call_args_list]
                stores = {"http://store:1", "http://store:2"}
                self.assertEqual({*asked} - {"http://database:1"}, stores)
                self.assertEqual("http://database:1" in asked, told)
                self.assertEqual(path.exists(), not told)

    def test_one_that_no_database_can_be_told_of_stays_and_says_so(self):
        kept = self.keep()
        with mock.patch.object(upload, "_put", return_value=201) as put:
            with self.assertRaisesRegex(upload.UploadFailed, "no database"):
                upload._upload(kept.path, "http://store:1", None)
            self.assertTrue(kept.path.exists())
            self.assertEqual(
                upload._upload(kept.path, "http://store:1", "http://database:1"), "uploaded"
            )
        self.assertEqual(put.call_args.args[0], "http://database:1")
        self.assertFalse(kept.path.exists())

    def test_a_buffer_counts_as_stored_only_when_the_store_says_so(self):
        kept = self.keep()
        # What the store answers, one after another, and what the database does.
        for stored, told, message in (
            ([202, 507], [], "the hashserver http://store:1 answered 507"),
            ([202, 201], [500], "the database http://database:1 answered 500"),
            ([202, 202, 200], [201], None),
        ):
            with (
                self.subTest(stored),
                mock.patch.object(upload, "_PAUSE", 0.0),
                mock.patch.object(upload, "_put", side_effect=stored + told) as put,
            ):
                places = kept.path, "http://me:sesame@store:1", "http://me:sesame@database:1"
                if message is None:
                    self.assertEqual(upload._upload(*places), "uploaded")
                else:
                    with self.assertRaisesRegex(upload.UploadFailed, message) as caught:
                        upload._upload(*places)
                    self.assertNotIn("sesame", str(caught.exception))
                sent = [call.args[:2] for call in put.call_args_list]
                buffer = ("http://me:sesame@store:1", f"/{OUTCOME.result_checksum}")
                database = ("http://me:sesame@database:1", "/")
                self.assertEqual(sent, len(stored) * [buffer] + len(told) * [database])
                self.assertEqual(kept.path.exists(), message is not None)

    def test_of_several_the_others_are_uploaded_when_one_is_not_and_the_exit_code_says_so(self):
        self.keep()
        other = dataclasses.replace(REQUEST, checksum="ef" * 32)
        self.safekeeping.keep(other, OUTCOME, [RESULT], whole=True)
        answers = [upload.UploadFailed("a \x1b[2J stranger"), 201, 201]
        said = io.StringIO()
        with (
            mock.patch.object(upload, "_put", side_effect=answers),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            code = upload.main(["--store", "http://store:1", "--database", "http://database:1"])
        self.assertEqual(code, 1)
        self.assertEqual(len(list(spool.entries(self.directory / "spool"))), 1)
        self.assertRegex(said.getvalue(), r"(?m): not uploaded: a .\[2J stranger$")
        self.assertRegex(said.getvalue(), r"(?m): uploaded$")
        self.assertNotIn("\x1b", said.getvalue())

    def test_one_that_cannot_be_removed_is_delivered_all_the_same(self):
        kept = self.keep()
        with mock.patch.object(spool, "remove", side_effect=OSError(30, "Read-only file system")):
            outcome = self.safekeeping.deliver(kept, self.staging)
        self.assertIs(outcome.ending, OUTCOME.ending)
        self.assertIn("Read-only", outcome.remark)

    def test_one_that_an_upload_takes_away_at_that_moment_is_none(self):
        kept = self.keep()
        spool.remove(kept.path)
        self.assertIsNone(self.safekeeping.deliver(kept, self.staging))
        self.staging.store.assert_not_called()

    def test_one_whose_file_is_damaged_is_none(self):
        kept = self.keep()
        (kept.path / OUTCOME.result_checksum).write_bytes(b"a result that")
        self.assertIsNone(self.safekeeping.deliver(kept, self.staging))
        self.staging.store.assert_not_called()

    def test_a_spool_that_may_not_be_read_holds_nothing(self):
        self.keep()
        looks, opens = os.stat, os.open

        def refuse(look):
            def refused(path, *arguments, **named):
                if str(self.directory) in str(path):
                    raise PermissionError(13, "Permission denied", str(path))
                return look(path, *arguments, **named)

            return refused

        with mock.patch("os.stat", refuse(looks)):
            self.assertIsNone(self.safekeeping.find(REQUEST))
        with mock.patch("os.open", refuse(opens)):
            self.assertIsNone(self.safekeeping.find(REQUEST))
        self.assertIsNotNone(self.safekeeping.find(REQUEST))

    def test_what_somebody_else_could_have_made_is_not_believed(self):
        def linked(path):
            real = self.directory / f"real-{path.name}"
            path.rename(real)
            path.symlink_to(real)

        def manifest_of(change):
            def changed(path):
                file = path / spool.MANIFEST
                manifest = json.loads(file.read_text())
                change(manifest)
                file.write_text(json.dumps(manifest))

            return changed

        # What happened to an entry -> whether it still counts.
        table = {
            "nothing": (lambda path: None, True),
            "others may write into the spool": (lambda path: path.parent.chmod(0o777), False),
            "others may write into the entry": (lambda path: path.chmod(0o770), False),
            "the entry is a link": (linked, False),
            "the manifest is a link": (lambda path: linked(path / spool.MANIFEST), False),
            "a buffer is no checksum": (
                manifest_of(lambda one: one.update(buffers=["/etc/passwd"])),
                False,
            ),
            "a buffer is more than a checksum": (
                manifest_of(lambda one: one.update(buffers=["a" * 64 + "/../../passwd"])),
                False,
            ),
            "a buffer is no text": (manifest_of(lambda one: one.update(buffers=[1])), False),
            "buffers are no list": (manifest_of(lambda one: one.update(buffers="a" * 64)), False),
        }
        if os.geteuid() == 0:
            table["the entry is somebody else's"] = (lambda path: os.chown(path, 54321, -1), False)
            table["the spool is somebody else's"] = (
                lambda path: os.chown(path.parent, 54321, -1),
                False,
            )
        for number, (what, (happen, believed)) in enumerate(table.items()):
            place = str(self.directory / f"spool-{number}")
            with (
                self.subTest(what),
                mock.patch.dict(os.environ, {"SEAMLESS_JOBSERVER_SPOOL": place}),
            ):
                self.safekeeping = Safekeeping({})
                path = self.keep().path
                happen(path)
                self.assertEqual(self.safekeeping.find(REQUEST) is not None, believed)
                self.assertEqual(list(spool.entries(path.parent)), [path] if believed else [])

    def test_a_buffer_that_is_a_link_is_not_sent(self):
        kept = self.keep()
        (kept.path / OUTCOME.result_checksum).unlink()
        (kept.path / OUTCOME.result_checksum).symlink_to("/etc/passwd")
        self.assertIsNone(self.safekeeping.deliver(kept, self.staging))

    def test_what_cannot_be_written_whole_leaves_nothing_behind(self):
        full = OSError(28, "No space left on device")
        with mock.patch.object(spool.os, "fsync", side_effect=[None, full]):
            told = self.safekeeping.keep(REQUEST, OUTCOME, [RESULT], whole=True)
        self.assertIn("No space left", told)
        self.assertEqual(os.listdir(self.directory / "spool"), [])

    def test_one_that_was_removed_by_half_is_none(self):
        kept = self.keep()
        with mock.patch.object(spool.shutil, "rmtree"):
            spool.remove(kept.path)
        self.assertTrue(kept.path.exists())
        self.assertIsNone(self.safekeeping.find(REQUEST))
        self.assertEqual(list(spool.entries(kept.path.parent)), [])

    def test_the_oldest_is_the_first_to_be_uploaded(self):
        place = self.directory / "spool"
        names = list("abcdefgh")
        for order in (names, names[::-1]):
            for number, name in enumerate(order):
                spool.keep(place / name, {}, {})
                os.utime(place / name, (number, number))
            self.assertEqual([path.name for path in spool.entries(place)], order)

    def test_the_order_of_what_an_envelope_holds_does_not_matter(self):
        one, turned = {"a": 1, "b": 2}, {"b": 2, "a": 1}
        paths = [spool.entry_path(self.directory, "ab" * 32, each) for each in (one, turned)]
        self.assertEqual(paths[0], paths[1])
        other = spool.entry_path(self.directory, "ab" * 32, {"a": 1})
        self.assertNotEqual(paths[0], other)

    def test_nothing_is_kept_where_others_may_write(self):
        (self.directory / "spool").mkdir()
        (self.directory / "spool").chmod(0o777)
        told = self.safekeeping.keep(REQUEST, OUTCOME, [RESULT], whole=True)
        self.assertIn("nobody else can write", told)

    def test_all_of_it_is_the_users_alone_whatever_the_umask(self):
        place = self.directory / "state"
        before = os.umask(0)
        try:
            with mock.patch.dict(os.environ, {"XDG_STATE_HOME": str(place)}):
                del os.environ["SEAMLESS_JOBSERVER_SPOOL"]
                self.safekeeping = Safekeeping({})
                self.keep()
        finally:
            os.umask(before)
        for path in (place, *place.rglob("*")):
            with self.subTest(path.name):
                self.assertEqual(path.stat().st_mode & 0o077, 0)

    def test_uploading_from_one_that_may_not_be_read_says_so(self):
        (self.directory / "spool").write_text("no directory")
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            self.assertEqual(upload.main([]), 1)
        self.assertIn("cannot be read", said.getvalue())


class WithoutHome(unittest.TestCase):
    def setUp(self):
        for patch in (
            mock.patch.dict(os.environ),
            mock.patch.object(Path, "home", side_effect=RuntimeError("no home directory")),
        ):
            patch.start()
            self.addCleanup(patch.stop)
        for name in ("HOME", "XDG_STATE_HOME", "SEAMLESS_JOBSERVER_SPOOL"):
            os.environ.pop(name, None)

    def test_nothing_is_kept_and_the_caller_is_told_what_to_do(self):
        safekeeping = Safekeeping({})
        self.assertIsNone(safekeeping.find(REQUEST))
        told = safekeeping.keep(REQUEST, OUTCOME, [RESULT], whole=True)
        self.assertIn("without a home directory", told)
        self.assertIn("SEAMLESS_JOBSERVER_SPOOL", told)

    def test_nothing_waits_to_be_uploaded(self):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            self.assertEqual(upload.main([]), 0)
        self.assertEqual(said.getvalue(), "Nothing is waiting.\n")

    def test_a_state_directory_is_enough(self):
        with mock.patch.dict(os.environ, {"XDG_STATE_HOME": "/state"}):
            self.assertEqual(spool.spool_directory(), Path("/state/seamless-jobserver/spool"))


if __name__ == "__main__":
    unittest.main()
