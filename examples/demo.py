"""The demonstration: a workflow on a real stack, from nothing to nothing, on this machine.

It makes a temporary folder, describes a cluster there, and runs ``workflow.py``, which has
seamless-config launch a hashserver, a database and our jobserver on loopback. Then it shows the
jobserver's log, stops all services, and removes the folder.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from local_cluster import LocalCluster


def main():
    here = Path(__file__).resolve().parent
    directory = Path(tempfile.mkdtemp(prefix="seamless-jobserver-demo-"))
    cluster = LocalCluster(directory, [Path(sys.executable).parent], workers=2)
    try:
        shutil.copy(here / "workflow.py", cluster.project)
        print(f"Running {here / 'workflow.py'} in {directory}", flush=True)
        result = cluster.run_workflow(sys.executable, "workflow.py", timeout=600)
        print(result.stdout)
        print("The jobserver's log:", cluster.log("jobserver"), sep="\n", flush=True)
        print("Stopping the services:", cluster.stop(), sep="\n", flush=True)
    finally:
        cluster.remove()
    return result.returncode


if __name__ == "__main__":
    raise SystemExit(main())
