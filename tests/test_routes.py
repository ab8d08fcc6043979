"""A caller that goes away at the moment at which its job ends, which nobody can time from outside."""

import asyncio
import concurrent.futures
import json
import threading
import unittest
from unittest import mock

from seamless_jobserver import http1
from seamless_jobserver.messages import Ending, Outcome
from seamless_jobserver.server import bridge as bridges
from seamless_jobserver.server import overview as overviews
from seamless_jobserver.server import routes
from seamless_jobserver.server.connection import ClientGone
from seamless_jobserver.server.overview import Overview
from seamless_jobserver.server.routes import Routes
from seamless_jobserver.server.watching import Watching
from tests.stack import PATIENCE

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


class Stuck(unittest.TestCase):
    def test_a_question_that_the_loop_does_not_get_to_is_answered_all_the_same(self):
        bridge = bridges.Bridge()
        busy, over = threading.Event(), threading.Event()

        async def hold_up_the_loop():
            busy.set()
            over.wait(PATIENCE)

        self.addCleanup(bridge.close, PATIENCE)
        self.addCleanup(over.set)
        bridge.submit(hold_up_the_loop())
        self.assertTrue(busy.wait(PATIENCE))
        service = mock.Mock(status=mock.AsyncMock(), check_store=mock.AsyncMock())
        service.cancel = mock.AsyncMock()
        overview = Overview(mock.Mock(), service, bridge, mock.Mock(), mock.MagicMock())
        asked = {
            "GET /metrics": 503,
            f"GET /transformation-status/{'ab' * 32}": 503,
            f"POST /cancel-transformation/{'ab' * 32}": 503,
            "POST /check-store": 504,
        }
        with (
            mock.patch.multiple(routes, _ANSWER_LIMIT=0.05, _CHECK_LIMIT=0.05),
            mock.patch.object(overviews, "_LIMIT", 0.05),
        ):
            for question, status in asked.items():
                head = http1.parse_request_head(f"{question} HTTP/1.1\r\nHost: x".encode())
                with self.subTest(question):
                    ours = Routes(service, bridge, "")
                    ours.watching = Watching(overview, service, bridge)
                    answer = ours.answer(head, b"", lambda _: None)
                    self.assertEqual(answer.status, status)


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
