"""The service without processes: slots that a test controls, and a policy with short times."""

import asyncio
import dataclasses
import json
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from seamless_jobserver.errors import RecordModeMismatch, ShuttingDown
from seamless_jobserver.messages import Ending, Outcome, RunRequest, Traffic
from seamless_jobserver.progress import Phase
from seamless_jobserver.server import attempt, errands
from seamless_jobserver.server.casualties import OutOfMemoryKills, describe_exit
from seamless_jobserver.server.idle import Activity
from seamless_jobserver.server.joboutput import JobOutput
from seamless_jobserver.server.jobs import State
from seamless_jobserver.server.service import Policy, Service
from seamless_jobserver.server.slot import SlotState
from seamless_jobserver.server.workers import NotBegun, WorkerGone, WorkerLost

RESULT = Outcome(Ending.RESULT, result_checksum="cd" * 32)


def request(digit="a", **fields):
    return RunRequest(digit * 64, {"code": ["python", None, digit * 64]}, **fields)


class FakeSlot:
    """A slot whose runs end when the test says so."""

    def __init__(self, number):
        self.number = number
        self.job_name = ""
        self.busy = False
        self.down = False
        self.problem = None
        self.phase = Phase.RUNNING
        self.runs = []
        self.patience = []
        self.recorded = []
        self.doomed = None
        self.owed = None
        self.settled = True
        self.settlement = asyncio.Event()
        self.end = None

    @property
    def state(self):
        if self.down:
            return SlotState.DOWN
        return SlotState.BUSY if self.busy else SlotState.IDLE

    def reserve(self):
        self.busy = True

    def hand_over(self, request, _path, input_timeout):
        self.runs.append(request)
        self.patience.append(input_timeout)
        self.end = asyncio.get_running_loop().create_future()

    async def outcome(self):
        return await self.end

    def receipt(self):
        return self.owed

    def owe(self):
        """End the run with an outcome that is not confirmed yet."""
        self.owed = asyncio.get_running_loop().create_future()
        self.end.set_result(dataclasses.replace(RESULT, unconfirmed=True))
        return self.owed

    async def settle(self):
        await self.settlement.wait()

    async def check_store(self):
        await self.settlement.wait()
        return "checked"

    async def record(self, request, result):
        self.recorded.append((request.checksum, result))
        return self.problem

    def free(self, _retire=None):
        self.busy = False

    def reclaim(self, verdict):
        self.doomed = verdict

    def condemn(self, verdict):
        self.end.set_result(Outcome(Ending.CRASHED, message=verdict))


class FakeSlots:
    def __init__(self, count):
        self.slots = [FakeSlot(number) for number in range(1, count + 1)]

    def start(self):
        pass

    def idle(self, _inputs=frozenset()):
        return next((slot for slot in self.slots if slot.state is SlotState.IDLE), None)

    async def close(self, timeout):
        pass


class ServiceCase(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.output = JobOutput()
        self.addCleanup(self.output.close)
        await self.make()

    async def make(self, slots=1, **policy):
        self.slots = FakeSlots(slots)
        settings = {"record": False, "input_timeout": 60.0, "abandoned_after": 0.05, **policy}
        self.service = Service(policy=Policy(**settings), output=self.output, activity=Activity())
        await self.service.start(lambda _freed, _buried: self.slots)

    async def call(self, one):
        task = asyncio.ensure_future(self.service.run(one))
        await self.settle()
        return task

    async def settle(self):
        for _ in range(10):
            await asyncio.sleep(0)

    async def leave(self, task):
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def path_of(self, one):
        """Return where what a job prints that runs goes to."""
        (entry,) = [
            entry
            for entry in self.service.journal.under_way.values()
            if entry.job.checksum == one.checksum and entry.output is not None
        ]
        return Path(entry.output)

    async def until_state(self, one, state):
        async def reached():
            while await self.service.status(one.checksum) is not state:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.005)

        await asyncio.wait_for(reached(), 10)


class Callers(ServiceCase):
    async def test_one_that_is_left_alone_twice_has_its_time_from_the_second(self):
        await self.call(request("1"))
        await self.leave(await self.call(request("2")))
        (job,) = self.service._ledger.table.active(request("2").checksum)
        first = self.service._abandoned[job.number]
        self.service._leave_alone(job)  # it had a slot meanwhile, and lost its worker
        self.assertTrue(first.cancelled())
        await self.until_state(request("2"), State.LOST)

    async def test_a_queued_job_that_nobody_waits_for_is_dropped_after_a_while(self):
        first = await self.call(request("1"))
        waiting = await self.call(request("2"))
        await self.leave(waiting)
        await self.until_state(request("2"), State.LOST)
        self.slots.slots[0].end.set_result(RESULT)
        self.assertIs(await first, RESULT)
        await self.settle()
        self.assertEqual([run.checksum for run in self.slots.slots[0].runs], ["1" * 64])

    async def test_one_that_runs_when_that_time_is_over_goes_on(self):
        first = await self.call(request("1"))
        await self.leave(await self.call(request("2")))
        self.slots.slots[0].end.set_result(RESULT)
        await first
        await self.settle()
        self.assertIs(await self.service.status(request("2").checksum), State.RUNNING)

        async def over():
            while self.service._abandoned:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.005)

        await asyncio.wait_for(over(), 10)
        self.assertIs(await self.service.status(request("2").checksum), State.RUNNING)
        self.slots.slots[0].end.set_result(RESULT)
        await self.until_state(request("2"), State.DONE)

    async def test_which_jobs_end_with_their_last_caller(self):
        for reclaim, nested, state in (
            (False, False, State.RUNNING),
            (False, True, State.RUNNING),
            (True, False, State.RUNNING),
            (True, True, State.CANCELED),
        ):
            with self.subTest(reclaim=reclaim, nested=nested):
                await self.make(reclaim_canceled=reclaim)
                run = self.service._run(request("1"), nested=nested)
                caller = asyncio.ensure_future(run)
                await self.settle()
                await self.leave(caller)
                self.assertIs(await self.service.status(request("1").checksum), state)
                self.assertEqual(self.slots.slots[0].doomed is not None, state is State.CANCELED)

    async def test_one_that_goes_as_its_job_ends_or_goes_back_does_not_cost_the_others(self):
        # What befalls the job, after which it is run again if need be.
        for fate in (RESULT, WorkerLost("It was killed.\n")):
            for nested in (False, True):
                with (
                    self.subTest(fate, nested=nested),
                    self.assertNoLogs("seamless_jobserver.server.service", "ERROR"),
                ):
                    await self.make()
                    (slot,) = self.slots.slots
                    goes, stays = (
                        asyncio.ensure_future(self.service._run(request("1"), nested=one))
                        for one in (nested, False)
                    )
                    await self.settle()
                    if fate is RESULT:
                        slot.end.set_result(fate)
                    else:
                        slot.end.set_exception(fate)
                    goes.cancel()
                    await self.settle()
                    if fate is not RESULT:
                        slot.end.set_result(RESULT)
                    self.assertIs((await asyncio.wait_for(stays, 20)).ending, Ending.RESULT)

    async def test_a_new_caller_keeps_a_queued_job_alive(self):
        await self.make(abandoned_after=3600.0)
        await self.call(request("1"))
        await self.leave(await self.call(request("2")))
        self.assertEqual(len(self.service._abandoned), 1)
        again = await self.call(request("2"))
        self.assertEqual(self.service._abandoned, {}, "nothing will drop it")
        self.slots.slots[0].end.set_result(RESULT)
        await self.settle()
        self.slots.slots[0].end.set_result(RESULT)
        self.assertIs((await again).ending, Ending.RESULT)

    async def test_a_result_that_nobody_waits_for_is_recorded(self):
        await self.leave(await self.call(request("1")))
        self.slots.slots[0].end.set_result(RESULT)
        await self.settle()
        self.assertEqual(self.slots.slots[0].recorded, [("1" * 64, "cd" * 32)])
        self.assertIs(await self.service.status("1" * 64), State.DONE)

    async def test_neither_a_heard_result_nor_one_that_is_not_stored_is_recorded(self):
        heard = await self.call(request("1"))
        self.slots.slots[0].end.set_result(RESULT)
        await heard
        await self.leave(await self.call(request("2", scratch=True)))
        self.slots.slots[0].end.set_result(RESULT)
        await self.settle()
        self.assertEqual(self.slots.slots[0].recorded, [])

    async def test_a_result_whose_caller_was_gone_when_it_came_is_recorded_when_a_slot_is_free(
        self,
    ):
        waiting = await self.call(request("1"))
        for kind in (request("2"), request("3", scratch=True)):
            await self.service.note_unheard(kind, RESULT)
        await self.service.note_unheard(request("4"), Outcome(Ending.FAILED, message="why"))
        await self.settle()
        self.assertEqual(self.slots.slots[0].recorded, [])
        self.slots.slots[0].end.set_result(RESULT)
        await waiting
        await self.settle()
        self.assertEqual(self.slots.slots[0].recorded, [("2" * 64, "cd" * 32)])
        self.assertFalse(self.slots.slots[0].busy)
        self.assertEqual(self.service._errands._tasks, set())

    async def test_a_database_that_is_away_leaves_the_slots_to_the_jobs(self):
        (slot,) = self.slots.slots
        slot.problem = "it does not answer"
        sleep, over = asyncio.sleep, asyncio.Event()

        async def pause(seconds):
            await (over.wait() if seconds >= errands._FIRST_PAUSE else sleep(seconds))

        with mock.patch.object(errands.asyncio, "sleep", pause):
            with self.assertLogs("seamless_jobserver.server.errands", "WARNING"):
                for digit in "345":
                    await self.service.note_unheard(request(digit), RESULT)
                await self.settle()
            self.assertEqual(len(slot.recorded), 1, "the others are not tried as well")
            # Nor is it asked at the end of a job that nobody waits for.
            await self.leave(await self.call(request("6")))
            slot.end.set_result(RESULT)
            await self.until_state(request("6"), State.DONE)
            self.assertEqual(len(slot.recorded), 1)
            slot.problem = None
            over.set()
            told = {request(digit).checksum for digit in "3456"}

            async def all_told():
                while {checksum for checksum, _ in slot.recorded} != told:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.005)

            await asyncio.wait_for(all_told(), 20)
        self.assertEqual(len(slot.recorded), 5)

    async def test_what_nobody_has_heard_is_told_before_the_end_or_the_log_says_that_it_is_not(
        self,
    ):
        (slot,) = self.slots.slots
        waiting = await self.call(request("1"))
        await self.service.note_unheard(request("2"), RESULT)
        await self.service.refuse(ShuttingDown())
        closing = asyncio.ensure_future(self.service.close(20.0))
        await self.settle()
        slot.end.set_result(RESULT)
        await waiting
        await asyncio.wait_for(closing, 20)
        self.assertEqual(slot.recorded, [(request("2").checksum, "cd" * 32)])
        await self.make()
        (slot,) = self.slots.slots
        slot.problem = "it does not answer"
        with self.assertLogs("seamless_jobserver.server.errands", "WARNING") as logged:
            await self.service.note_unheard(request("3"), RESULT)
            await self.service.close(0.05)
        self.assertIn("will be run again", logged.output[-1])

    async def test_a_database_that_hangs_takes_a_tenth_of_the_time_of_one_slot(self):
        await self.make(slots=2)
        sleep = asyncio.sleep
        pauses, under_way, most = [], 0, 0

        async def record(*_):
            nonlocal most, under_way
            under_way += 1
            most = max(most, under_way)
            await sleep(0.05)
            under_way -= 1
            return "it does not answer"

        async def pause(seconds):
            pauses.append(seconds)
            await sleep(0)

        async def paused(times):
            while len(pauses) < times:
                await sleep(0.005)

        for slot in self.slots.slots:
            slot.record = record
        with (
            mock.patch.object(errands.asyncio, "sleep", pause),
            mock.patch.object(errands, "_FIRST_PAUSE", 0.001),
        ):
            for digit in "34":
                await self.service.note_unheard(request(digit), RESULT)
            await asyncio.wait_for(paused(1), 20)
            self.assertEqual(most, 2, "all slots, as long as nothing is known of it")
            most = 0
            await asyncio.wait_for(paused(4), 20)
            self.assertEqual(most, 1)
            self.assertGreater(min(pauses), 9 * 0.049)
            await self.service.close(0.0)

    async def test_it_is_asked_after_growing_pauses_which_begin_anew_when_it_has_answered(self):
        await self.make(slots=2)
        first, second = self.slots.slots
        sleep, pauses, told = asyncio.sleep, [], asyncio.Event()
        problems = [*(10 * ["it does not answer"]), None, None, "it does not answer", None]

        async def record(*_):
            await sleep(0)
            problem = problems.pop(0)
            if not problems:
                told.set()
            return problem

        async def pause(seconds):
            if seconds:
                pauses.append(seconds)
            await sleep(0)

        first.record = second.record = record
        with (
            mock.patch.object(errands.asyncio, "sleep", pause),
            mock.patch.object(errands, "_FOR_JOBS", 0),
            self.assertLogs("seamless_jobserver.server.errands", "WARNING"),
        ):
            for digit in "34":  # both at the same time, for as long as nothing is known of it
                await self.service.note_unheard(request(digit), RESULT)
            while len(problems) > 2:
                await sleep(0)
            await self.service.note_unheard(request("5"), RESULT)
            await asyncio.wait_for(told.wait(), 20)
        self.assertEqual(pauses, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0, 1.0])

    async def test_what_is_being_told_is_activity_and_at_the_end_the_log_names_it_too(self):
        (slot,) = self.slots.slots

        async def hang(*_):
            await asyncio.Event().wait()

        slot.record = hang
        await self.service.note_unheard(request("2"), RESULT)
        await self.settle()
        self.assertEqual(self.service._activity.idle_seconds(), 0.0)
        with self.assertLogs("seamless_jobserver.server.errands", "WARNING") as logged:
            await self.service.close(0.0)
        self.assertEqual([one.job for one in logged.records], [request("2").checksum])
        await self.settle()
        self.assertEqual(self.service._errands._tasks, set())

    async def test_it_is_told_only_for_as_long_as_a_result_is_offered_to_the_store(self):
        for patience, tries in ((0.0, 1), (3600.0, 2)):
            with (
                self.subTest(patience),
                mock.patch.object(errands, "_FIRST_PAUSE", 0.0),
                mock.patch.object(errands, "_FOR_JOBS", 0),
                self.assertLogs("seamless_jobserver.server.errands", "WARNING"),
            ):
                await self.make(store_timeout=patience)
                (slot,) = self.slots.slots
                slot.record = mock.AsyncMock(side_effect=["it does not answer", None])
                await self.service.note_unheard(request("1"), RESULT)
                while self.service._errands._tasks:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0)
                self.assertEqual(slot.record.await_count, tries)

    async def test_without_a_worker_that_could_tell_it_the_end_does_not_wait(self):
        (slot,) = self.slots.slots
        slot.down = True
        await self.service.note_unheard(request("2"), RESULT)
        with self.assertLogs("seamless_jobserver.server.errands", "WARNING") as logged:
            await asyncio.wait_for(self.service.close(3600.0), 20)
        self.assertEqual([one.job for one in logged.records], [request("2").checksum])

    async def test_the_end_does_not_wait_for_a_slot_that_owes_a_result(self):
        (slot,) = self.slots.slots
        job = await self.call(request("1"))
        slot.end.set_exception(NotBegun(Traffic()))
        await self.settle()
        await self.service.refuse(ShuttingDown())
        await asyncio.wait_for(self.service.close(3600.0), 20)
        self.assertIs((await job).ending, Ending.LOST)

    async def test_a_job_that_goes_back_to_the_queue_unheard_is_dropped_after_a_while(self):
        await self.make(slots=2)
        blocking = await self.call(request("1"))
        await self.leave(await self.call(request("2")))
        first, second = self.slots.slots
        second.end.set_exception(WorkerGone())
        self.service._dispatch = lambda: None  # no slot comes back
        await self.until_state(request("2"), State.LOST)
        first.end.set_result(RESULT)
        await blocking


class Unconfirmed(ServiceCase):
    async def test_the_slot_is_free_at_once_and_the_caller_waits_for_the_receipt(self):
        (slot,) = self.slots.slots
        first, second = await self.call(request("1")), await self.call(request("2"))
        receipt = slot.owe()
        await self.settle()
        self.assertEqual([one.checksum[0] for one in slot.runs], ["1", "2"])
        self.assertFalse(first.done())
        self.assertIs(await self.service.status(request("1").checksum), State.RUNNING)
        receipt.set_result(dataclasses.replace(RESULT, traffic=Traffic(stored=7)))
        self.assertEqual((await first).result_checksum, RESULT.result_checksum)
        self.assertEqual(self.service.journal.traffic.stored, 7)
        slot.end.set_result(RESULT)
        await second

    async def test_a_result_that_is_lost_with_its_worker_is_told_and_not_computed_again(self):
        (slot,) = self.slots.slots
        first = await self.call(request("1"))
        receipt = slot.owe()
        await self.settle()
        receipt.set_result(Outcome(Ending.CRASHED, message="it ended"))
        self.assertIs((await first).ending, Ending.CRASHED)
        self.assertEqual(len(slot.runs), 1)

    async def test_one_that_is_canceled_meanwhile_ends_at_once_and_leaves_the_next_job_alone(self):
        await self.make(reclaim_canceled=True)
        (slot,) = self.slots.slots
        first, second = await self.call(request("1")), await self.call(request("2"))
        receipt = slot.owe()
        await self.settle()
        await self.service.cancel(request("1").checksum)
        self.assertIs((await first).ending, Ending.CANCELED)
        self.assertIsNone(slot.doomed)
        receipt.set_result(RESULT)
        slot.end.set_result(RESULT)
        self.assertIs((await second).ending, Ending.RESULT)
        await self.settle()
        self.assertEqual(slot.recorded, [])

    async def test_it_is_recorded_also_when_its_last_caller_goes_meanwhile(self):
        (slot,) = self.slots.slots
        first = await self.call(request("1"))
        receipt = slot.owe()
        await self.settle()
        await self.leave(first)
        receipt.set_result(RESULT)
        await self.until_state(request("1"), State.DONE)
        await self.settle()
        self.assertEqual(slot.recorded, [(request("1").checksum, RESULT.result_checksum)])
        self.assertFalse(slot.busy)

    async def test_it_is_recorded_also_when_its_last_caller_goes_in_the_turn_in_which_it_ends(self):
        orders = {
            "first it goes": lambda caller, receipt: (caller.cancel(), receipt.set_result(RESULT)),
            "first it ends": lambda caller, receipt: (receipt.set_result(RESULT), caller.cancel()),
        }
        for name, both in orders.items():
            for turns in range(4):
                with self.subTest(name, turns=turns):
                    await self.make()
                    (slot,) = self.slots.slots
                    caller = await self.call(request("1"))
                    receipt = slot.owe()
                    await self.settle()
                    loop = asyncio.get_running_loop()
                    if turns == 0:
                        both(caller, receipt)
                    elif name == "first it goes":
                        # The end comes when the caller is on its way out, and the other way round.
                        caller.cancel()
                        self.after(turns, loop, lambda r=receipt: r.set_result(RESULT))
                    else:
                        receipt.set_result(RESULT)
                        self.after(turns, loop, caller.cancel)
                    heard = await asyncio.gather(caller, return_exceptions=True)
                    await self.settle()
                    recorded = [(request("1").checksum, RESULT.result_checksum)]
                    went = isinstance(heard[0], asyncio.CancelledError)
                    self.assertEqual(slot.recorded, recorded if went else [])

    def after(self, turns, loop, do):
        loop.call_soon(*((self.after, turns - 1, loop, do) if turns else (do,)))

    async def test_whoever_follows_a_job_and_goes_leaves_nothing_behind(self):
        caller = await self.call(request("1"))
        for _ in range(5):
            follower = asyncio.ensure_future(self.service.wait_for_end(request("1").checksum))
            await self.settle()
            await self.leave(follower)
            await self.leave(await self.call(request("1")))
        self.assertEqual([len(ends) for ends in self.service._ledger._ends.values()], [1])
        follower = asyncio.ensure_future(self.service.wait_for_end(request("1").checksum))
        await self.settle()
        self.slots.slots[0].end.set_result(RESULT)
        await asyncio.wait_for(follower, 10)
        self.assertIs(await caller, RESULT)
        self.assertEqual(self.service._ledger._ends, {})

    async def test_without_callers_it_is_recorded_before_its_slot_is_free(self):
        (slot,) = self.slots.slots
        first = await self.call(request("1"))
        await self.leave(first)
        receipt = slot.owe()
        await self.settle()
        self.assertTrue(slot.busy)
        receipt.set_result(dataclasses.replace(RESULT, traffic=Traffic(stored=7)))
        await self.until_state(request("1"), State.DONE)
        self.assertEqual(slot.recorded, [(request("1").checksum, RESULT.result_checksum)])
        self.assertEqual(self.service.journal.traffic.stored, 7)

    async def test_waiting_for_it_does_not_count_as_the_jobs_time(self):
        await self.make(job_timeout=100.0)
        timers = []
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def limit_time(delay, *rest):
            timer = call_later(delay, *rest)
            if delay in (100.0, attempt._LOOK_AFTER):
                timers.append(timer)
            return timer

        with mock.patch.object(loop, "call_later", limit_time):
            (slot,) = self.slots.slots
            await self.leave(await self.call(request("1")))
        self.assertEqual([timer.cancelled() for timer in timers], 2 * [False])
        receipt = slot.owe()
        await self.settle()
        self.assertEqual([timer.cancelled() for timer in timers], 2 * [True])
        receipt.set_result(RESULT)
        await self.until_state(request("1"), State.DONE)

    async def test_a_job_is_ended_for_its_time_unless_its_result_is_being_stored(self):
        storing, back = Phase.STORING, Phase.PUTTING_BACK
        hung = int(attempt._TO_PUT_BACK) * [back]
        # The phases that are seen, one a second from the limit on; in the last one it is ended.
        for seen in (
            [Phase.WAITING_FOR_INPUT],
            [Phase.RUNNING],
            [*hung, back],
            [*(90 * [storing]), *hung, back],
            [*(100 * [storing]), storing],
            [storing, *hung[1:], storing, back, back],
        ):
            looks, slept = iter(seen), []

            async def sleep(seconds, slept=slept):
                slept.append(seconds)

            slot = mock.Mock()
            type(slot).phase = mock.PropertyMock(side_effect=lambda looks=looks: next(looks))
            with (
                self.subTest(seen[-3:]),
                mock.patch.object(attempt.asyncio, "sleep", sleep),
                mock.patch.object(attempt, "_TO_STORE", 100.0),
            ):
                await attempt._limit_time(slot, 5.0)
                slot.condemn.assert_called_once()
                self.assertEqual(list(looks), [])
                self.assertEqual(slept, [5.0, *((len(seen) - 1) * [attempt._LOOK_AFTER])])

    async def test_a_job_that_runs_is_looked_after_and_mentioned_once_if_it_waits(self):
        looks, enough = [], asyncio.Event()

        def limit(path):
            looks.append(path)
            if len(looks) == 3:
                enough.set()

        (slot,) = self.slots.slots
        slot.phase = Phase.WAITING_FOR_INPUT
        with (
            mock.patch.object(attempt, "_LOOK_AFTER", 0.001),
            mock.patch.object(self.output, "limit", limit),
            self.assertLogs(attempt.__name__, "INFO") as logged,
        ):
            job = await self.call(request("1"))
            path = str(self.path_of(request("1")))
            await asyncio.wait_for(enough.wait(), 20)
            slot.end.set_result(RESULT)
            await job
        self.assertEqual(set(looks), {path})
        self.assertEqual([one.getMessage() for one in logged.records], ["waiting for input"])

    async def test_a_job_that_is_handed_back_is_run_elsewhere_or_when_the_slot_is_settled(self):
        await self.make(slots=2)
        first, second = self.slots.slots
        second.busy = True
        job = await self.call(request("1"))
        first.end.set_exception(NotBegun(Traffic()))
        await self.settle()
        self.assertIs(await self.service.status(request("1").checksum), State.QUEUED)
        self.assertEqual(len(self.service.journal.waiting), 1)
        self.assertTrue(first.busy)
        first.settlement.set()
        await self.settle()
        self.assertEqual(len(first.runs), 2)
        first.settlement.clear()
        first.end.set_exception(NotBegun(Traffic()))
        second.busy = False
        await self.settle()
        self.assertEqual(len(second.runs), 1)
        second.end.set_result(RESULT)
        self.assertEqual((await job).runtime["retry_count"], 2)
        self.assertTrue(first.busy)
        first.settlement.set()
        await self.settle()
        self.assertFalse(first.busy)


class Failures(ServiceCase):
    async def test_which_failures_are_remembered(self):
        remembered = {Ending.FAILED, Ending.CRASHED}
        for number, ending in enumerate(set(Ending) - {Ending.RESULT, Ending.CANCELED}):
            with self.subTest(ending):
                one = request(f"{number:x}")
                before = len(self.slots.slots[0].runs)
                for _ in range(2):
                    task = await self.call(one)
                    if not task.done():
                        self.slots.slots[0].end.set_result(Outcome(ending, message="why"))
                    await task
                    await self.settle()
                runs = len(self.slots.slots[0].runs) - before
                self.assertEqual(runs, 1 if ending in remembered else 2)

    async def test_how_an_ending_is_told_as_a_state(self):
        # All but these are failures.
        states = {
            Ending.RESULT: State.DONE,
            Ending.REMOTE_JOB_WRITTEN: State.DONE,
            Ending.CRASHED: State.CRASHED,
            Ending.CANCELED: State.CANCELED,
            Ending.LOST: State.LOST,
            Ending.NOT_BEGUN: State.LOST,
        }
        for number, ending in enumerate(Ending):
            with self.subTest(ending):
                one = request(f"{number:x}")
                task = await self.call(one)
                self.slots.slots[0].end.set_result(Outcome(ending, message="why"))
                await task
                await self.settle()
                state = states.get(ending, State.FAILED)
                self.assertIs(await self.service.status(one.checksum), state)

    async def test_what_a_job_printed_is_told_with_a_failure_each_time_and_not_with_a_result(self):
        for number, ending in enumerate((Ending.FAILED, Ending.RESULT)):
            with self.subTest(ending):
                one = request(f"{number}")
                task = await self.call(one)
                self.path_of(one).write_text("what it printed")
                outcome = Outcome(ending, result_checksum="cd" * 32, message="why")
                self.slots.slots[0].end.set_result(outcome)
                told = await task
                await self.settle()
                self.assertEqual("what it printed" in told.message, ending is Ending.FAILED)
                if ending is Ending.FAILED:
                    self.assertEqual((await self.service.run(one)).message, told.message)

    async def test_who_has_joined_a_job_gets_its_failure_again_too(self):
        first = await self.call(request("1", dunder={"__meta__": {"a": 1}}))
        joined = request("1", dunder={"__meta__": {"a": 2}}, scratch=True)
        second = await self.call(joined)
        self.slots.slots[0].end.set_result(Outcome(Ending.FAILED, message="why"))
        self.assertEqual((await first).message, (await second).message)
        self.assertIs((await self.service.run(joined)).ending, Ending.FAILED)
        self.assertEqual(len(self.slots.slots[0].runs), 1)

    async def test_a_failure_is_forgotten_after_its_time(self):
        await self.make(failure_memory=0.01)
        for _ in range(2):
            task = await self.call(request("1"))
            self.slots.slots[0].end.set_result(Outcome(Ending.FAILED, message="why"))
            await task
            while self.service._failures._failures:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.005)
        self.assertEqual(len(self.slots.slots[0].runs), 2)

    async def test_an_input_that_has_just_not_come_is_not_waited_for_as_long(self):
        for _ in range(2):
            task = await self.call(request("1"))
            self.slots.slots[0].end.set_result(Outcome(Ending.INPUT_UNDELIVERED, message="why"))
            await task
            await self.settle()
        self.assertEqual(self.slots.slots[0].patience, [60.0, 5.0])

    async def test_nor_longer_than_others_and_again_as_long_after_a_while(self):
        for policy, patience in (
            ({"input_timeout": 2.0}, [2.0, 2.0]),
            ({"failure_memory": 0.01}, [60.0, 60.0]),
        ):
            with self.subTest(policy):
                await self.make(**policy)
                for _ in range(2):
                    task = await self.call(request("1"))
                    self.slots.slots[0].end.set_result(Outcome(Ending.INPUT_UNDELIVERED))
                    await task
                    await self.settle()
                    if "failure_memory" in policy:
                        await asyncio.wait_for(self.forgotten(), 20)
                self.assertEqual(self.slots.slots[0].patience, patience)

    async def forgotten(self):
        while self.service._failures._undelivered:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.005)

    async def test_losses_before_the_jobs_code_began_are_retried_as_the_table_says(self):
        # What befalls the runs of a job, and how it ends.
        table = (
            ((WorkerGone(), WorkerGone(), WorkerGone(), RESULT), Ending.RESULT, 3),
            ((WorkerLost("dead\n"), RESULT), Ending.RESULT, 1),
            ((WorkerGone(), WorkerLost("dead\n"), WorkerGone(), RESULT), Ending.RESULT, 3),
            ((WorkerLost("dead\n"), WorkerLost("dead\n")), Ending.LOST, 1),
        )
        for number, (fates, ending, retries) in enumerate(table):
            with self.subTest(number):
                await self.make()
                task = await self.call(request(f"{number}"))
                for fate in fates:
                    end = self.slots.slots[0].end
                    if isinstance(fate, Exception):
                        end.set_exception(fate)
                    else:
                        end.set_result(fate)
                    await self.settle()
                outcome = await task
                self.assertIs(outcome.ending, ending)
                self.assertEqual(outcome.runtime.get("retry_count", 1), retries)

    async def test_a_mistake_of_ours_ends_the_job_and_not_the_service(self):
        task = await self.call(request("1"))
        with self.assertLogs("seamless_jobserver.server.service", "ERROR"):
            self.slots.slots[0].end.set_exception(ZeroDivisionError("ours"))
            outcome = await task
        self.assertIs(outcome.ending, Ending.LOST)
        self.assertIn("ours", outcome.message)
        self.assertFalse(self.slots.slots[0].busy)


class TheLog(ServiceCase):
    async def test_a_failure_is_a_warning_that_says_what_failed_and_why(self):
        # How a job ends -> level and text of its last line.
        for digit, (outcome, level, text) in enumerate(
            (
                (RESULT, "INFO", "done (simulate)"),
                (
                    Outcome(Ending.FAILED, message="Traceback\n  f()\nValueError: no\n"),
                    "WARNING",
                    "failed (simulate): ValueError: no",
                ),
                (
                    Outcome(Ending.CRASHED, message="SIGSEGV\nx\n"),
                    "WARNING",
                    "crashed (simulate): SIGSEGV",
                ),
            )
        ):
            with self.subTest(text), self.assertLogs("seamless_jobserver.server.ledger") as logs:
                task = await self.call(request(f"{digit}"))
                self.slots.slots[0].job_name = "simulate"
                self.slots.slots[0].end.set_result(outcome)
                await task
                self.assertEqual(logs.records[-1].levelname, level)
                self.assertEqual(logs.records[-1].getMessage(), text)


class Refusals(ServiceCase):
    async def test_another_record_mode_is_refused(self):
        with self.assertRaises(RecordModeMismatch):
            await self.service.run(request(record=True))

    async def test_a_job_that_goes_back_to_the_queue_has_the_rest_of_the_grace(self):
        (slot,) = self.slots.slots
        first = await self.call(request("1"))
        await self.service.refuse(ShuttingDown())
        closing = asyncio.ensure_future(self.service.close(60.0))
        await self.settle()
        slot.end.set_exception(WorkerLost("It was killed.\n"))
        await self.settle()
        self.assertEqual(len(slot.runs), 2)
        slot.end.set_result(RESULT)
        self.assertIs((await asyncio.wait_for(first, 20)).ending, Ending.RESULT)
        await asyncio.wait_for(closing, 20)

    async def test_nothing_new_is_taken_at_the_end_and_what_is_queued_is_answered(self):
        running, queued = await self.call(request("1")), await self.call(request("2"))
        await self.service.refuse(ShuttingDown())
        self.assertIs((await queued).ending, Ending.LOST)
        self.assertFalse(running.done())
        with self.assertRaises(ShuttingDown):
            await self.service.run(request("3"))

    async def test_without_a_grace_what_runs_ends_at_once_and_its_callers_see_what_it_printed(self):
        running = await self.call(request("1"))
        self.path_of(request("1")).write_text("so far")
        await self.service.refuse(ShuttingDown())
        await asyncio.wait_for(self.service.close(0.0), 20)
        outcome = await running
        self.assertIs(outcome.ending, Ending.LOST)
        self.assertIn("shut down", outcome.message)
        self.assertIn("so far", outcome.message)
        await self.settle()
        self.assertEqual(self.service._work, {})

    async def test_what_a_job_asks_for_at_the_end_is_run_by_its_own_worker(self):
        await self.make(slots=2)
        await self.call(request("1"))
        await self.service.refuse(ShuttingDown())
        asked = self.service.run_nested(request("2"), 1)
        self.assertIsInstance(await asyncio.wait_for(asked, 20), int)


class Checks(ServiceCase):
    async def test_a_slot_that_is_checked_is_kept_from_jobs_and_has_the_next_one_then(self):
        (slot,) = self.slots.slots
        check = asyncio.ensure_future(self.service.check_store())
        await self.settle()
        job = await self.call(request("1"))
        self.assertEqual(slot.runs, [])
        self.assertIsNone(await self.service.check_store())
        slot.settlement.set()
        self.assertEqual(await asyncio.wait_for(check, 20), "checked")
        await self.settle()
        self.assertEqual(len(slot.runs), 1)
        slot.end.set_result(RESULT)
        await asyncio.wait_for(job, 20)


class Cancellation(ServiceCase):
    async def test_all_runs_of_a_transformation_end_at_once(self):
        runs = [await self.call(request("1", scratch=scratch)) for scratch in (True, False)]
        self.assertEqual(len(list(self.service._ledger.table.active("1" * 64))), 2)
        await self.service.cancel("1" * 64)
        for run in runs:
            self.assertIs((await asyncio.wait_for(run, 20)).ending, Ending.CANCELED)

    async def test_what_comes_out_of_it_later_is_not_recorded_and_its_name_is_known(self):
        (slot,) = self.slots.slots
        canceled = await self.call(request("1"))
        slot.job_name = "simulate"
        await self.service.cancel("1" * 64)
        self.assertIs((await canceled).ending, Ending.CANCELED)
        told = self.service.journal.since(0, 1)[0]
        self.assertEqual(json.loads(told)["name"], "simulate")
        slot.end.set_result(RESULT)
        await self.settle()
        self.assertFalse(slot.busy)
        self.assertEqual(slot.recorded, [])

    async def test_at_whatever_moment_it_comes_the_slot_goes_on(self):
        for turns in range(8):
            with self.subTest(turns):
                first = asyncio.ensure_future(self.service.run(request("1")))
                for _ in range(turns):
                    await asyncio.sleep(0)
                await self.service.cancel("1" * 64)
                await self.settle()
                (slot,) = self.slots.slots
                if slot.end is not None and not slot.end.done():
                    slot.end.set_result(RESULT)
                await self.settle()
                if not first.done():  # it was canceled before it was there
                    await self.leave(first)
                self.assertFalse(slot.busy)
                second = await self.call(request("2"))
                slot.end.set_result(RESULT)
                self.assertIs(await second, RESULT)
                await self.settle()
                self.assertEqual(self.service.journal.under_way, {})

    async def test_a_worker_that_is_reclaimed_is_doomed_at_once(self):
        await self.make(reclaim_canceled=True)
        canceled = await self.call(request("1"))
        (slot,) = self.slots.slots
        # The job ends in the very turn of the loop in which it is canceled.
        slot.end.set_result(RESULT)
        await self.service.cancel("1" * 64)
        self.assertIsNotNone(slot.doomed)
        self.assertIs((await canceled).ending, Ending.CANCELED)

    async def test_a_worker_is_left_alone_where_it_is_not_to_be_reclaimed(self):
        canceled = await self.call(request("1"))
        await self.service.cancel("1" * 64)
        self.assertIsNone(self.slots.slots[0].doomed)
        self.assertIs((await canceled).ending, Ending.CANCELED)


class HandedOver(ServiceCase):
    async def test_a_job_is_at_its_worker_before_anything_is_written_down(self):
        (slot,) = self.slots.slots
        known, hand_over = [], slot.hand_over

        def look(*job):
            known.append(self.service.journal.in_slot(slot.number))
            hand_over(*job)

        with mock.patch.object(slot, "hand_over", look):
            first = asyncio.ensure_future(self.service.run(request("1")))
            await self.settle()
        self.assertEqual(known, [None])
        slot.end.set_result(RESULT)
        self.assertIs((await first).ending, Ending.RESULT)

    async def test_one_that_is_canceled_at_that_moment_keeps_its_slot_until_its_work_ends(self):
        (slot,) = self.slots.slots
        first = asyncio.ensure_future(self.service.run(request("1")))
        while not slot.runs:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
        await self.service.cancel(request("1").checksum)
        self.assertIs((await first).ending, Ending.CANCELED)
        second = await self.call(request("2"))
        self.assertEqual(len(slot.runs), 1)
        slot.end.set_result(RESULT)
        await self.settle()
        self.assertEqual(len(slot.runs), 2)
        slot.end.set_result(RESULT)
        await second


class Mishaps(ServiceCase):
    """What goes wrong here while a job ends does not keep its callers waiting."""

    async def test_output_that_cannot_be_kept_costs_neither_the_answer_nor_the_next_job(self):
        (slot,) = self.slots.slots
        first, second = await self.call(request("1")), await self.call(request("2"))
        full = OSError(28, "No space left on device")
        with (
            mock.patch.object(self.output, "keep", side_effect=full),
            self.assertLogs("seamless_jobserver.server.service", "WARNING"),
        ):
            slot.end.set_result(RESULT)
            self.assertEqual(
                (await asyncio.wait_for(first, 20)).result_checksum, RESULT.result_checksum
            )
        await self.settle()
        slot.end.set_result(RESULT)
        await asyncio.wait_for(second, 20)

    async def test_output_that_cannot_be_read_does_not_cost_the_answer(self):
        (slot,) = self.slots.slots
        job = await self.call(request("1"))
        want = OSError(24, "Too many open files")
        with (
            mock.patch.object(self.output, "end_of", side_effect=want),
            self.assertLogs("seamless_jobserver.server.service", "WARNING"),
        ):
            slot.end.set_result(Outcome(Ending.FAILED, message="why"))
            self.assertEqual((await asyncio.wait_for(job, 20)).message, "why")

    async def test_what_a_run_printed_that_counts_for_nothing_is_removed(self):
        (slot,) = self.slots.slots
        job = await self.call(request("1"))
        lost = self.path_of(request("1"))
        lost.write_text("of no account")
        slot.end.set_exception(WorkerGone())
        await self.settle()
        self.assertFalse(lost.exists())
        kept = self.path_of(request("1"))
        kept.write_text("it counts")
        slot.end.set_result(RESULT)
        await job
        await self.settle()
        self.assertTrue(kept.exists())

    async def test_jobs_that_have_ended_are_written_up_also_when_nobody_looks(self):
        job = await self.call(request("1"))
        self.slots.slots[0].end.set_result(RESULT)
        await job

        async def written():
            while self.service.journal._unwritten:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.005)

        await asyncio.wait_for(written(), 20)

    async def test_a_receipt_that_fails_is_told_as_a_mistake_of_ours(self):
        (slot,) = self.slots.slots
        first = await self.call(request("1"))
        receipt = slot.owe()
        await self.settle()
        with self.assertLogs("seamless_jobserver.server.service", "ERROR"):
            receipt.set_exception(OSError(24, "Too many open files"))
            outcome = await asyncio.wait_for(first, 20)
        self.assertIs(outcome.ending, Ending.LOST)
        self.assertIn("Too many open files", outcome.message)

    async def test_a_caller_that_goes_as_its_answer_comes_leaves_a_result_that_is_recorded(self):
        (slot,) = self.slots.slots
        first = await self.call(request("1"))
        self.service._ledger._log_end = lambda *_: first.cancel()
        slot.end.set_result(RESULT)
        with self.assertRaises(asyncio.CancelledError):
            await asyncio.wait_for(first, 20)
        await self.settle()
        self.assertEqual(slot.recorded, [(request("1").checksum, RESULT.result_checksum)])


class Nested(ServiceCase):
    async def test_one_of_whose_beginning_nobody_has_heard_ends_as_it_ends(self):
        await self.call(request("1"))
        number = await self.service.run_nested(request("2"), 1)
        await self.service.hosting.ended(number, RESULT)
        self.assertIs(await self.service.status(request("2").checksum), State.DONE)

    async def test_one_of_whose_end_nobody_tells_ends_with_the_job_around_it(self):
        await self.call(request("1"))
        number = await self.service.run_nested(request("2"), 1)
        await self.service.hosting.started(number, "inner")
        other = asyncio.ensure_future(self.service.run(request("2")))
        await self.settle()
        self.slots.slots[0].end.set_result(RESULT)
        self.assertIs((await asyncio.wait_for(other, 20)).ending, Ending.LOST)

    async def test_when_the_worker_has_died_how_it_did_is_what_all_are_told(self):
        ended = []
        await self.service.start(lambda _freed, buried: ended.append(buried) or self.slots)
        (slot,) = self.slots.slots
        await self.call(request("1"))
        number = await self.service.run_nested(request("2"), slot.number)
        await self.service.hosting.started(number, "inner")
        other = asyncio.ensure_future(self.service.run(request("2")))
        await self.settle()
        slot.down = True
        slot.end.set_result(Outcome(Ending.CRASHED, message="It died.\n"))
        await self.settle()
        self.assertFalse(other.done())
        ended[0](slot.number, None)
        self.assertIs((await asyncio.wait_for(other, 20)).ending, Ending.CRASHED)

    async def test_it_gets_no_slot_that_could_hand_it_back(self):
        await self.make(slots=2)
        await self.call(request("1"))
        slot = self.slots.slots[1]
        slot.settled = False
        self.assertIsInstance(await self.service.run_nested(request("2"), 1), int)
        self.assertEqual(slot.runs, [])

    async def test_one_that_a_job_asks_for_as_it_ends_is_not_under_way_for_ever(self):
        job = await self.call(request("1"))
        (slot,) = self.slots.slots
        slot.end.set_result(RESULT)
        await asyncio.wait_for(job, 20)
        slot.reserve()  # for no job
        outcome = await self.service.run_nested(request("2"), slot.number)
        self.assertIs(outcome.ending, Ending.LOST)
        self.assertIs(await self.service.status(request("2").checksum), None)

    async def test_a_nested_job_waits_for_the_run_of_what_is_queued_as_well(self):
        await self.call(request("1"))
        top = await self.call(request("2"))  # it waits for the only slot
        number = await self.service.run_nested(request("2"), 1)
        await self.service.hosting.started(number, "inner")
        other = asyncio.ensure_future(self.service.run_nested(request("2"), 1))
        await self.settle()
        self.assertEqual(len(self.service._ledger._nested), 1)
        await self.service.hosting.ended(number, RESULT)
        self.assertIs(await asyncio.wait_for(other, 20), RESULT)
        self.assertEqual(self.service._ledger._nested, set())
        # Who waits in the queue for the very same has it too, and it is not run again.
        self.assertIs(await asyncio.wait_for(top, 20), RESULT)
        told = [json.loads(line) for line in self.service.journal.since(0, 2)]
        self.assertEqual([line["within"] for line in told], 2 * [request("1").checksum])
        self.assertEqual(told[0]["name"], "inner")
        (slot,) = self.slots.slots
        self.assertEqual(len(slot.runs), 1)
        self.assertEqual(self.service.journal.under_way.keys(), {1})

    async def test_who_waits_in_the_queue_for_something_else_goes_on_waiting(self):
        await self.call(request("1"))
        others = [
            await self.call(dataclasses.replace(request("2"), dunder={"__meta__": {"x": 1}})),
            await self.call(request("3")),
        ]
        number = await self.service.run_nested(request("2"), 1)
        await self.service.hosting.ended(number, RESULT)
        await self.settle()
        for other in others:
            self.assertFalse(other.done())
            await self.leave(other)

    async def test_nor_does_it_get_how_a_hosted_job_has_failed(self):
        await self.call(request("1"))
        waiting = await self.call(request("2"))
        number = await self.service.run_nested(request("2"), 1)
        await self.service.hosting.ended(number, Outcome(Ending.STORE_FAILED, message="away"))
        await self.settle()
        self.assertFalse(waiting.done())
        await self.leave(waiting)

    async def test_one_that_ends_leaves_the_job_that_has_asked_for_it_alone(self):
        await self.make(slots=2, reclaim_canceled=True)
        await self.call(request("1"))
        nested = asyncio.ensure_future(self.service.run_nested(request("2"), 1))
        await self.settle()
        self.slots.slots[1].end.set_result(RESULT)
        self.assertIs(await asyncio.wait_for(nested, 20), RESULT)

    async def test_one_whose_worker_is_lost_does_not_wait_for_another_in_the_queue(self):
        for joined in (False, True):
            with self.subTest(joined=joined):
                await self.make(slots=2)
                await self.call(request("1"))
                nested = asyncio.ensure_future(self.service.run_nested(request("2"), 1))
                await self.settle()
                caller = await self.call(request("2")) if joined else None
                slot = self.slots.slots[1]
                slot.end.set_exception(WorkerLost("It was killed.\n"))
                slot.down = True
                number = await asyncio.wait_for(nested, 20)
                self.assertIsInstance(number, int, "its own worker is to run it")
                state = State.QUEUED if joined else State.LOST
                jobs = list(self.service._ledger.table.active(request("2").checksum))
                self.assertEqual([job.state for job in jobs[:-1]], [state] if joined else [])
                await self.service.hosting.ended(number, RESULT)
                if caller is not None:
                    self.assertIs(await asyncio.wait_for(caller, 20), RESULT)

    async def test_it_has_another_at_once_where_one_is_free(self):
        await self.make(slots=3)
        await self.call(request("1"))
        nested = asyncio.ensure_future(self.service.run_nested(request("2"), 1))
        await self.settle()
        _, second, third = self.slots.slots
        second.end.set_exception(WorkerLost("It was killed.\n"))
        second.down = True
        await self.settle()
        third.end.set_result(RESULT)
        self.assertIs(await asyncio.wait_for(nested, 20), RESULT)

    async def test_what_a_job_that_is_handed_back_has_moved_is_counted(self):
        (slot,) = self.slots.slots
        job = await self.call(request("1"))
        slot.end.set_exception(NotBegun(Traffic(staged=7)))
        await self.settle()
        self.assertEqual(self.service.journal.traffic.staged, 7)
        slot.settlement.set()
        await self.settle()
        slot.end.set_result(RESULT)
        self.assertIs(await asyncio.wait_for(job, 20), RESULT)

    async def test_a_result_without_its_record_is_not_told_to_the_database(self):
        tell = mock.Mock()
        kept = errands.Errands(mock.Mock(), tell, 60.0)
        kept.note_unheard(dataclasses.replace(request("1"), record=True), RESULT)
        self.assertFalse(kept._unheard)
        kept.note_unheard(request("1"), RESULT)
        self.assertTrue(kept._unheard)

    async def test_the_log_tells_of_a_result_that_gives_way_to_others(self):
        kept = errands.Errands(mock.Mock(), mock.Mock(), 60.0)
        with mock.patch.object(errands, "_UNHEARD", 2), self.assertLogs(errands.__name__) as told:
            for digit in "123":
                kept.note_unheard(request(digit), RESULT)
        (record,) = told.records
        self.assertEqual(record.job, request("1").checksum)
        self.assertIn("it will be run again", record.getMessage())
        self.assertEqual([one.request for one in kept._unheard], [request("2"), request("3")])

    async def test_what_a_worker_hosts_goes_on_when_others_who_wanted_it_have_gone(self):
        await self.make(reclaim_canceled=True)
        await self.call(request("1"))
        number = await self.service.run_nested(request("2"), 1)
        await self.service.hosting.started(number, "inner")
        other = asyncio.ensure_future(self.service.run_nested(request("2"), 1))
        await self.settle()
        await self.leave(other)
        self.assertIs(await self.service.status(request("2").checksum), State.RUNNING)
        await self.service.hosting.ended(number, RESULT)
        self.assertIs(await self.service.status(request("2").checksum), State.DONE)

    async def test_a_nested_job_never_waits_for_a_slot(self):
        await self.call(request("1"))
        number = await self.service.run_nested(request("2"), 1)
        self.assertIsInstance(number, int)
        # Not before its host has begun with it may others wait for it.
        self.assertNotEqual(await self.service.run_nested(request("2"), 1), number)
        await self.service.hosting.started(number, "inner")
        other = asyncio.ensure_future(self.service.run_nested(request("2"), 1))
        await self.settle()
        self.assertFalse(other.done())
        await self.service.hosting.ended(number, RESULT)
        self.assertIs(await other, RESULT)

    async def test_what_a_worker_hosted_ends_with_it(self):
        ended = []
        await self.service.start(lambda _freed, buried: ended.append(buried) or self.slots)
        await self.call(request("f"))
        # Why its worker ended -> how a job ends that others wait for.
        for digit, (verdict, ending) in enumerate(
            ((None, Ending.CRASHED), ("its job was canceled", Ending.LOST))
        ):
            with self.subTest(verdict):
                one = request(f"{digit}")
                number = await self.service.run_nested(one, 1)
                await self.service.hosting.started(number, "inner")
                other = asyncio.ensure_future(self.service.run(one))
                await self.settle()
                ended[0](1, verdict)
                self.assertIs((await other).ending, ending)
        self.assertEqual(self.service.workers_ended, 2)

    async def test_what_a_worker_had_not_begun_when_it_died_is_not_what_it_died_of(self):
        ended = []
        await self.service.start(lambda _freed, buried: ended.append(buried) or self.slots)
        await self.call(request("f"))
        await self.service.run_nested(request("1"), 1)
        ended[0](1, None)
        self.assertIs(await self.service.status(request("1").checksum), State.LOST)

    async def test_a_free_slot_is_used(self):
        task = asyncio.ensure_future(self.service.run_nested(request("2"), 1))
        await self.settle()
        self.slots.slots[0].end.set_result(RESULT)
        self.assertIs(await task, RESULT)


class Casualties(unittest.TestCase):
    def test_each_end_is_described_with_its_likely_cause(self):
        table = {
            (-9, False): "signal 9 SIGKILL (likely cause: somebody killed it",
            (-9, True): "signal 9 SIGKILL (likely cause: out of memory",
            (-11, False): "signal 11 SIGSEGV (likely cause: compiled code",
            (-63, False): "signal 63",
            (3, False): "exit code 3 (likely cause: the job called os._exit",
            (0, False): "exit code 0 (likely cause: the job called os._exit",
            (None, False): "an unknown cause",
        }
        for (code, out_of_memory), expected in table.items():
            with self.subTest(code):
                text = describe_exit(code, out_of_memory=out_of_memory)
                self.assertTrue(text.startswith(expected), text)

    def test_only_a_kill_during_the_job_is_held_against_memory(self):
        with tempfile.TemporaryDirectory() as directory:
            counters = Path(directory) / "vmstat"
            counters.write_text("nr_free_pages 1\noom_kill 3\n")
            kills = OutOfMemoryKills(str(counters))
            kills.begin()
            self.assertFalse(kills.happened)
            counters.write_text("nr_free_pages 1\noom_kill 4\n")
            self.assertTrue(kills.happened)
            counters.unlink()
            self.assertFalse(kills.happened)
