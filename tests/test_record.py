"""Record mode: execution records made by the real client from our answer, beside Seamless's own."""

import json
import shutil
import socket
import sys

from tests.stack import ROOT, TESTS_BIN, ClientHung, run_client
from tests.test_workflow import OnACluster

BUCKETS = {"node", "environment", "node_env"}

CONFIGURATION = """\
- project: demo
- execution: {execution}
- cluster: here
- record: true
"""
SCRIPT = """
import seamless.config
seamless.config.init()
import asyncio, json, seamless
from seamless.transformer import delayed
from seamless_remote import database_remote

@delayed
def add(a, b):
    return a + b

transformation = add(1, 41)
try:
    print("VALUE", transformation.run())
except Exception as error:
    print("IT SAYS", error)
record = asyncio.run(database_remote.get_execution_record(transformation.transformation_checksum))
print("RECORD", json.dumps(record))
seamless.close()
"""
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
    "pid",
    "process_started_at",
    "process_create_time_epoch",
    "worker_execution_index",
}


def flat(value, prefix=""):
    """Return the leaves of nested dicts by their dotted path."""
    if not isinstance(value, dict):
        return {prefix: value}
    leaves = {}
    for key, inner in value.items():
        # Bucket labels and tokens are compared whole.
        deep = prefix in ("", "execution_envelope")
        path = f"{prefix}.{key}" if prefix else key
        leaves.update(flat(inner, path) if deep else {path: inner})
    return leaves


class WithRecords(OnACluster):
    def configure(self, execution):
        text = CONFIGURATION.format(execution=execution)
        if execution == "remote":
            text += "- remote: jobserver\n"
        (self.cluster.project / "seamless.yaml").write_text(text)

    def probe(self):
        command = [str(TESTS_BIN / "seamless-probe"), "-v", "--", "true"]
        for _ in range(3):
            try:
                printed = run_client(
                    command, self.cluster.project, timeout=75, env=self.cluster.environment
                )
            except ClientHung as hung:
                print(hung, self.cluster.log("jobserver"), file=sys.stderr)
                continue
            if "Input not delivered" not in printed:
                break
        self.assertIn("Refreshed bucket kinds: node, environment, node_env", printed)

    def record(self):
        output = self.run_script(SCRIPT).stdout
        (line,) = (line for line in output.splitlines() if line.startswith("RECORD "))
        return json.loads(line.removeprefix("RECORD ")), output


class ThroughUs(WithRecords):
    def test_without_probes_nothing_is_run_and_the_message_names_them(self):
        self.configure("remote")
        record, output = self.record()
        self.assertIsNone(record)
        self.assertIn("Record mode requires bucket probes for: node=", output)
        self.assertNotIn("Traceback", output.partition("IT SAYS")[2])
        self.assertNotIn(" done in ", self.cluster.log("jobserver"))

    def test_with_probes_the_record_is_whole(self):
        self.configure("remote")
        self.probe()
        record, output = self.record()
        self.assertIn("VALUE 42", output)
        self.assertEqual(record["remote_target"], "jobserver")
        self.assertEqual(record["hostname"], socket.gethostname())
        self.assertEqual(record["freshness"]["required_bucket_labels"].keys(), BUCKETS)
        for bucket in BUCKETS:
            self.assertEqual(len(record[bucket]), 64, bucket)
        for key in ("validation_snapshot", "memory_peak_bytes", "process_create_time_epoch", "pid"):
            self.assertIsNotNone(record[key], key)
        self.assertGreaterEqual(record["worker_execution_index"], 1)
        self.assertEqual(record["job_contract_violations"], [])


class BesideALocalRun(WithRecords):
    def test_a_record_through_us_differs_from_a_local_one_only_where_the_docs_say_so(self):
        self.configure("remote")
        self.probe()
        self.cluster.stop()
        database, probed = (self.cluster.directory / name for name in ("database", "probed"))
        shutil.copytree(database, probed)
        through_us, output = self.record()
        self.assertIn("VALUE 42", output)
        # The same transformation in the client's own process, with a database that has the same
        # probes, and does not know the result.
        self.cluster.stop()
        shutil.rmtree(database)
        probed.rename(database)
        self.configure("process")
        local, output = self.record()
        self.assertIn("VALUE 42", output)

        ours, theirs = flat(through_us), flat(local)
        self.assertEqual(ours.keys(), theirs.keys(), "the shape")
        different = {key for key in ours if ours[key] != theirs[key]}
        self.assertLessEqual(different, DIFFERENT)
        for key, value in ours.items():
            if theirs[key] is not None:
                self.assertIs(type(value), type(theirs[key]), key)
        documented = (ROOT / "docs" / "records.rst").read_text()
        for key in DIFFERENT:
            self.assertIn(f"``{key}``", documented)
