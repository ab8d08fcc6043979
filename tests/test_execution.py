"""One transformation in a worker: the order of what is done, with its parts played by the test."""

import asyncio
import builtins
import contextlib
import io
import os
import signal
import threading
import unittest
import weakref
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

from seamless_jobserver.transport import import_seamless_remote

import_seamless_remote()

import seamless  # noqa: E402
from seamless_remote import buffer_remote, database_remote  # noqa: E402
from seamless_transformer import SeamlessStreamTransformationError  # noqa: E402
from seamless_transformer import run as seamless_run  # noqa: E402
from seamless_transformer.probe_index import RECORD_PROBE_DUNDER  # noqa: E402

from seamless_jobserver.messages import Ending, Outcome, RunRequest, WorkerSettings  # noqa: E402
from seamless_jobserver.progress import Phase  # noqa: E402
from seamless_jobserver.transport import aiohttp_standin, connection  # noqa: E402
from seamless_jobserver.worker import (  # noqa: E402
    entry,
    execution,
    failure,
    measure,
    nested,
    record,
    staging,
)
from seamless_jobserver.worker.confirmations import StoreBusy  # noqa: E402
from seamless_jobserver.worker.pins import Need  # noqa: E402
from seamless_jobserver.worker.unserved import (  # noqa: E402
    InputMissing,
    InputUndelivered,
    StoreUnavailable,
)
from tests.stack import PATIENCE, run_request  # noqa: E402

TRANSFORMATION = {"__language__": "python", "__output__": ["result", "bytes", None]}
STORED = ["store the result", "store itself", "stored the result", "stored itself"]


class Played(unittest.TestCase):
    """An `Execution` whose staging, spool and meter are the test's; `events` is what happened."""

    def setUp(self):
        self.events = []
        self.not_taken = ()
        self.result = seamless.Buffer(b"the result")
        self.staging = mock.Mock(kept=0)
        self.staging.fetch.side_effect = lambda *_: self.events.append("fetch") or []
        self.staging.begin_to_store.side_effect = self.begin_to_store
        self.staging.store.side_effect = self.store
        self.safekeeping = mock.Mock()
        self.safekeeping.find.return_value = None
        self.meter = mock.Mock()
        self.meter.start.return_value.finish.side_effect = self.finish
        self.meter.start.return_value.leave_out.side_effect = lambda wait: wait()
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

    def begin_to_store(self, buffers, patience=None):
        (buffer,) = buffers
        what = "the result" if buffer is self.result else "itself"
        self.events.append(f"store {what}")

        def wait():
            self.events.append(f"stored {what}")
            if what in self.not_taken:
                raise StoreUnavailable(f"{what} was not taken\n")

        return wait

    def store(self, buffers):
        self.events += [f"store a part of {len(buffer)} bytes" for buffer in buffers]

    def request(self, **fields):
        sent = run_request(TRANSFORMATION)
        return RunRequest(sent["tf_checksum"], sent["transformation_dict"], **fields)

    def run_it(self, enter=lambda _phase: None, settle=lambda: None, **fields):
        return self.execution.execute(
            self.request(**fields),
            1.0,
            self.meter,
            enter,
            lambda _name: None,
            lambda: self.events.append("mend"),
            settle,
        )

    def test_only_what_has_run_counts(self):
        self.run_it().wait()
        self.meter.take_back.assert_not_called()
        self.staging.fetch.side_effect = InputMissing([])
        self.run_it().wait()
        self.meter.take_back.assert_called_once()
        self.safekeeping.find.return_value = mock.Mock()
        self.run_it().wait()
        self.assertEqual(self.meter.take_back.call_count, 2)


class Order(Played):
    def test_what_the_code_has_changed_is_mended_before_anything_is_measured_or_stored(self):
        outcome = self.run_it().wait()
        self.assertIs(outcome.ending, Ending.RESULT, outcome.message)
        self.assertEqual(self.events, ["fetch", "code", "mend", "measure", *STORED])

    def test_it_is_mended_too_when_the_code_fails(self):
        for error in (ValueError("mine"), SystemExit(1)):
            self.events.clear()
            self.run_transformation_dict.side_effect = error
            with self.subTest(error):
                self.assertIs(self.run_it().wait().ending, Ending.FAILED)
                self.assertEqual(self.events, ["fetch", "mend", "measure"])

    def test_the_result_before_is_safe_before_the_code_begins_and_waiting_for_it_is_left_out(self):
        self.run_it(settle=lambda: self.events.append("settled")).wait()
        self.assertEqual(self.events[:3], ["fetch", "settled", "code"])
        self.meter.start.return_value.leave_out.assert_called_once()

    def test_so_it_is_before_a_result_that_was_kept_is_delivered(self):
        self.safekeeping.find.return_value = object()
        self.safekeeping.deliver.side_effect = lambda *_: self.events.append("deliver")
        self.run_it(settle=lambda: self.events.append("settled"))
        self.assertEqual(self.events[:2], ["settled", "deliver"])

    def test_a_job_whose_turn_it_is_not_yet_is_handed_back(self):
        outcome = self.run_it(settle=mock.Mock(side_effect=StoreBusy)).wait()
        self.assertIs(outcome.ending, Ending.NOT_BEGUN)
        self.assertEqual(self.events, ["fetch", "measure"])

    def test_each_phase_is_told_and_after_putting_back_the_one_that_it_is_in(self):
        for fails, last in ((False, Phase.STORING), (True, Phase.RUNNING)):
            phases = []
            self.run_transformation_dict.side_effect = ValueError if fails else self.code
            with self.subTest(fails=fails):
                self.run_it(enter=phases.append)
                begun = [Phase.FETCHING, Phase.RUNNING, *([] if fails else [Phase.STORING])]
                self.assertEqual(phases, [*begun, Phase.PUTTING_BACK, last])

    def test_the_leaves_of_a_result_are_stored_before_what_names_them(self):
        self.result = seamless.Buffer({"leaf": "ab" * 32}, "plain")
        with (
            mock.patch.dict(TRANSFORMATION, {"__output__": ["result", "deepcell", None]}),
            mock.patch.object(execution, "held_leaves", return_value=[seamless.Buffer(b"leaf")]),
        ):
            self.assertIs(self.run_it().wait().ending, Ending.RESULT)
        stored = [event for event in self.events if event.startswith("store ")]
        self.assertEqual(stored, ["store a part of 4 bytes", "store the result", "store itself"])

    def test_what_compiled_code_was_given_is_not_kept_however_it_ends(self):
        for fails in (False, True):
            self.staging.reset_mock()
            self.run_transformation_dict.side_effect = OSError("no") if fails else self.code
            self.run_it(dunder={"__compiled__": True}).wait()
            self.staging.forget.assert_called_once()

    def test_what_is_missing_when_it_has_run_is_its_failure_and_no_reason_to_run_it_again(self):
        missed = mock.Mock(side_effect=seamless.CacheMissError("ab" * 32))
        self.staging.begin_to_store.side_effect = lambda *_: missed
        self.assertIs(self.run_it().wait().ending, Ending.FAILED)

    def test_a_transformation_that_this_seamless_cannot_name_runs_and_that_is_said(self):
        with mock.patch.object(execution, "tf_get_buffer", side_effect=ValueError("__new__")):
            outcome = self.run_it().wait()
        self.assertIs(outcome.ending, Ending.RESULT)
        self.assertIn("does not hash to its checksum", outcome.remark)

    def test_inputs_are_gone_when_the_result_is_on_its_way_out(self):
        class Input:
            pass

        def fetch(*_):
            fetched = [Input()]
            inputs.append(weakref.ref(fetched[0]))
            return fetched

        def store(*_):
            held.append(inputs[0]())
            return lambda: None

        inputs, held = [], []
        self.staging.fetch.side_effect = fetch
        self.staging.begin_to_store.side_effect = store
        self.run_it().wait()
        self.assertEqual(held, [None, None])


class Records(Played):
    def test_a_result_is_kept_safe_while_its_record_cannot_be_made(self):
        self.safekeeping.keep.return_value = "It is kept.\n"
        error = StoreUnavailable("The store hangs.\n")
        with mock.patch.object(record, "compilation_runtime", side_effect=error):
            self.check_kept(error)

    def test_a_record_that_never_can_be_made_is_the_jobs_own_failure_and_not_tried_again(self):
        error = FileNotFoundError(2, "its working directory is gone")
        with mock.patch.object(record, "compilation_runtime", side_effect=error):
            outcome = self.run_it().wait()
        self.assertIs(outcome.ending, Ending.FAILED)
        self.assertIn("its working directory is gone", outcome.message)

    def test_a_result_is_kept_safe_whatever_keeps_it_from_being_sent(self):
        self.safekeeping.keep.return_value = "It is kept.\n"
        self.staging.begin_to_store.side_effect = error = RuntimeError("can't start new thread")
        self.check_kept(error)

    def check_kept(self, error):
        outcome = self.run_it().wait()
        self.assertIs(outcome.ending, Ending.STORE_FAILED)
        self.assertIn(str(error), outcome.message)
        self.assertIn("It is kept.", outcome.message)
        self.safekeeping.keep.assert_called_once()

    def test_a_string_that_only_looks_like_the_name_of_a_leaf_is_none(self):
        buffer = seamless.Buffer(b"a leaf")
        leaf = buffer.get_checksum().hex()
        structure = {"a": leaf, "b": "ACGT" * 16, "c": ["text"]}
        self.assertEqual(staging.held_leaves(structure), [buffer])


class Loops(unittest.TestCase):
    def test_one_whose_thread_could_not_be_started_is_closed_with_the_others(self):
        loop = asyncio.new_event_loop()
        self.addCleanup(loop.close)
        loops = nested.transformation_class._LOOP_THREADS
        loops[loop] = threading.Thread()
        self.addCleanup(loops.pop, loop, None)
        nested.end_loops()
        self.assertTrue(loop.is_closed())
        self.assertNotIn(loop, loops)

    def test_one_that_runs_ends_with_its_tasks_and_its_threads(self):
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        loops = nested.transformation_class._LOOP_THREADS
        loops[loop] = thread
        self.addCleanup(loops.pop, loop, None)
        canceled, begun = threading.Event(), threading.Event()

        async def wait():
            begun.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                canceled.set()

        async def use_a_thread():
            return await asyncio.get_running_loop().run_in_executor(None, threading.current_thread)

        asyncio.run_coroutine_threadsafe(wait(), loop)
        user = asyncio.run_coroutine_threadsafe(use_a_thread(), loop).result(PATIENCE)
        self.assertTrue(begun.wait(PATIENCE))
        with mock.patch.object(nested, "_END_LIMIT", PATIENCE):
            nested.end_loops()
        self.assertTrue(canceled.is_set())
        self.assertTrue(loop.is_closed())
        self.assertEqual((thread.is_alive(), user.is_alive()), (False, False))
        self.assertNotIn(loop, loops)

    def test_what_is_kept_for_threads_and_loops_that_have_ended_is_closed(self):
        ended, closed, open_loop = threading.Thread(), *(asyncio.new_event_loop() for _ in "ab")
        closed.close()
        self.addCleanup(open_loop.close)
        alive = threading.current_thread()
        client = mock.Mock(
            _sessions={ended: "session", alive: "session"}, _semaphores={closed: 1, open_loop: 2}
        )
        with mock.patch.object(nested.remote_client, "_clients", [client]):
            nested.end_loops()
        client._close_sessions_for_thread.assert_called_once_with(ended)
        self.assertEqual(client._semaphores, {open_loop: 2})


class Messages(unittest.TestCase):
    def test_one_of_a_size_that_nobody_reads_has_its_beginning_and_its_end(self):
        for error, language in (
            (ValueError("first" + "x" * 5_000_000 + "last"), "python"),
            (SystemExit("first" + "x" * 5_000_000 + "last"), "python"),
            (ValueError("first" + "x" * 5_000_000 + "last"), "bash"),
            (SeamlessStreamTransformationError("first" + "x" * 5_000_000 + "last"), "bash"),
        ):
            with self.subTest(type(error), language=language):
                text = failure.describe(error, language)
                self.assertLess(len(text), 1_100_000)
                self.assertIn("first", text[:100])
                self.assertIn("last", text[-100:])
                self.assertIn("characters left out", text)

    def raised(self, code, place="/of/a/user.py"):
        """Return what `code`, a function that lies in a file at `place`, raises when it is called."""
        ours = os.path.join(os.path.dirname(failure.__file__), "plumbing.py")
        names = {}
        exec(compile(code, place, "exec"), names)
        exec(compile("def call(function):\n    function()\n", ours, "exec"), names)
        try:
            names["call"](names["f"])
        except (KeyError, ValueError) as error:
            return error.with_traceback(error.__traceback__.tb_next)
        raise AssertionError(code)

    def test_what_led_to_the_users_code_is_shown_in_no_part_of_a_failure(self):
        inner = self.raised("def f():\n    raise KeyError('inner')\n")
        outer = self.raised("def f():\n    raise ValueError('outer')\n")
        for cause, context in ((inner, None), (None, inner)):
            outer.__cause__, outer.__context__ = cause, context
            outer.__suppress_context__ = cause is not None
            with self.subTest(cause):
                self.check_shown(failure.describe(outer, "python"), "inner", "outer")
        if hasattr(builtins, "ExceptionGroup"):
            group = builtins.ExceptionGroup("several", [inner])
            self.check_shown(failure.describe(group, "python"), "inner", "several")

    def check_shown(self, text, *parts):
        for part in (*parts, "/of/a/user.py"):
            self.assertIn(part, text)
        self.assertNotIn("plumbing.py", text)

    def test_one_that_has_not_reached_the_users_code_is_a_message_alone(self):
        error = self.raised("def f():\n    raise ValueError('mine')\n", failure.__file__)
        self.assertEqual(failure.describe(error, "python"), "ValueError: mine\n")

    def test_what_sys_exit_was_given_may_be_anything(self):
        class Odd:
            def __repr__(self):
                raise ValueError("no")

        self.assertIn("sys.exit(<Odd, which cannot", failure.describe(SystemExit(Odd()), "python"))
        self.assertIn("sys.exit(3)", failure.describe(SystemExit(3), "python"))


class Scratch(Played):
    def test_the_transformation_itself_is_offered_to_the_store_for_a_moment_only(self):
        outcome = self.run_it(scratch=True).wait()
        self.assertIs(outcome.ending, Ending.RESULT)
        (buffers, patience) = self.staging.begin_to_store.call_args.args
        self.assertEqual(
            [buffer.get_checksum().hex() for buffer in buffers], [self.request().checksum]
        )
        self.assertLessEqual(patience, 10)

    def test_a_result_that_was_kept_is_none_of_its_business(self):
        self.safekeeping.find.return_value = object()
        self.assertIs(self.run_it(scratch=True).wait().ending, Ending.RESULT)
        self.safekeeping.deliver.assert_not_called()

    def test_nothing_is_offered_where_no_store_takes_anything(self):
        self.has_write_server.return_value = False
        self.assertIs(self.run_it(scratch=True).wait().ending, Ending.RESULT)
        self.staging.begin_to_store.assert_not_called()


class Early(Played):
    def test_a_result_is_told_of_before_it_is_stored_only_if_all_that_it_holds_is_small(self):
        self.result = seamless.Buffer({"leaf": "ab" * 32}, "plain")
        deep = mock.patch.dict(TRANSFORMATION, {"__output__": ["result", "deepcell", None]})
        for size, early in ((100, True), (2**20, False)):
            leaves = [seamless.Buffer(bytes(size))]
            with (
                self.subTest(size),
                deep,
                mock.patch.object(execution, "held_leaves", return_value=leaves),
            ):
                ended = self.run_it()
                self.assertIs(ended.wait().ending, Ending.RESULT)
                self.assertIs(ended.soon is not None, early)


class KeptResults(Played):
    def test_a_result_is_kept_with_its_transformation_whichever_of_them_was_not_taken(self):
        self.safekeeping.keep.return_value = "advice\n"
        both = {self.result.get_checksum().hex(), self.request().checksum}
        for self.not_taken in (("the result",), ("itself",), ("the result", "itself")):
            self.events.clear()
            self.safekeeping.keep.reset_mock()
            with self.subTest(self.not_taken):
                outcome = self.run_it().wait()
                self.assertIs(outcome.ending, Ending.STORE_FAILED)
                self.assertEqual(outcome.message, f"{self.not_taken[0]} was not taken\nadvice\n")
                self.assertEqual(self.events[-5:-1], STORED, "none is left under way")
                self.safekeeping.keep.assert_called_once()
                kept = self.safekeeping.keep.call_args.args[2]
                self.assertEqual({buffer.get_checksum().hex() for buffer in kept}, both)
                self.assertEqual(self.safekeeping.keep.call_args.kwargs, {"whole": True})

    def test_one_that_cannot_be_delivered_any_more_is_computed_again(self):
        self.safekeeping.find.return_value = object()
        self.safekeeping.deliver.return_value = None
        self.assertIs(self.run_it().wait().ending, Ending.RESULT)
        # Measured once: it would count for nothing, and the code's own run for the record.
        self.assertEqual(self.events, ["fetch", "code", "mend", "measure", *STORED])

    def test_a_result_is_kept_when_what_its_record_needs_cannot_be_had(self):
        self.safekeeping.keep.return_value = "advice\n"
        self.result.tempref(scratch=True)
        away = StoreUnavailable("it is away\n")
        with (
            mock.patch.object(record, "probe_context", return_value=None),
            mock.patch.object(record, "answer_fields", side_effect=away),
        ):
            outcome = self.run_it(record=True).wait()
        self.assertIs(outcome.ending, Ending.STORE_FAILED)
        self.assertEqual(outcome.message, "it is away\nadvice\n")
        self.assertEqual(self.safekeeping.keep.call_args.kwargs, {"whole": False})
        _, kept, buffers = self.safekeeping.keep.call_args.args
        self.assertEqual(kept.result_checksum, self.result.get_checksum().hex())
        self.assertIn("job_validation", kept.extra)
        self.assertIn(self.result.content, [buffer.content for buffer in buffers])


def packed(fault, *messages):
    """Return `fault` as seamless-remote passes it on: inside a RuntimeError for each message."""
    for message in messages:
        error = RuntimeError(message)
        error.__cause__ = fault
        fault = error
    return fault


UNREACHED = {
    "a refused connection": aiohttp_standin.ClientConnectionError("refused"),
    "one in a healthcheck": packed(aiohttp_standin.ClientConnectionError("refused"), "Healthcheck"),
    "a time that is over": packed(asyncio.TimeoutError(), "Healthcheck failed for u: "),
    "both": packed(asyncio.TimeoutError(), "Healthcheck failed for u: ", "Cannot reach it"),
    "a bad status": packed(
        RuntimeError("Healthcheck failed for u: HTTP 503"), "Healthcheck failed for u: HTTP 503"
    ),
}


class Unreached(unittest.TestCase):
    def ask(self, error):
        async def fail():
            raise error

        staging = mock.Mock()
        staging.call.side_effect = asyncio.run
        return record._ask(staging, fail(), 10.0, "The database")

    def test_a_server_that_cannot_be_reached_is_named_and_is_not_the_jobs_failure(self):
        for name, error in UNREACHED.items():
            with self.subTest(name), self.assertRaisesRegex(StoreUnavailable, "^The database"):
                self.ask(error)

    def test_what_else_goes_wrong_is_passed_on(self):
        for error in (RuntimeError("a probe is stale"), ZeroDivisionError()):
            with self.subTest(error), self.assertRaises(type(error)):
                self.ask(error)


class SideBySide(unittest.TestCase):
    """What Seamless does not expect several threads to do at the same time."""

    def test_compiled_code_is_built_and_run_by_one_thread_at_a_time(self):
        for one_at_a_time in (record._noting_digests, record._one_at_a_time):
            working, entered = [], threading.Barrier(2)

            def work(working=working, entered=entered):
                working.append(None)
                with contextlib.suppress(threading.BrokenBarrierError):
                    entered.wait(0.2)  # nobody else comes
                working.pop()
                return {"most": len(working) + 1}

            work = one_at_a_time(work)
            with self.subTest(one_at_a_time), ThreadPoolExecutor(2) as threads:
                found = list(threads.map(lambda _, work=work: work(), range(2)))
                self.assertEqual(found, 2 * [{"most": 1}])
                self.assertTrue(entered.broken)
        record.hook_in()
        self.assertEqual(seamless_run.call_compiled_transform.__module__, record.__name__)

    def test_a_seamless_that_lacks_what_is_looked_over_the_shoulder_is_left_alone(self):
        for module, name, _ in record._HOOKS:
            with self.subTest(name):
                kept = getattr(module, name)
                delattr(module, name)
                try:
                    record.hook_in()
                    self.assertFalse(hasattr(module, name))
                finally:
                    setattr(module, name, kept)
        record.hook_in()
        hooked = [getattr(module, name) for module, name, _ in record._HOOKS]
        record.hook_in()
        self.assertEqual([getattr(module, name) for module, name, _ in record._HOOKS], hooked)

    def test_the_probes_of_a_job_are_not_asked_for_a_second_time(self):
        asked = []
        ensure = record._unless_known(lambda *arguments: asked.append(arguments))
        in_record = RunRequest("ab" * 32, TRANSFORMATION, record=True)
        with record.probes_known(in_record):
            ensure({}, None)
            self.assertEqual(asked, [])
            ensure({}, None)  # of what the job itself runs
            self.assertEqual(len(asked), 1)
        with record.probes_known(RunRequest("ab" * 32, TRANSFORMATION)):
            ensure({}, None)
        ensure({}, None)
        self.assertEqual(len(asked), 3)
        with record.probes_known(in_record):
            pass  # it never came to that
        ensure({}, None)
        self.assertEqual(len(asked), 4)

    def test_a_probe_needs_none_itself(self):
        probe = RunRequest("ab" * 32, TRANSFORMATION, {RECORD_PROBE_DUNDER: True}, record=True)
        self.assertIsNone(record.probe_context(probe, mock.Mock(), 1.0))

    def test_a_flush_that_another_thread_gets_in_the_way_of_is_tried_again(self):
        changed = RuntimeError("dictionary changed size during iteration")
        flush = mock.Mock(side_effect=[changed, changed, None])
        nested._in_one_thread(flush)(timeout=1.0)
        self.assertEqual(flush.mock_calls, 3 * [mock.call(timeout=1.0)])
        with self.assertRaises(RuntimeError):
            nested._in_one_thread(mock.Mock(side_effect=RuntimeError("another")))()


class Patience(unittest.TestCase):
    def test_an_input_may_take_longer_as_long_as_more_of_it_comes(self):
        lasting = staging.Staging(1.0, 0)

        def fetch(*, comes, faults=()):
            left = list(faults)

            async def get(_checksum):
                for _ in range(5):
                    await asyncio.sleep(0.3)
                    if comes:
                        connection._note_progress()
                if left:
                    raise left.pop()
                return seamless.Buffer(b"large")

            wanted = [Need("a", "bytes", "ab" * 32)]
            lengths = mock.AsyncMock(return_value=[None])
            with mock.patch.multiple(buffer_remote, get_buffer=get, get_buffer_lengths=lengths):
                return lasting.fetch(iter(wanted), 1.0, lambda: None)

        for faults in ((), (OSError("it breaks off"),)):
            found = fetch(comes=True, faults=faults)
            self.assertEqual([buffer.content for buffer in found], [b"large"])
        with self.assertRaises(StoreUnavailable):
            fetch(comes=False)

    def test_inputs_are_given_up_when_the_store_has_not_taken_the_result_before_by_then(self):
        given_up = threading.Event()

        asked = threading.Event()

        async def never(_checksum):
            asked.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                given_up.set()

        def settle():
            asked.wait(PATIENCE)
            raise StoreBusy

        with (
            mock.patch.object(buffer_remote, "get_buffer", never),
            mock.patch.object(staging, "PATIENCE", 0.05),
            self.assertRaises(StoreBusy),
        ):
            wanted = iter([Need("a", "bytes", "ab" * 32)])
            staging.Staging(1.0, 0).fetch(wanted, 10 * PATIENCE, lambda: None, settle)
        self.assertTrue(given_up.wait(PATIENCE))


class NestedRuns(unittest.IsolatedAsyncioTestCase):
    FIELDS = {
        "transformation_dict": {"__language__": "python", "code": ["python", None, "ab" * 32]},
        "tf_checksum": "cd" * 32,
        "tf_dunder": {},
        "scratch": False,
        "strict_dunder": False,
        "record": False,
    }

    def client(self, run_here=None):
        settings = WorkerSettings({}, False, "http://u:p@127.0.0.1:9", 1, 1.0, 1.0, 100, 0)
        return nested._NestedClient(settings, run_here, measure.Meter(lambda: 0.0))

    async def test_a_server_that_does_not_answer_is_not_asked_again_at_once(self):
        client, sessions = self.client(), []

        def session(**_):
            sessions.append(mock.Mock(close=mock.AsyncMock(), get=self.fail_to_get))
            return sessions[-1]

        clock = mock.Mock(return_value=1000.0)
        with (
            mock.patch.object(nested, "ClientSession", session),
            mock.patch.object(nested.time, "monotonic", clock),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            for moment, asked in ((0.0, 1), (1.0, 1), (nested._SERVER_PAUSE + 2.0, 2)):
                clock.return_value = 1000.0 + moment
                self.assertIsNone(await client._ask(self.FIELDS))
                self.assertEqual(len(sessions), asked)

    async def test_what_the_server_answers_is_taken_or_it_is_run_here(self):
        for status, text, taken in (
            (200, '{"result_checksum": "x"}', {"result_checksum": "x"}),
            (202, '{"host": 7}', {"host": 7}),
            (403, "whose connection is this?", None),
            (500, "ZeroDivisionError: mine", RuntimeError),
        ):
            answer = mock.Mock(status=status, text=mock.AsyncMock(return_value=text))
            get = mock.Mock(side_effect=lambda *_, a=answer, **__: contextlib.nullcontext(a))
            session = mock.Mock(get=get, close=mock.AsyncMock())
            with (
                self.subTest(status),
                mock.patch.object(nested, "ClientSession", return_value=session),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                if taken is RuntimeError:
                    with self.assertRaisesRegex(RuntimeError, text):
                        await self.client()._ask(self.FIELDS)
                else:
                    self.assertEqual(await self.client()._ask(self.FIELDS), taken)
                session.close.assert_awaited_once()

    async def test_what_another_slot_has_answered_is_whole(self):
        fields = {name: value for name, value in self.FIELDS.items() if name != "record"}
        for answer, expected in (
            ({"remote_job_written": "marker"}, {"remote_job_written": "marker"}),
            (
                {"result_checksum": "ef" * 32, "job_validation": {"v": 1}},
                {
                    "result_checksum": seamless.Checksum("ef" * 32),
                    "probe_context": None,
                    "compilation_context": None,
                    "job_validation": {"v": 1},
                },
            ),
        ):
            client = self.client()
            with mock.patch.object(client, "_ask", mock.AsyncMock(return_value=answer)):
                self.assertEqual(await client.run_transformation(**fields), expected)

    async def test_a_database_that_hangs_is_given_up_and_left_alone_for_a_while(self):
        async def hang(*_):
            asked.append(None)
            await asyncio.sleep(PATIENCE)
            return "a result"

        asked, database = [], nested._Database()
        with (
            mock.patch.object(database_remote, "get_transformation_result", hang),
            mock.patch.object(nested, "_DATABASE_LIMIT", 0.05),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            for _ in range(2):
                self.assertIsNone(await database.get_transformation_result("ab" * 32))
        self.assertEqual(len(asked), 1)

    def test_what_the_database_does_not_say_matters_in_record_mode_alone(self):
        for recorded in (False, True):
            settings = WorkerSettings({}, recorded, "http://u:p@127.0.0.1:9", 1, 1.0, 1.0, 100, 0)
            cache = mock.Mock(database_remote=database_remote)
            with (
                mock.patch.multiple(nested, transformation_cache=cache, set_nparallel=mock.Mock()),
                mock.patch.object(database_remote, "has_write_server", return_value=False),
            ):
                nested.take_over(settings, mock.Mock(), mock.Mock())
            self.assertEqual(isinstance(cache.database_remote, nested._Database), not recorded)

    def test_how_one_that_is_run_here_ended_is_told_again_and_that_it_has_begun_is_not(self):
        # What becomes of each attempt, on connections that were kept and on new ones -> how many are
        # made to tell that it has begun, and how it has ended.
        refused, broken = ConnectionRefusedError(), BrokenPipeError()
        for kept, new, attempts in (
            ([], [None], (1, 1)),
            ([None], [], (1, 1)),
            ([broken], [None], (2, 2)),
            ([broken, broken], [None], (3, 3)),
            ([], [broken, None], (1, 2)),
            ([], [broken, broken, None], (1, 3)),
            ([], [broken, broken, broken, None], (1, 3)),
            ([], [refused, None], (1, 1)),
        ):
            for event, expected in zip(("started", "ended"), attempts, strict=True):
                with self.subTest(event, kept=kept, new=new):
                    self.check_report(event, kept, new, expected)

    def check_report(self, event, kept, new, expected):
        client = self.client()
        fates = [mock.Mock(**{"request.side_effect": [fate]}) for fate in (*kept, *new)]
        client._kept = fates[: len(kept)]
        with mock.patch.object(client, "_connect", side_effect=fates[len(kept) :]):
            client._report(7, event, {})
        self.assertEqual(sum(one.request.call_count for one in fates), expected)
        good = [one for one in fates if one.getresponse.called]
        self.assertEqual(client._kept, good, "for the next report")

    def test_one_that_is_run_here_is_as_another_slot_would_have_it_and_its_answer_is_whole(self):
        outcome = Outcome(
            Ending.RESULT, result_checksum="ef" * 32, runtime={"r": 1}, extra={"job_validation": 5}
        )
        run_here = mock.Mock(return_value=outcome)
        code = ("python", None, "ab" * 32)
        payload = self.client(run_here)._host(
            {**self.FIELDS, "transformation_dict": {"code": code}}, None
        )
        self.assertEqual(run_here.call_args.args[0].transformation, {"code": [*code]})
        self.assertEqual(
            payload,
            {"result_checksum": "ef" * 32, "record_runtime": {"r": 1}, "job_validation": 5},
        )

    async def test_its_health_is_not_asked_for(self):
        # Or the server would never be idle: seamless-remote asks each client that it has used.
        client = self.client()
        client.url = "http://127.0.0.1:9"  # where nobody would answer
        await client._wait_for_init()
        await client.healthcheck()

    def fail_to_get(self, *_, **__):
        raise nested.ServerTimeoutError("no answer")

    def test_what_the_store_did_not_do_is_not_told_as_the_failure_of_a_hosted_job(self):
        for error, ending in (
            (StoreUnavailable("it is away"), Ending.STORE_FAILED),
            (InputUndelivered("it has not come"), Ending.INPUT_UNDELIVERED),
            (ValueError("mine"), Ending.FAILED),
        ):
            client = self.client(mock.Mock(side_effect=error))
            with (
                self.subTest(ending),
                mock.patch.object(client, "_report") as report,
                self.assertRaises(type(error)),
            ):
                client._host(self.FIELDS, 7)
            (number, event, told) = report.call_args.args
            self.assertEqual((number, event), (7, "ended"))
            self.assertIs(Outcome.from_json(told).ending, ending)


class Mending(unittest.TestCase):
    def test_what_the_code_has_changed_strikes_nothing_that_follows_it(self):
        parts, worker = mock.Mock(), entry._Worker.__new__(entry._Worker)
        worker._surroundings, worker._capture = parts.surroundings, parts.capture
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        worker._mend()
        self.assertIs(signal.getsignal(signal.SIGINT), signal.SIG_IGN)
        expected = [
            mock.call.surroundings.mend(),  # timers, which could be the end of it
            mock.call.capture.mend(),  # before anything is opened
            mock.call.surroundings.limits.restore(),
        ]
        self.assertEqual(parts.mock_calls, expected)


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
