"""Record mode: execution records made by the real client from our answer, beside Seamless's own."""

import json
import re
import shutil
import socket
import sys
import urllib.request
from unittest import mock

from seamless_jobserver.worker import measure
from tests.stack import (
    JOBSERVER_PYTHON,
    PATIENCE,
    ROOT,
    TESTS_BIN,
    ClientHung,
    read_json,
    run_client,
    wait_until,
)
from tests.test_running import ADD, MEGABYTE, OnAStore
from tests.test_workflow import OnACluster

BUCKETS = {"node", "environment", "node_env"}

CONFIGURATION = """\
- project: demo
- execution: {execution}
- cluster: here
- record: true
"""
# Runs a transformation of each kind. Prints its value and its record; of the compiled one also the
# jobserver's answer, and what Seamless's own functions say of it in this process.
SCRIPT = """
import seamless.config
seamless.config.init()
import asyncio, json, seamless
from seamless.transformer import delayed
from seamless_remote import database_remote
from seamless_remote.jobserver_client import JobserverClient
from seamless_transformer import CompiledTransformer
from seamless_transformer.record_assembly import (
    build_compilation_context_checksum, collect_job_validation
)

@delayed
def add(a, b):
    return a + b

show = delayed("cat text > RESULT", language="bash")
show.args.text = "42"
show.celltypes.result = "text"

multiply = CompiledTransformer("c")
multiply.schema = '''
inputs:
  - {name: a, dtype: int32}
outputs:
  - {name: result, dtype: int32}
'''
multiply.code = '''
#include <stdint.h>
int transform(int32_t a, int32_t *result) { *result = 42 * a; return 0; }
'''

calls = []
run_transformation = JobserverClient.run_transformation

async def noting(self, transformation, **named):
    answer = await run_transformation(self, transformation, **named)
    calls.append((transformation, named["tf_dunder"], answer))
    return answer

JobserverClient.run_transformation = noting

async def look(transformation, dunder, answer):
    fields = ("probe_context", "compilation_context", "job_validation")
    context = await build_compilation_context_checksum(transformation, dunder)
    validation = await collect_job_validation(
        transformation, dunder,
        compilation_context=context, probe_context=answer["probe_context"],
    )
    here = {"compilation_context": context, "job_validation": validation}
    return {"answer": {field: answer[field] for field in fields}, "here": here}

for kind, transformation in {
    "python": add(1, 41), "bash": show(), "compiled": multiply(a=1)
}.items():
    try:
        print("VALUE", kind, transformation.run())
    except Exception as error:
        print("IT SAYS", error)
    checksum = transformation.transformation_checksum
    record = asyncio.run(database_remote.get_execution_record(checksum))
    print("RECORD", json.dumps({kind: record}))
if calls:
    print("COMPILED", json.dumps(asyncio.run(look(*calls[-1]))))
seamless.close()
"""
KINDS = ("python", "bash", "compiled")
# Each with its reason in docs/records.rst.
DIFFERENT = {
    "execution_mode",
    "remote_target",
    "execution_envelope.actual_remote_target",
    "validation_snapshot",
    "started_at",
    "finished_at",
    "wall_time_seconds",
    "cpu_time_user_seconds",
    "cpu_time_system_seconds",
    "memory_peak_bytes",
    "compilation_time_seconds",
    "pid",
    "process_started_at",
    "process_create_time_epoch",
    "worker_execution_index",
}
# Where the jobserver has another Python environment than the client; those have probes of their own.
OF_THE_ENVIRONMENT = {
    "environment",
    "node_env",
    "freshness.required_bucket_labels",
    "freshness.required_bucket_checksums",
    "freshness.live_tokens",
    "freshness.bucket_tokens",
}
# Of what Seamless's functions say of a compiled job, this is of the process that they ran in.
OF_THE_PROCESS = {
    "diagnostics.checks.cwd_temp_umask.cwd",
    "diagnostics.checks.proc_self_maps.ok",
    "diagnostics.checks.proc_self_maps.outside_count",
    "diagnostics.checks.proc_self_maps.outside_paths",
    "diagnostics.checks.sys_path_roots.actual",
    "diagnostics.checks.sys_path_roots.actual_hash",
    "diagnostics.checks.sys_path_roots.ok",
    "diagnostics.readelf.module_path",
}


def flat(value, prefix="", whole=()):
    """Return the leaves of nested dicts by their dotted path; those below `whole` are not parted."""
    if not isinstance(value, dict) or prefix in whole:
        return {prefix: value}
    leaves = {}
    for key, inner in value.items():
        leaves.update(flat(inner, f"{prefix}.{key}" if prefix else key, whole))
    return leaves


def flat_record(record):
    freshness = [f"freshness.{key}" for key in record["freshness"]]
    return flat(record, whole=freshness)


# The two that it asks for wait until there are two processes.
NESTED = """
import seamless.config
seamless.config.init()
import json, seamless
from seamless.transformer import direct

@direct
def outer(place):
    from seamless.transformer import delayed

    @delayed
    def meet(number, place):
        import os, time
        open(os.path.join(place, str(os.getpid())), "w").close()
        deadline = time.monotonic() + 20
        while len(os.listdir(place)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        return [number, os.getpid()]

    members = [meet(number, place) for number in range(2)]
    for member in members:
        member.start()
    return [member.run() for member in members]

print("VALUE", json.dumps(outer({place!r})))
seamless.close()
"""


class WithRecords(OnACluster):
    def setUp(self):
        super().setUp()
        # So that Seamless looks at what compiled modules are linked with, and has to complain.
        self.cluster.environment["CONDA_PREFIX"] = sys.prefix
        self.cluster.environment["LD_LIBRARY_PATH"] = str(self.directory / "elsewhere")

    def configure(self, execution):
        text = CONFIGURATION.format(execution=execution)
        if execution == "remote":
            text += "- remote: jobserver\n"
        (self.cluster.project / "seamless.yaml").write_text(text)

    def probe(self, expected=BUCKETS):
        command = [str(TESTS_BIN / "seamless-probe"), "-v", "--", "true"]
        refreshed = set()
        for _ in range(3):
            try:
                printed = run_client(
                    command, self.cluster.project, timeout=75, env=self.cluster.environment
                )
            except ClientHung as hung:
                print(hung, self.cluster.log("jobserver"), file=sys.stderr)
                continue
            # One that has lost an input that it had promised leaves the rest to the next.
            for kinds in re.findall("Refreshed bucket kinds: (.*)", printed):
                refreshed.update(kinds.split(", "))
            if refreshed == expected:
                return
        self.fail(f"only {refreshed} were refreshed: {printed}")

    def records(self):
        """Run the script; return the record of each kind, and all that it printed."""
        output = self.run_script(SCRIPT).stdout
        records = {}
        for line in output.splitlines():
            if line.startswith("RECORD "):
                records.update(json.loads(line.removeprefix("RECORD ")))
        self.assertEqual(tuple(records), KINDS, output)
        return records, output

    def check_values(self, output):
        for kind in KINDS:
            self.assertIn(f"VALUE {kind} 42", output)


class ThroughUs(WithRecords):
    def test_without_probes_nothing_is_run_and_the_message_names_them(self):
        self.configure("remote")
        records, output = self.records()
        self.assertEqual(set(records.values()), {None})
        self.assertEqual(output.count("Record mode requires bucket probes for: node="), len(KINDS))
        self.assertNotIn("Traceback", output.partition("IT SAYS")[2])
        self.assertNotIn(" done in ", self.cluster.log("jobserver"))

    def test_with_probes_records_are_whole_and_answers_say_what_seamless_itself_says(self):
        self.configure("remote")
        self.probe()
        records, output = self.records()
        self.check_values(output)
        for kind, record in records.items():
            with self.subTest(kind):
                self.check_record(record, kind)
        (line,) = (line for line in output.splitlines() if line.startswith("COMPILED "))
        compiled = json.loads(line.removeprefix("COMPILED "))
        with self.subTest("answer"):
            self.check_answer(records["compiled"], **compiled)

    def check_record(self, record, kind):
        self.assertEqual(record["remote_target"], "jobserver")
        self.assertEqual(record["hostname"], socket.gethostname())
        self.assertEqual(record["freshness"]["required_bucket_labels"].keys(), BUCKETS)
        for bucket in BUCKETS:
            self.assertEqual(len(record[bucket]), 64, bucket)
        for key in ("memory_peak_bytes", "process_create_time_epoch", "pid"):
            self.assertIsNotNone(record[key], key)
        # The probes were run by a process before it, or by this one.
        self.assertGreater(record["worker_execution_index"], KINDS.index(kind))
        if kind == "compiled":
            self.assertGreater(record["compilation_time_seconds"], 0)
            self.assertEqual(
                record["job_contract_violations"][0], "ld_library_path_outside_conda_prefix"
            )
        else:
            self.assertEqual(record["job_contract_violations"], [])
            self.assertIsNone(record["compilation_context"])

    def check_answer(self, record, answer, here):
        context = answer["compilation_context"]
        self.assertEqual(context, here["compilation_context"])
        self.assertEqual(context, record["compilation_context"])
        (stored,) = self.cluster.directory.rglob(context)
        compilation = json.loads(stored.read_bytes())
        validation = answer["job_validation"]
        self.assertEqual(
            validation["diagnostics"]["compiled_module_digest"],
            compilation["compiled_module_digest"],
        )
        self.assertEqual(validation["job_contract_violations"], record["job_contract_violations"])
        self.assertEqual(
            answer["probe_context"]["required_bucket_checksums"],
            {bucket: record[bucket] for bucket in BUCKETS},
        )
        if JOBSERVER_PYTHON.parent != TESTS_BIN:
            return  # what is said here is about another environment
        ours, theirs = flat(validation), flat(here["job_validation"])
        self.assertEqual(ours.keys(), theirs.keys())
        different = {key for key in ours if ours[key] != theirs[key]}
        self.assertLessEqual(different, OF_THE_PROCESS)
        # The probes were made in such a process.
        self.assertTrue(ours["diagnostics.checks.sys_path_roots.ok"])

    def test_jobs_that_a_job_asks_for_have_records_as_whole_as_its_own(self):
        clusters = self.cluster.directory / ".seamless" / "clusters.yaml"
        clusters.write_text(clusters.read_text().replace("workers: 1\n", "workers: 2\n"))
        self.configure("remote")
        self.probe()
        wait_until(
            lambda: self.cluster.log("jobserver").count(" is ready (pid ") >= 2,
            "both workers are ready",
        )
        place = self.directory / "meeting"
        place.mkdir()
        output = self.run_script(NESTED.format(place=str(place))).stdout
        self.assertIn("VALUE ", output)
        value = json.loads(re.search(r"(?m)^VALUE (.*)$", output)[1])
        self.assertEqual([number for number, _ in value], [0, 1])
        status = read_json(self.cluster.status_file("jobserver"))
        url = f"http://127.0.0.1:{status['port']}/jobs?limit=3"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            jobs = {(job["by"], job["hosted"]): job for job in json.load(answer)["jobs"]}
        self.assertEqual(set(jobs), {("caller", False), ("job", False), ("job", True)})
        pids = {}
        for which, job in jobs.items():
            with self.subTest(which):
                record = self.record_of(status, job["checksum"])
                self.check_record(record, "python")
                self.assertEqual(record["execution_mode"], "remote")
                self.assertEqual(record["result_checksum"], job["result"])
                pids[which] = record["pid"]
        self.assertEqual(pids["job", True], pids["caller", False], "it ran inside of it")
        self.assertEqual({pids["job", True], pids["job", False]}, {pid for _, pid in value})

    def record_of(self, status, checksum):
        """Return what the database of a jobserver, which has this status file, has as a record."""
        asked = urllib.request.Request(
            status["parameters"]["database"][0]["remote_url"].rstrip("/") + "/",
            data=json.dumps({"type": "metadata", "checksum": checksum}).encode(),
            method="GET",
        )
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return json.load(answer)


class BesideALocalRun(WithRecords):
    def test_records_through_us_differ_from_local_ones_only_where_the_docs_say_so(self):
        self.configure("remote")
        self.probe()
        self.cluster.stop()
        database, probed = (self.cluster.directory / name for name in ("database", "probed"))
        shutil.copytree(database, probed)
        through_us, output = self.records()
        self.check_values(output)
        # The same transformations in the client's own process, with a database that has the same
        # probes, and does not know the results.
        self.cluster.stop()
        shutil.rmtree(database)
        probed.rename(database)
        self.configure("process")
        may_differ = set(DIFFERENT)
        if JOBSERVER_PYTHON.parent != TESTS_BIN:
            self.probe({"environment", "node_env"})
            may_differ |= OF_THE_ENVIRONMENT
        local, output = self.records()
        self.check_values(output)

        for kind in KINDS:
            ours, theirs = flat_record(through_us[kind]), flat_record(local[kind])
            with self.subTest(kind):
                self.assertEqual(ours.keys(), theirs.keys(), "the shape")
                different = {key for key in ours if ours[key] != theirs[key]}
                self.assertLessEqual(different, may_differ)
                for key, value in ours.items():
                    if theirs[key] is not None:
                        self.assertIs(type(value), type(theirs[key]), key)
        documented = (ROOT / "docs" / "records.rst").read_text()
        for key in DIFFERENT | OF_THE_ENVIRONMENT:
            self.assertIn(f"``{key}``", documented)


# A GPU of which a process uses 70 MB at its second look, and less before and after.
PYNVML = """
import itertools, os, types
used = itertools.chain([10, 70], itertools.repeat(30))
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetComputeRunningProcesses(device):
    mine = types.SimpleNamespace(pid=os.getpid(), usedGpuMemory=next(used) * 2**20)
    return [mine, types.SimpleNamespace(pid=1, usedGpuMemory=2**40)]
"""


class GpuMemory(OnAStore):
    def start_with_gpu(self):
        folder = self.directory / self.id()
        folder.mkdir()
        (folder / "pynvml.py").write_text(PYNVML)
        environment = {"PYTHONPATH": str(folder), "XDG_STATE_HOME": str(folder)}
        # Inputs from the folder, for when there is no hashserver.
        parameters = self.store.parameters(read_folder=True)
        return self.start("--store-timeout", "1", parameters=parameters, env=environment)

    def test_the_peak_that_seamless_own_sampler_saw_is_answered_for_each_job(self):
        server = self.start_with_gpu()
        peaks = []
        for number in range(2):
            answer = server.run(self.store.request(ADD, a=number, b=1))
            self.assertEqual(answer.status, 200, answer.text)
            peaks.append(answer.json["record_runtime"]["gpu_memory_peak_bytes"])
        self.assertEqual(peaks, [70 * MEGABYTE, 30 * MEGABYTE])

    def test_the_sampler_of_a_job_that_fails_or_was_done_before_is_ended(self):
        server = self.start_with_gpu()
        failing = server.run(self.store.request("def f(a):\n    1 / 0\n", a=1))
        self.assertIn("ZeroDivisionError", failing.text)
        request = self.store.request(ADD, a=5, b=7)
        self.store.kill_hashserver()
        try:
            self.assertIn("could not be stored", server.run(request).text)
        finally:
            self.store.restart_hashserver()
        self.assertEqual(self.value(server.run(request)), 12)
        told = "its result had been computed before"
        wait_until(lambda: told in server.log, "it is told")
        self.value(server.run(self.store.request(ADD, a=5, b=8)))
        self.assertNotIn("is replaced", server.log)

    def test_the_sampler_is_started_and_stopped_once_a_job_and_only_with_its_library(self):
        for library, started in ((object(), 1), (None, 0)):
            with (
                self.subTest(library=library),
                mock.patch.object(measure, "find_spec", return_value=library),
                mock.patch.object(measure, "start_gpu_memory_sampler") as start,
                mock.patch.object(measure, "stop_gpu_memory_sampler") as stop,
            ):
                stop.side_effect = {start.return_value: 7, None: None}.get
                measurement = measure.Meter().start(lambda: 0)
                peaks = [measurement.finish()["gpu_memory_peak_bytes"] for _ in range(2)]
                self.assertEqual(peaks, [7, 7] if library else [None, None])
                self.assertEqual((start.call_count, stop.call_count), (started, 1))
