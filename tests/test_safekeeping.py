"""Results that no store would take: how they are kept, found again, and delivered."""

import contextlib
import io
import os
import unittest
from pathlib import Path
from unittest import mock

from seamless_jobserver import spool, upload
from seamless_jobserver.transport import import_seamless_remote

import_seamless_remote()

import seamless  # noqa: E402

from seamless_jobserver.messages import Ending, Outcome, RunRequest  # noqa: E402
from seamless_jobserver.worker.safekeeping import Safekeeping  # noqa: E402
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
        told = self.safekeeping.keep(REQUEST, OUTCOME, [RESULT])
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
        looks, opens = os.stat, Path.read_bytes

        def refuse(look):
            def refused(path, *arguments, **named):
                if str(self.directory) in str(path):
                    raise PermissionError(13, "Permission denied", str(path))
                return look(path, *arguments, **named)

            return refused

        with mock.patch("os.stat", refuse(looks)):
            self.assertIsNone(self.safekeeping.find(REQUEST))
        with mock.patch.object(Path, "read_bytes", refuse(opens)):
            self.assertIsNone(self.safekeeping.find(REQUEST))
        self.assertIsNotNone(self.safekeeping.find(REQUEST))

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
        told = safekeeping.keep(REQUEST, OUTCOME, [RESULT])
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
