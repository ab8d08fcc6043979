"""A caller that goes away at the moment at which its job ends, which nobody can time from outside."""

import asyncio
import concurrent.futures
import json
import unittest
from unittest import mock

from seamless_jobserver import http1
from seamless_jobserver.messages import Ending, Outcome
from seamless_jobserver.server.connection import ClientGone
from seamless_jobserver.server.routes import Routes

RESULT = Outcome(Ending.RESULT, result_checksum="cd" * 32)
BODY = json.dumps(
    {
        "transformation_dict": {
            "__output__": ["result", "mixed", None],
            "code": ["python", "transformer", "ef" * 32],
        },
        "tf_checksum": "ab" * 32,
    }
).encode()


class Bridge:
    """Runs what it is given at once; the future is told of its end later, or never."""

    def submit(self, work):
        asyncio.run(work)
        return concurrent.futures.Future()


class AtTheVeryMoment(unittest.TestCase):
    def ask(self, outcome):
        service = mock.Mock(run=mock.AsyncMock(return_value=outcome), note_unheard=mock.AsyncMock())

        def leave(_future):
            raise ClientGone("it closed the connection")

        head = http1.parse_request_head(b"GET /run-transformation HTTP/1.1\r\nHost: x")
        with self.assertRaises(ClientGone):
            Routes(service, Bridge(), "").answer(head, BODY, leave)
        return service.note_unheard.await_args_list

    def test_a_result_that_its_future_does_not_know_of_yet_is_noted(self):
        ((noted,),) = (call.args[1:] for call in self.ask(RESULT))
        self.assertIs(noted, RESULT)

    def test_a_job_that_a_worker_runs_itself_is_not(self):
        self.assertEqual(self.ask(3), [])
