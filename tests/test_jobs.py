"""The states of a job, and which requests share one."""

import itertools
import unittest

from seamless_jobserver.errors import EnvelopeConflict
from seamless_jobserver.messages import Ending, Outcome, RunRequest
from seamless_jobserver.server.jobs import (
    HISTORY,
    TRANSITIONS,
    Event,
    JobTable,
    State,
)
from seamless_jobserver.server.transitions import IllegalMove

PATHS = {
    State.QUEUED: [],
    State.RUNNING: [Event.START],
    State.DONE: [Event.START, Event.SUCCEED],
    State.FAILED: [Event.START, Event.FAIL],
    State.CRASHED: [Event.START, Event.CRASH],
    State.CANCELED: [Event.CANCEL],
    State.LOST: [Event.LOSE],
}
OUTCOME = Outcome(Ending.RESULT, result_checksum="ab" * 32)


def request(checksum="ab" * 32, **fields):
    return RunRequest(checksum, {}, **fields)


def job_in(state):
    table = JobTable()
    job, _ = table.join_or_add(request())
    for event in PATHS[state]:
        table.apply(job, event, OUTCOME)
    return table, job


class Transitions(unittest.TestCase):
    def test_every_event_in_every_state_moves_as_the_table_says_or_is_refused(self):
        for state, event in itertools.product(State, Event):
            with self.subTest(state=state, event=event):
                table, job = job_in(state)
                self.assertIs(job.state, state)
                target = TRANSITIONS.get((state, event))
                if target is None:
                    with self.assertRaises(IllegalMove):
                        table.apply(job, event, OUTCOME)
                    self.assertIs(job.state, state)
                else:
                    table.apply(job, event, OUTCOME)
                    self.assertIs(job.state, target)

    def test_terminal_states_have_no_way_out(self):
        for (state, _), _target in TRANSITIONS.items():
            self.assertTrue(state.active)

    def test_a_job_that_has_ended_has_its_outcome_and_is_not_found_any_more(self):
        for state in State:
            with self.subTest(state):
                table, job = job_in(state)
                self.assertEqual(job.outcome, None if state.active else OUTCOME)
                self.assertEqual(list(table.active()), [job] if state.active else [])
                self.assertIs(table.state_of(job.checksum), state)


class Queue(unittest.TestCase):
    def test_jobs_wait_in_the_order_in_which_they_came(self):
        table = JobTable()
        jobs = [table.join_or_add(request(f"{n:064x}"))[0] for n in range(3)]
        seen = []
        while (job := table.next_queued()) is not None:
            table.apply(job, Event.START)
            seen.append(job)
        self.assertEqual(seen, jobs)

    def test_a_job_that_goes_back_is_the_next_again(self):
        table = JobTable()
        first = table.join_or_add(request("0" * 64))[0]
        table.join_or_add(request("1" * 64))
        table.apply(first, Event.START)
        table.apply(first, Event.REQUEUE)
        self.assertIs(table.next_queued(), first)

    def test_a_canceled_job_never_comes_up(self):
        table = JobTable()
        first = table.join_or_add(request("0" * 64))[0]
        second = table.join_or_add(request("1" * 64))[0]
        table.apply(first, Event.CANCEL, OUTCOME)
        self.assertIs(table.next_queued(), second)


class Sharing(unittest.TestCase):
    def test_the_same_transformation_is_run_once(self):
        table = JobTable()
        job, new = table.join_or_add(request())
        again, new_again = table.join_or_add(request())
        self.assertTrue(new)
        self.assertFalse(new_again)
        self.assertIs(again, job)
        self.assertEqual(len(job.envelopes), 1)

    def test_the_order_of_what_an_envelope_holds_does_not_matter(self):
        table = JobTable()
        job, _ = table.join_or_add(request(dunder={"__a__": 1, "__b__": {"c": 1, "d": 2}}))
        turned = request(dunder={"__b__": {"d": 2, "c": 1}, "__a__": 1}, strict_dunder=True)
        self.assertIs(table.join_or_add(turned)[0], job)

    def test_who_insists_on_an_envelope_has_a_job_of_its_own_where_there_is_none(self):
        self.assertTrue(JobTable().join_or_add(request(strict_dunder=True))[1])

    def test_whether_a_result_is_stored_belongs_to_the_envelope_that_is_insisted_on(self):
        for running in (False, True):
            with self.subTest(scratch=running):
                table = JobTable()
                table.join_or_add(request(scratch=running))
                with self.assertRaises(EnvelopeConflict):
                    table.join_or_add(request(scratch=not running, strict_dunder=True))

    def test_a_hosted_job_that_has_not_begun_is_joined_by_nobody(self):
        table = JobTable()
        hosted = table.add_hosted(request(), 1)
        for nested in (False, True):
            with self.subTest(nested=nested):
                job, new = table.join_or_add(request(), nested=nested)
                self.assertIsNot(job, hosted)
                self.assertTrue(new)
                table.apply(job, Event.CANCEL, OUTCOME)

    def test_which_jobs_can_do_with_what_a_hosted_one_has_brought(self):
        table = JobTable()
        hosted = table.add_hosted(request(), 1)
        queued, _ = table.join_or_add(request())
        other, _ = table.join_or_add(request(scratch=True), nested=True)
        again = table.add_hosted(request(), 2)
        jobs = {"queued": queued, "of another envelope": other, "hosted too": again}
        self.assertEqual(
            [name for name, job in jobs.items() if job.may_take_from(hosted)], ["queued"]
        )
        table.apply(queued, Event.START)
        self.assertFalse(queued.may_take_from(hosted), "it runs")

    def test_a_run_that_is_not_stored_does_not_serve_one_that_is(self):
        table = JobTable()
        scratch, _ = table.join_or_add(request(scratch=True))
        stored, new = table.join_or_add(request())
        self.assertTrue(new)
        self.assertIsNot(stored, scratch)
        self.assertIn(table.join_or_add(request(scratch=True))[0], (scratch, stored))

    def test_a_stored_run_serves_one_that_needs_no_storing(self):
        table = JobTable()
        job, _ = table.join_or_add(request())
        self.assertIs(table.join_or_add(request(scratch=True))[0], job)

    def test_of_a_queued_and_a_running_one_the_running_is_joined(self):
        table = JobTable()
        queued, _ = table.join_or_add(request())
        hosted = table.add_hosted(request(), 1)
        self.assertIs(table.join_or_add(request())[0], queued)
        table.apply(hosted, Event.START)
        self.assertIs(table.join_or_add(request())[0], hosted)
        self.assertIs(table.join_or_add(request(), nested=True)[0], hosted)

    def test_who_has_a_slot_never_joins_what_may_wait_for_it(self):
        table = JobTable()
        queued, _ = table.join_or_add(request())
        own, new = table.join_or_add(request(), nested=True)
        self.assertTrue(new)
        self.assertIsNot(own, queued)

    def test_a_run_that_insists_on_another_envelope_serves_nobody_else(self):
        table = JobTable()
        running, _ = table.join_or_add(request(dunder={"__meta__": {"a": 1}}))
        table.apply(running, Event.START)
        other = request(dunder={"__meta__": {"a": 2}})
        queued = table.add_hosted(other, 1)
        strict = request(dunder={"__meta__": {"a": 2}}, strict_dunder=True)
        self.assertIsNone(table.running(strict))
        table.apply(queued, Event.START)
        self.assertIs(table.running(strict), queued)

    def test_another_envelope_is_refused_when_strict_and_joined_when_not(self):
        table = JobTable()
        job, _ = table.join_or_add(request(dunder={"__meta__": {"a": 1}}))
        other = {"__meta__": {"a": 2}}
        with self.assertRaises(EnvelopeConflict):
            table.join_or_add(request(dunder=other, strict_dunder=True))
        self.assertIs(table.join_or_add(request(dunder=other))[0], job)
        same = {"__meta__": {"a": 1}}
        self.assertIs(table.join_or_add(request(dunder=same, strict_dunder=True))[0], job)

    def test_of_two_runs_a_strict_request_joins_the_one_with_its_envelope(self):
        table = JobTable()
        scratch, _ = table.join_or_add(request(scratch=True))
        stored, _ = table.join_or_add(request())
        self.assertIs(table.join_or_add(request(strict_dunder=True))[0], stored)
        strict = request(scratch=True, strict_dunder=True)
        self.assertIs(table.join_or_add(strict)[0], scratch)
        with self.assertRaises(EnvelopeConflict):
            table.join_or_add(request(dunder={"__meta__": {"a": 1}}, strict_dunder=True))

    def test_a_new_request_after_a_cancel_is_a_new_job(self):
        table = JobTable()
        job, _ = table.join_or_add(request())
        table.apply(job, Event.START)
        table.apply(job, Event.CANCEL, OUTCOME)
        again, new = table.join_or_add(request())
        self.assertTrue(new)
        self.assertIsNot(again, job)
        self.assertIs(table.state_of(job.checksum), State.QUEUED)


class Inputs(unittest.TestCase):
    def test_they_are_its_pins_and_nothing_else_that_a_transformation_says(self):
        said = {
            "__language__": "c",
            "__output__": ["result", "bytes", None],
            "__schema__": 3,
            "code": ["text", None, "12" * 32],
            "a": ["plain", None, "34" * 32],
        }
        job, _ = JobTable().join_or_add(RunRequest("ab" * 32, said))
        self.assertEqual(job.inputs, {"12" * 32, "34" * 32})


class History(unittest.TestCase):
    def test_one_that_has_ended_again_is_remembered_from_then_on(self):
        table = JobTable()
        for number in (0, *range(1, HISTORY), 0, HISTORY):
            job, _ = table.join_or_add(request(f"{number:064x}"))
            table.apply(job, Event.CANCEL, OUTCOME)
        self.assertIs(table.state_of(f"{0:064x}"), State.CANCELED)
        self.assertIsNone(table.state_of(f"{1:064x}"))
        self.assertEqual(table._active, {})

    def test_only_so_many_endings_are_remembered(self):
        table = JobTable()
        for number in range(HISTORY + 5):
            job, _ = table.join_or_add(request(f"{number:064x}"))
            table.apply(job, Event.CANCEL, OUTCOME)
        self.assertIsNone(table.state_of(f"{4:064x}"))
        self.assertIs(table.state_of(f"{5:064x}"), State.CANCELED)
