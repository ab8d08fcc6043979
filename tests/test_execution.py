"""One transformation in a worker: the order of what is done, with its parts played by the test."""

import asyncio
import unittest
from unittest import mock

from seamless_jobserver.transport import import_seamless_remote

import_seamless_remote()

import seamless  # noqa: E402
from seamless_remote import database_remote  # noqa: E402

from seamless_jobserver.messages import Ending, RunRequest  # noqa: E402
from seamless_jobserver.worker import entry, execution, staging  # noqa: E402
from tests.stack import run_request  # noqa: E402

TRANSFORMATION = {"__language__": "python", "__output__": ["result", "bytes", None]}


class Played(unittest.TestCase):
    """An `Execution` whose staging, spool and meter are the test's; `events` is what happened."""

    def setUp(self):
        self.events = []
        self.result = seamless.Buffer(b"the result")
        self.staging = mock.Mock(kept=0)
        self.staging.fetch.side_effect = lambda *_: self.events.append("fetch") or []
        self.staging.begin_to_store.side_effect = self.begin_to_store
        self.safekeeping = mock.Mock()
        self.safekeeping.find.return_value = None
        self.meter = mock.Mock()
        self.meter.start.return_value.finish.side_effect = self.finish
        self.meter.start.return_value.finish.return_value = {}
        for where, what in (
            (execution, "run_transformation_dict"),
            (execution.buffer_remote, "has_write_server"),
        ):
            patch = mock.patch.object(where, what)
            setattr(self, what, patch.start())
            self.addCleanup(patch.stop)
        self.run_transformation_dict.side_effect = self.code
        self.execution = execution.Execution(self.staging, self.safekeeping)

    def code(self, *_, **__):
        self.events.append("code")
        return self.result.get_checksum().hex()

    def finish(self):
        self.events.append("measure")
        return {}

    def begin_to_store(self, buffers):
        self.events.append("store")
        return lambda: self.events.append("stored")

    def request(self, **fields):
        sent = run_request(TRANSFORMATION)
        return RunRequest(sent["tf_checksum"], sent["transformation_dict"], **fields)

    def run_it(self, **fields):
        return self.execution.execute(
            self.request(**fields),
            1.0,
            self.meter,
            lambda _phase: None,
            lambda _name: None,
            lambda: self.events.append("mend"),
        )


class Order(Played):
    def test_what_the_code_has_changed_is_mended_before_anything_is_measured_or_stored(self):
        outcome = self.run_it()()
        self.assertIs(outcome.ending, Ending.RESULT, outcome.message)
        self.assertEqual(self.events, ["fetch", "code", "mend", "measure", "store", "stored"])

    def test_it_is_mended_too_when_the_code_fails(self):
        for error in (ValueError("mine"), SystemExit(1)):
            self.events.clear()
            self.run_transformation_dict.side_effect = error
            with self.subTest(error):
                self.assertIs(self.run_it()().ending, Ending.FAILED)
                self.assertEqual(self.events, ["fetch", "mend", "measure"])


class Recording(unittest.TestCase):
    def test_a_database_that_does_not_take_a_result_is_given_up(self):
        async def never(*_):
            await asyncio.get_running_loop().create_future()

        worker = entry._Worker.__new__(entry._Worker)
        worker._staging = staging.Staging(1.0, 0)
        with (
            mock.patch.object(database_remote, "set_transformation_result", never),
            mock.patch.object(entry, "_RECORD_LIMIT", 0.1),
        ):
            problem = worker.record("ab" * 32, "cd" * 32)
        self.assertEqual(problem, "the database does not answer within 0.1 s")


if __name__ == "__main__":
    unittest.main()
