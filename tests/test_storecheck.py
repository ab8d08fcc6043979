"""What ``seamless-jobserver check`` is told of a store and a database that are the test's."""

import asyncio
import unittest
from unittest import mock

from seamless_jobserver.transport import import_seamless_remote

import_seamless_remote()

import seamless  # noqa: E402
from seamless_remote import buffer_remote, database_remote  # noqa: E402

from seamless_jobserver.worker import storecheck  # noqa: E402
from seamless_jobserver.worker.staging import Staging  # noqa: E402
from tests.stack import PATIENCE  # noqa: E402


async def hang(*_):
    await asyncio.sleep(PATIENCE)


def gives(content):
    return mock.AsyncMock(return_value=None if content is None else seamless.Buffer(content))


def fails(message):
    return mock.AsyncMock(side_effect=OSError(message))


class Checking(unittest.TestCase):
    def setUp(self):
        self.staging = Staging(1.0, 0)
        self.taken = {}

    async def write(self, checksum, buffer):
        self.taken[checksum] = buffer
        return True

    async def read(self, checksum):
        return self.taken[checksum]

    def check(self, store, database):
        well = {
            "has_write_server": lambda: True,
            "write_buffer": self.write,
            "get_buffer": self.read,
        }
        known = {"has_write_server": lambda: True, "get_transformation_result": gives(None)}
        with (
            mock.patch.multiple(buffer_remote, **{**well, **store}),
            mock.patch.multiple(database_remote, **{**known, **database}),
        ):
            return storecheck.check(self.staging)

    def test_what_is_wrong_is_told_of_the_one_that_it_is_wrong_with(self):
        for store, problem in (
            ({}, None),
            ({"has_write_server": lambda: False}, "There is no hashserver that takes results"),
            ({"write_buffer": fails("refused")}, "OSError: refused. Does it run"),
            ({"get_buffer": gives(None)}, "it took a buffer, and does not give it back"),
            ({"get_buffer": gives(b"another")}, "it took a buffer, and does not give it back"),
            ({"write_buffer": hang}, "it does not answer within 0.1 s"),
        ):
            with (
                self.subTest(problem),
                mock.patch.object(storecheck, "_LIMIT", 0.1 if store else 60),
            ):
                self.assert_told(self.check(store, {}), problem, None)
        for database, problem in (
            ({"has_write_server": lambda: False}, "names none that can be written to"),
            ({"get_transformation_result": fails("refused")}, "OSError: refused. Does it run"),
            ({"get_transformation_result": hang}, "it does not answer within 0.1 s"),
        ):
            with self.subTest(problem), mock.patch.object(storecheck, "_LIMIT", 0.1):
                self.assert_told(self.check({}, database), None, problem)

    def assert_told(self, found, hashserver, database):
        for told, expected in ((found.hashserver, hashserver), (found.database, database)):
            if expected is None:
                self.assertIsNone(told)
            else:
                self.assertIn(expected, told)


if __name__ == "__main__":
    unittest.main()
