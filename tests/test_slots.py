"""Slots without processes: workers that cannot be had, and those that are to end."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import gc
import itertools
import unittest
import weakref
from multiprocessing import resource_tracker
from unittest import mock

from seamless_jobserver.messages import Ending, Outcome, WorkerProgram, WorkerSettings
from seamless_jobserver.progress import Phase
from seamless_jobserver.server import slots as slots_module
from seamless_jobserver.server.slot import TRANSITIONS, Slot, SlotEvent, SlotState
from seamless_jobserver.server.slots import Slots
from seamless_jobserver.server.transitions import IllegalMove
from seamless_jobserver.server.workers import NotBegun, WorkerGone, WorkerStartFailed
from tests.test_service import RESULT, request

SETTINGS = WorkerSettings({}, False, "", 1, 1.0, 1.0, 100, 0)
PROGRAM = WorkerProgram(print, print, print, print)
# What making a worker can raise, whatever the limit that is reached.
WANT = (
    WorkerStartFailed("a package is missing"),
    RuntimeError("can't start new thread"),
    OSError(24, "Too many open files"),
    FileNotFoundError(2, "/dev/shm is not there"),
)


class FakeWorker:
    """A worker whose job ends when the test says so."""

    def __init__(self, *_):
        self.verdict = None
        self.retired = self.killed = False
        self.phase = Phase.RUNNING
        self.job_name = ""
        self.pid = 0
        self.identity = None
        self.job = None
        self.owed = asyncio.get_running_loop().create_future()

    async def ready(self):
        pass

    def watch(self):
        self._ended = asyncio.get_running_loop().create_future()
        return self._ended

    def end(self):
        self._ended.set_result(None)

    async def answered(self, question):
        return await asyncio.wrap_future(question)

    def submit(self, *_):
        self.job = concurrent.futures.Future()
        return self.job

    def doom(self, verdict):
        self.verdict = self.verdict or verdict

    def receipt(self, _outcome):
        return self.owed

    async def terminate(self):
        self.killed = True

    async def describe_end(self):
        return "signal 9 SIGKILL"

    def give_up_results(self, how):
        self.given_up = how

    def kill(self):
        self.killed = True

    def forget(self):
        self.forgotten = True

    async def close(self, timeout):
        self.closed_within = timeout


class SlotsCase(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self, count=1):
        self.freed = asyncio.Event()
        self.exhausted = asyncio.Queue()
        self.buried = asyncio.Queue()
        self.guardian = mock.Mock()
        self.slots = Slots(
            count,
            PROGRAM,
            SETTINGS,
            self.guardian,
            memory_limit=None,
            new_directory=lambda: "",
            freed=self.freed.set,
            buried=lambda *one: self.buried.put_nowait(one),
            exhausted=self.exhausted.put_nowait,
        )

    @contextlib.asynccontextmanager
    async def started(self, make):
        with mock.patch.object(slots_module, "Worker", make):
            self.slots.start()
            yield
            await self.slots.close(0.0)

    async def run_in(self, slot):
        """Return the task of a job that an idle slot has begun to run."""
        slot.reserve()
        slot.hand_over(request("1"), "", 1.0)
        run = asyncio.ensure_future(slot.outcome())
        await asyncio.sleep(0)
        return run


class States(SlotsCase):
    def test_an_event_that_cannot_happen_in_a_state_leaves_it_as_it_is(self):
        for state, event in itertools.product(SlotState, SlotEvent):
            with self.subTest(state=state, event=event):
                slot = Slot(1)
                slot.state = state
                target = TRANSITIONS.get((state, event))
                if target is None:
                    with self.assertRaises(IllegalMove):
                        slot.apply(event)
                    self.assertIs(slot.state, state)
                else:
                    slot.apply(event)
                    self.assertIs(slot.state, target)

    async def test_a_slot_that_is_taken_cannot_be_taken_again(self):
        async with self.started(FakeWorker):
            await asyncio.wait_for(self.freed.wait(), 20)
            slot = self.slots.idle()
            slot.reserve()
            ticket = slot.ticket()
            with self.assertRaises(IllegalMove):
                slot.reserve()
            self.assertEqual(slot.ticket(), ticket)

    async def test_a_job_that_hears_late_of_its_workers_end_does_not_cost_the_next_worker(self):
        async with self.started(FakeWorker):
            await asyncio.wait_for(self.freed.wait(), 20)
            slot = self.slots.idle()
            run = await self.run_in(slot)
            first = slot.worker
            slot.apply(SlotEvent.GONE)
            slot.worker = FakeWorker()
            slot.apply(SlotEvent.START)
            slot.apply(SlotEvent.READY)
            first.job.set_exception(concurrent.futures.BrokenExecutor())
            self.assertIs((await run).ending, Ending.CRASHED)
            slot.free()
            self.assertIs(self.slots.idle(), slot)

    async def test_what_a_job_is_called_is_known_when_its_worker_has_been_replaced(self):
        async with self.started(FakeWorker):
            await asyncio.wait_for(self.freed.wait(), 20)
            slot = self.slots.idle()
            run = await self.run_in(slot)
            first, slot.worker = slot.worker, FakeWorker()
            first.job_name = "simulate"
            first.job.set_exception(concurrent.futures.BrokenExecutor())
            await run
            self.assertEqual(slot.job_name, "simulate")
            slot.free()
            slot.reserve()
            self.assertEqual(slot.job_name, "")


class End(SlotsCase):
    async def test_only_a_worker_that_is_idle_gets_time_to_end_by_itself(self):
        await self.asyncSetUp(2)
        workers = []

        def make(*_):
            workers.append(FakeWorker())
            return workers[-1]

        with mock.patch.object(slots_module, "Worker", make):
            self.slots.start()
            while [slot.state for slot in self.slots.all] != 2 * [SlotState.IDLE]:  # noqa: ASYNC110
                await asyncio.sleep(0)
            busy, _ = self.slots.all
            busy.reserve()

            async def work():
                try:
                    await asyncio.Event().wait()
                finally:
                    busy.free()

            task = asyncio.ensure_future(work())
            await asyncio.sleep(0)
            task.cancel()
            await self.slots.close(1.0)
        self.assertEqual([worker.closed_within for worker in workers], [0.0, 1.0])
        self.assertIsNone(self.slots.idle())

    async def test_what_is_left_behind_and_cannot_be_looked_for_does_not_keep_the_server(self):
        for error in WANT[1:3]:
            with self.subTest(error):
                await self.asyncSetUp()
                with (
                    mock.patch.object(slots_module, "children", side_effect=error),
                    self.assertLogs("seamless_jobserver.server.slots", "WARNING"),
                ):
                    async with self.started(FakeWorker):
                        await asyncio.wait_for(self.freed.wait(), 20)


class Want(SlotsCase):
    async def test_who_starts_the_slots_does_not_wait_for_processes_to_be_started(self):
        made = []

        def make(*_):
            made.append(FakeWorker())
            return made[-1]

        async def begin():
            self.slots.start()

        with mock.patch.object(slots_module, "Worker", make):
            await asyncio.ensure_future(begin())
            self.assertEqual(made, [])
            await asyncio.wait_for(self.freed.wait(), 20)
            await self.slots.close(0.0)

    async def test_one_that_does_not_become_ready_is_not_left_behind(self):
        for error in WANT:
            with self.subTest(error), self.assertLogs("seamless_jobserver.server.slots", "ERROR"):
                await self.asyncSetUp()
                with mock.patch.object(FakeWorker, "ready", side_effect=error):
                    made = []

                    def make(*_, made=made):
                        made.append(FakeWorker())
                        return made[-1]

                    async with self.started(make):
                        await asyncio.wait_for(self.exhausted.get(), 20)
                        self.assertTrue(made[0].killed)
                        self.assertTrue(made[0].forgotten)

    async def test_nobody_is_left_when_no_slot_has_a_worker_or_is_about_to(self):
        # The other slot, when one could not be started -> whether nobody is left.
        table = (
            (SlotState.IDLE, 0, False),
            (SlotState.BUSY, 0, False),
            (SlotState.STARTING, 0, False),
            (SlotState.STARTING, 1, False),
            (SlotState.DOWN, 0, False),
            (SlotState.DOWN, 1, True),
        )
        for state, failures, told in table:
            with self.subTest(state, failures=failures):
                await self.asyncSetUp(2)
                other, slot = self.slots.all
                other.state, other.failed_starts = state, failures
                with self.assertLogs("seamless_jobserver.server.slots", "ERROR"):
                    self.slots._note_failed_start(slot, "a package is missing")
                self.assertEqual(not self.exhausted.empty(), told)

    async def test_whatever_keeps_a_worker_from_starting_is_told_and_tried_again(self):
        for error in WANT:
            with self.subTest(error), self.assertLogs("seamless_jobserver.server.slots", "ERROR"):
                await self.asyncSetUp()
                fates = iter([error])

                def make(*_, fates=fates):
                    failure = next(fates, None)
                    if failure is not None:
                        raise failure
                    return FakeWorker()

                with mock.patch.object(slots_module, "_FIRST_PAUSE", 0.01):
                    async with self.started(make):
                        cause = await asyncio.wait_for(self.exhausted.get(), 20)
                        self.assertIn(str(error.args[-1]), cause)
                        await asyncio.wait_for(self.freed.wait(), 20)
                        self.assertIs(self.slots.all[0].state, SlotState.IDLE)
                        self.assertIsNone(self.slots.all[0].problem)

    async def test_the_pauses_between_its_tries_grow_up_to_a_limit_and_begin_anew_after_a_success(
        self,
    ):
        sleep, pauses, workers = asyncio.sleep, [], []
        fates = [*(9 * [False]), True, False, False, True]

        async def pause(seconds):
            if seconds:
                pauses.append(seconds)
            await sleep(0)

        def make(*_):
            if not fates.pop(0):
                raise WorkerStartFailed("not now")
            workers.append(FakeWorker())
            return workers[-1]

        with (
            mock.patch.object(asyncio, "sleep", pause),
            self.assertLogs("seamless_jobserver.server.slots", "WARNING"),
        ):
            async with self.started(make):
                await asyncio.wait_for(self.freed.wait(), 20)
                self.freed.clear()
                workers[0].end()
                await asyncio.wait_for(self.freed.wait(), 20)
        self.assertEqual(pauses, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 0.5, 1.0])
        # One that has worked is given more than one try.
        self.assertEqual(self.exhausted.qsize(), 9)

    async def test_the_resource_tracker_is_waited_for_like_all_else_and_is_not_swept_away(self):
        ensure_running, failures = resource_tracker.ensure_running, [OSError(11, "Try again")]

        def ensure_running_or_not():
            if failures:
                raise failures.pop()
            ensure_running()

        with (
            mock.patch.object(slots_module, "_FIRST_PAUSE", 0.01),
            mock.patch.object(resource_tracker, "ensure_running", ensure_running_or_not),
            self.assertLogs("seamless_jobserver.server.slots", "ERROR"),
        ):
            async with self.started(FakeWorker):
                self.assertIn("Try again", await asyncio.wait_for(self.exhausted.get(), 20))
                await asyncio.wait_for(self.freed.wait(), 20)
                self.assertIn(resource_tracker._resource_tracker._pid, self.slots._ours)


class Burial(SlotsCase):
    async def test_a_worker_whose_end_cannot_be_looked_into_is_forgotten_all_the_same(self):
        for error in WANT[1:3]:
            with self.subTest(error), self.assertLogs("seamless_jobserver.server.slots", "ERROR"):
                await self.asyncSetUp()
                forgotten = asyncio.Event()
                with mock.patch.multiple(
                    FakeWorker,
                    create=True,
                    describe_end=mock.AsyncMock(side_effect=error),
                    forget=lambda _, told=forgotten: told.set(),
                ):
                    async with self.started(FakeWorker):
                        await asyncio.wait_for(self.freed.wait(), 20)
                        self.slots.all[0].worker.end()
                        await asyncio.wait_for(forgotten.wait(), 20)

    async def test_whatever_is_known_of_a_worker_goes_with_it(self):
        want = mock.AsyncMock(side_effect=OSError(24, "Too many open files"))
        for name, describe_end in {
            "as usual": FakeWorker.describe_end,
            "for want of files": want,
        }.items():
            with (
                self.subTest(name),
                mock.patch.object(FakeWorker, "describe_end", describe_end),
                mock.patch.object(slots_module, "_FIRST_PAUSE", 0.0),
                self.assertLogs("seamless_jobserver.server.slots", "WARNING"),
            ):
                await self.asyncSetUp()
                async with self.started(FakeWorker):
                    await asyncio.wait_for(self.freed.wait(), 20)
                    (slot,) = self.slots.all
                    ended = slot.worker
                    ended.verdict, slot.holdings = "it took too long", frozenset({"cd" * 32})
                    self.freed.clear()
                    ended.end()
                    await asyncio.wait_for(self.freed.wait(), 20)
                    self.assertIsNot(slot.worker, ended)
                    self.assertEqual(slot.holdings, frozenset())
                    self.assertTrue(ended.forgotten)
                    self.assertEqual(self.buried.get_nowait(), (1, "it took too long"))
                    self.assertTrue(self.buried.empty())

    async def test_a_process_that_gets_the_number_of_a_worker_that_has_ended_is_not_taken_for_it(
        self,
    ):
        with self.assertLogs("seamless_jobserver.server.slots", "WARNING"):
            async with self.started(FakeWorker):
                await asyncio.wait_for(self.freed.wait(), 20)
                (slot,) = self.slots.all
                slot.worker.pid, slot.worker.identity = 4711, "4711 and its start"
                self.slots._ours.add(4711)
                self.freed.clear()
                slot.worker.end()
                await asyncio.wait_for(self.freed.wait(), 20)
                self.assertNotIn(4711, self.slots._ours)
        self.guardian.forget.assert_called_once_with("4711 and its start")

    async def test_only_an_end_that_nobody_meant_is_a_warning(self):
        for retire, level in (("it cannot be put back", "INFO"), (None, "WARNING")):
            await self.asyncSetUp()
            with (
                self.subTest(retire),
                self.assertLogs("seamless_jobserver.server", "INFO") as logged,
            ):
                async with self.started(FakeWorker):
                    await asyncio.wait_for(self.freed.wait(), 20)
                    slot = self.slots.idle()
                    slot.reserve()
                    slot.free(retire)
                    self.freed.clear()
                    slot.worker.end()
                    await asyncio.wait_for(self.freed.wait(), 20)
            self.assertEqual(max(logged.records, key=lambda one: one.levelno).levelname, level)

    async def test_a_process_that_cannot_be_ended_is_waited_for_once(self):
        stray, tried = mock.Mock(pid=4711), []
        with (
            mock.patch.object(slots_module, "children", return_value={4711}),
            mock.patch.object(slots_module.ProcessId, "of", return_value=stray),
            mock.patch.object(slots_module, "kill_tree", tried.append),
            mock.patch.object(slots_module, "reap", return_value=False),
            self.assertLogs("seamless_jobserver.server.slots", "WARNING") as logged,
        ):
            for _ in range(2):
                await self.slots._sweep()
        self.assertEqual(tried, [stray])
        self.assertEqual(len(logged.output), 1)

    async def test_a_worker_that_has_gone_while_it_was_asked_is_given_nothing_more(self):
        asks = {
            "to record": lambda slot: slot.record(request("1"), "cd" * 32),
            "to check": lambda slot: slot.check_store(),
        }
        for name, ask in asks.items():
            with self.subTest(name):
                await self.asyncSetUp()
                gone = mock.Mock(side_effect=WorkerGone)
                with mock.patch.multiple(FakeWorker, create=True, record=gone, check_store=gone):
                    async with self.started(FakeWorker):
                        await asyncio.wait_for(self.freed.wait(), 20)
                        slot = self.slots.idle()
                        slot.reserve()
                        await ask(slot)
                        slot.free()
                        self.assertIsNone(self.slots.idle())

    async def test_a_worker_that_has_ended_before_it_was_asked_is_not_asked(self):
        asks = {
            "to record": (lambda slot: slot.record(request("1"), "cd" * 32), "has ended"),
            "to check": (lambda slot: slot.check_store(), "None"),
        }
        for name, (ask, told) in asks.items():
            with self.subTest(name):
                await self.asyncSetUp()
                asked = mock.Mock()
                with mock.patch.multiple(FakeWorker, create=True, record=asked, check_store=asked):
                    async with self.started(FakeWorker):
                        await asyncio.wait_for(self.freed.wait(), 20)
                        slot = self.slots.idle()
                        slot.reserve()
                        slot.apply(SlotEvent.GONE)
                        self.assertIn(told, str(await ask(slot)))
                        asked.assert_not_called()

    async def test_a_slot_whose_worker_has_ended_waits_for_who_still_has_it(self):
        want = mock.AsyncMock(side_effect=OSError(24, "Too many open files"))
        for name, describe_end in {
            "it is buried": FakeWorker.describe_end,
            "it cannot be buried": want,
        }.items():
            await self.asyncSetUp()
            made, waited_for = asyncio.Queue(), asyncio.Event()

            def make(*_, made=made):
                made.put_nowait(FakeWorker())
                return made._queue[-1]

            async def vacated(slot, timeout, told=waited_for, wait=Slot.vacated):
                told.set()
                await wait(slot, timeout)

            with (
                self.subTest(name),
                mock.patch.object(FakeWorker, "describe_end", describe_end),
                mock.patch.object(Slot, "vacated", vacated),
                mock.patch.object(slots_module, "_FIRST_PAUSE", 0.0),
                self.assertLogs("seamless_jobserver.server.slots", "WARNING"),
            ):
                async with self.started(make):
                    await asyncio.wait_for(self.freed.wait(), 20)
                    slot = self.slots.idle()
                    slot.reserve()
                    self.freed.clear()
                    made.get_nowait().end()
                    await asyncio.wait_for(waited_for.wait(), 20)
                    for _ in range(20):
                        await asyncio.sleep(0)
                    self.assertTrue(made.empty(), "no other worker yet")
                    slot.free()
                    await asyncio.wait_for(self.freed.wait(), 20)
                    self.assertIs(self.slots.idle(), slot)

    async def test_who_never_leaves_a_slot_does_not_keep_it(self):
        slot = Slot(1)
        slot.apply(SlotEvent.READY)
        slot.reserve()
        await asyncio.wait_for(slot.vacated(0.01), 20)
        self.assertIs(slot.state, SlotState.BUSY)


class Memory(SlotsCase):
    LIMIT = 1_000_000

    async def test_a_worker_that_takes_too_much_is_ended_if_it_still_has_the_job_that_was_seen(
        self,
    ):
        def take_the_next(slot):
            slot.free()
            slot.reserve()

        # What happens while it is looked how much a worker takes -> whether its job is ended.
        table = {
            "nothing": (lambda _: None, True),
            "its job ends": (Slot.free, False),
            "the next job begins": (take_the_next, False),
        }
        for name, (happen, ended) in table.items():
            with self.subTest(name):
                await self.asyncSetUp()
                async with self.started(FakeWorker):
                    await asyncio.wait_for(self.freed.wait(), 20)
                    slot = self.slots.idle()
                    slot.reserve()
                    loop = asyncio.get_running_loop()

                    async def look(*_, slot=slot, happen=happen):
                        happen(slot)
                        return self.LIMIT + 1

                    with mock.patch.object(loop, "run_in_executor", look):
                        await self.slots._limit_memory(slot, slot.worker, self.LIMIT)
                    self.assertEqual(slot.worker.verdict is not None, ended)
                    self.assertEqual(slot.worker.killed, ended)

    async def test_it_is_looked_at_again_and_again_as_long_as_it_has_a_job(self):
        looks, over = [], asyncio.Event()
        used = [0, OSError(24, "Too many open files"), RuntimeError("no thread"), self.LIMIT + 1]

        async def limit_memory(_slots, slot, _worker, _limit):
            looks.append(slot.number)
            if isinstance(used[0], Exception):
                raise used.pop(0)
            if used.pop(0) > self.LIMIT:
                over.set()
                await asyncio.Event().wait()

        await self.asyncSetUp(2)
        with (
            mock.patch.object(Slots, "_limit_memory", limit_memory),
            mock.patch.object(slots_module, "_MEMORY_INTERVAL", 0.0),
            self.assertLogs("seamless_jobserver.server.slots", "WARNING"),
        ):
            async with self.started(FakeWorker):
                while self.slots.all[1].state is not SlotState.IDLE:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                self.slots.all[1].reserve()
                watching = asyncio.ensure_future(self.slots._watch_memory(self.LIMIT))
                await asyncio.wait_for(over.wait(), 20)
                watching.cancel()
        self.assertEqual(looks, [2, 2, 2, 2])


class HandedOver(SlotsCase):
    async def test_what_hinders_handing_a_job_over_is_its_end_and_not_its_callers_wait(self):
        hindrances = {
            WorkerGone(): (WorkerGone, None),
            OSError(24, "Too many open files"): (None, "Too many open files"),
        }
        for hindrance, (raised, told) in hindrances.items():
            with self.subTest(hindrance):
                await self.asyncSetUp()
                submit = mock.Mock(side_effect=hindrance)
                with mock.patch.object(FakeWorker, "submit", submit):
                    async with self.started(FakeWorker):
                        await asyncio.wait_for(self.freed.wait(), 20)
                        slot = self.slots.idle()
                        slot.reserve()
                        slot.hand_over(request("1"), "", 1.0)
                        if raised is not None:
                            with self.assertRaises(raised):
                                await slot.outcome()
                        else:
                            with self.assertLogs("seamless_jobserver.server.slot", "ERROR"):
                                outcome = await slot.outcome()
                            self.assertIn(told, outcome.message)
                            self.assertTrue(slot.worker.killed)
                        slot.free()
                        self.assertIsNone(self.slots.idle())

    async def test_a_slot_without_a_worker_takes_no_job(self):
        async with self.started(FakeWorker):
            await asyncio.wait_for(self.freed.wait(), 20)
            slot = self.slots.idle()
            slot.reserve()
            slot.worker = None
            slot.free()
            self.assertIsNone(self.slots.idle())

    async def test_a_slot_does_not_hold_on_to_a_worker_that_has_ended(self):
        async with self.started(FakeWorker):
            await asyncio.wait_for(self.freed.wait(), 20)
            slot = self.slots.idle()
            run = await self.run_in(slot)
            slot.worker.job.set_result(RESULT)
            await run
            slot.free()
            ended, slot.worker = weakref.ref(slot.worker), None
            del run
            gc.collect()
            self.assertIsNone(ended())


class Doomed(SlotsCase):
    async def test_a_worker_that_is_to_end_gets_no_other_job(self):
        async with self.started(FakeWorker):
            await asyncio.wait_for(self.freed.wait(), 20)
            slot = self.slots.idle()
            run = await self.run_in(slot)
            await slot.reclaim("its job was canceled")
            slot.worker.job.set_result(Outcome(Ending.RESULT, result_checksum="cd" * 32))
            await run
            slot.free()
            self.assertIsNone(self.slots.idle())
            self.assertTrue(slot.worker.killed)

    async def test_one_that_owes_a_receipt_gets_it_before_it_ends_for_the_next_job(self):
        ways = {
            "a limit": lambda slot: slot.condemn("it took too long"),
            "a cancellation": lambda slot: slot.reclaim("its job was canceled"),
            "its replacement": lambda slot: slot.free("it cannot be put back"),
        }
        for name, end in ways.items():
            with self.subTest(name):
                await self.asyncSetUp()
                async with self.started(FakeWorker):
                    slot = await self.owing()
                    self.assertIs(self.slots.idle(), slot)
                    slot.reserve()
                    ending = end(slot)
                    await asyncio.sleep(0)
                    self.assertFalse(slot.worker.killed)
                    slot.worker.owed.set_result(RESULT)
                    await slot.receipt()
                    await (ending or asyncio.sleep(0))
                    self.assertTrue(slot.worker.killed)

    async def test_of_two_the_next_job_gets_the_one_that_owes_nothing(self):
        await self.asyncSetUp(count=2)
        async with self.started(FakeWorker):
            slot = await self.owing()
            self.assertIsNot(self.slots.idle(), slot)
            slot.holdings = frozenset({"cd" * 32})
            self.assertIsNot(self.slots.idle(slot.holdings), slot, "whatever it keeps")
            slot.worker.owed.set_result(RESULT)
            self.assertIs(self.slots.idle(slot.holdings), slot)

    async def test_one_whose_result_is_confirmed_owes_nothing(self):
        async with self.started(FakeWorker):
            await asyncio.wait_for(self.freed.wait(), 20)
            slot = self.slots.idle()
            run = await self.run_in(slot)
            slot.worker.job.set_result(RESULT)
            await run
            self.assertTrue(slot.settled)

    async def test_a_job_that_is_handed_back_is_not_its_end(self):
        async with self.started(FakeWorker):
            slot = await self.owing()
            run = await self.run_in(slot)
            slot.worker.job.set_result(Outcome(Ending.NOT_BEGUN))
            with self.assertRaises(NotBegun):
                await run
            settling = asyncio.ensure_future(slot.settle())
            await asyncio.sleep(0)
            self.assertFalse(settling.done())
            slot.worker.owed.set_result(RESULT)
            await settling
            slot.free()
            self.assertIs(slot.state, SlotState.IDLE)

    async def owing(self):
        """Return a slot that is free again, while the result of its job is unconfirmed."""
        await asyncio.wait_for(self.freed.wait(), 20)
        slot = self.slots.idle()
        run = await self.run_in(slot)
        slot.worker.job.set_result(dataclasses.replace(RESULT, unconfirmed=True))
        await run
        slot.free()
        return slot

    async def test_a_ticket_holds_for_one_job(self):
        async with self.started(FakeWorker):
            await asyncio.wait_for(self.freed.wait(), 20)
            slot = self.slots.idle()
            slot.reserve()
            ticket = slot.ticket()
            self.assertEqual(slot.ticket(), ticket)
            slot.free()
            self.assertNotEqual(slot.ticket(), ticket)
            slot.reserve()
            self.assertNotEqual(slot.ticket(), ticket)
