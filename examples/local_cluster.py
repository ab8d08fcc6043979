"""A cluster of one machine, for seamless-config: everything on loopback, in one directory.

Seamless's launcher keeps its state under the home directory and finds the services on the PATH, so
a directory that is HOME for the scripts run in it, and a PATH, are all that such a cluster needs.
"""

import os
import random
import shutil
import subprocess
from pathlib import Path

CLUSTERS = """\
local_cluster: here
here:
  type: local
  workers: {workers}
  frontends:
    - hashserver:
        bufferdir: {directory}/buffers
        network_interface: 127.0.0.1
        port_start: {ports}00
        port_end: {ports}29
      database:
        database_dir: {directory}/database
        network_interface: 127.0.0.1
        port_start: {ports}30
        port_end: {ports}59
      jobserver:
        conda: null
        network_interface: 127.0.0.1
        port_start: {ports}60
        port_end: {ports}99
"""
PROJECT = """\
- project: demo
- execution: remote
- cluster: here
- remote: jobserver
"""


class LocalCluster:
    """Runs scripts that say ``seamless.config.init()``; the services start with the first.

    `programs` are the directories in which the commands of Seamless and of the services are
    looked for, before the PATH.
    """

    def __init__(self, directory: Path, programs: list[Path], *, workers: int = 1) -> None:
        self.directory = directory
        self.project = directory / "project"
        self.launcher = directory / ".remote-http-launcher" / "server"
        self.project.mkdir(parents=True)
        (directory / ".seamless").mkdir()
        (directory / ".seamless" / "clusters.yaml").write_text(
            CLUSTERS.format(
                directory=directory,
                workers=workers,
                # A hundred ports below those that the system gives to clients.
                ports=random.randrange(100, 200),
            )
        )
        (self.project / "seamless.yaml").write_text(PROJECT)
        path = os.pathsep.join([*map(str, programs), os.environ.get("PATH", os.defpath)])
        self.environment = {**os.environ, "HOME": str(directory), "PATH": path}
        self.environment.pop("REMOTE_HTTP_LAUNCHER_DIR", None)

    def run(self, *command: str, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        """Run a command in the project; its output, both streams in one, is returned."""
        return subprocess.run(
            command,
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run_workflow(
        self, *command: str, timeout: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command that asks for jobs, three times at most, until its client loses no input.

        Now and then one loses what it has promised to the hashserver (*"Input not delivered"* in
        the README). The next one sends it. `timeout` is for each, in seconds.
        """
        for _ in range(2):
            result = self.run(*command, timeout=timeout)
            if "Input not delivered" not in result.stdout:
                return result
            print(result.stdout, "The client has lost an input: once more.", sep="\n", flush=True)
        return self.run(*command, timeout=timeout)

    def log(self, service: str) -> str:
        """Return what a service has logged, by the name that the launcher has for it."""
        return "".join(path.read_text() for path in self.launcher.glob(f"{service}-*.log"))

    def status_file(self, service: str) -> Path:
        """Return the path of a service's status file."""
        (path,) = self.launcher.glob(f"{service}-*.json")
        return path

    def stop(self) -> str:
        """Stop all services and return what the command said."""
        return self.run("seamless-service-stop", "--cluster", "here").stdout

    def remove(self) -> None:
        """Stop all services and remove the directory."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
