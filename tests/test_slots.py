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

    def kill(self):
        self.killed = True

    def forget(self):
        pass

    async def close(self, timeout):
        self.closed_within = timeout


class SlotsCase(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self, count=1):
        self.freed = asyncio.Event()
        self.exhausted = asyncio.Queue()
        self.slots = Slots(
            count,
            PROGRAM,
            SETTINGS,
            mock.Mock(),
            memory_limit=None,
            new_directory=lambda: "",
            freed=self.freed.set,
            buried=lambda *_: None,
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
            first.describe_end = mock.AsyncMock(return_value="signal 9 SIGKILL")
            slot.apply(SlotEvent.GONE)
            slot.worker = FakeWorker()
            slot.apply(SlotEvent.START)
            slot.apply(SlotEvent.READY)
            first.job.set_exception(concurrent.futures.BrokenExecutor())
            self.assertIs((await run).ending, Ending.CRASHED)
            slot.free()
            self.assertIs(self.slots.idle(), slot)


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


class Want(SlotsCase):
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

    async def test_a_slot_whose_worker_cannot_be_buried_waits_for_who_still_has_it(self):
        await self.asyncSetUp()
        want = mock.AsyncMock(side_effect=OSError(24, "Too many open files"))
        made = asyncio.Queue()

        def make(*_):
            made.put_nowait(FakeWorker())
            return made._queue[-1]

        with (
            mock.patch.object(FakeWorker, "describe_end", want, create=True),
            mock.patch.object(slots_module, "_FIRST_PAUSE", 0.0),
            self.assertLogs("seamless_jobserver.server.slots", "ERROR"),
        ):
            async with self.started(make):
                await asyncio.wait_for(self.freed.wait(), 20)
                slot = self.slots.idle()
                slot.reserve()
                self.freed.clear()
                made.get_nowait().end()
                for _ in range(20):
                    await asyncio.sleep(0)
                self.assertTrue(made.empty(), "no other worker yet")
                slot.free()
                await asyncio.wait_for(self.freed.wait(), 20)
                self.assertIs(self.slots.idle(), slot)


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
