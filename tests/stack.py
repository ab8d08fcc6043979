"""Real parts for the tests: store, database and jobserver as processes, and requests to them."""

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from seamless_jobserver.processtree import ProcessId, descendants, kill_tree

ROOT = Path(__file__).resolve().parent.parent
TESTS_BIN = Path(sys.executable).parent
JOBSERVER_PYTHON = Path(os.environ.get("SEAMLESS_JOBSERVER_TEST_PYTHON", sys.executable))
JOBSERVER = JOBSERVER_PYTHON.parent / "seamless-jobserver"
UPSTREAM = os.environ.get("SEAMLESS_JOBSERVER_TEST_UPSTREAM")
PATIENCE = 60.0
"""Seconds before a test gives up on something that takes a moment; a loaded machine is slow."""


def wait_until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """Return the first true value of `condition`; fail when there is none in time."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        pause.wait(0.01)
    raise AssertionError(f"not within {timeout:g} s: {what}")


def free_port(host: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}


class ClientHung(Exception):
    """A client that did not end in time; the message shows where each of its threads was."""


def run_client(
    argv: list[str], directory: Path, *, timeout: float, env: dict[str, str] | None = None
) -> str:
    """Run a client and return what it printed. Raises `ClientHung`."""
    process = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        cwd=directory,
        env={**(os.environ if env is None else env), "PYTHONFAULTHANDLER": "1"},
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # which faulthandler answers with all stacks
        output, _ = process.communicate(timeout=PATIENCE)
        raise ClientHung(f"{argv[:2]} hung for {timeout:g} s:\n{output}") from None
    return output


class Service:
    """A process that takes a status file, reports its port there, and logs to a file."""

    def __init__(
        self,
        argv: list[str],
        directory: Path,
        content: dict[str, Any],
        *,
        env: dict[str, str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.status_file = directory / "status.json"
        self.status_file.write_text(json.dumps(content))
        self.log_file = directory / "log"
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(
                [*argv, "--status-file", str(self.status_file)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=directory,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def status(self) -> dict[str, Any]:
        return read_json(self.status_file)

    def wait_running(self) -> int:
        """Return the port, once the status file says that the service runs."""

        def running() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"it ended with {self.process.returncode}:\n{self.log}")
            return self.status.get("status") == "running"

        wait_until(running, "the service runs")
        return int(self.status["port"])

    def stop(self) -> None:
        """End it, and whatever is below it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill_tree()

    def kill_tree(self) -> None:
        identity = ProcessId.of(self.process.pid)
        if identity is not None:
            kill_tree(identity)
        self.process.wait(PATIENCE)


class Store:
    """A hashserver and a database on loopback, with everything they keep in `directory`."""

    def __init__(self, directory: Path, *, idle_timeout: int = 900) -> None:
        """Its services end by themselves when nobody has used them for so many seconds."""
        self.buffers = directory / "buffers"
        self._idle_timeout = str(idle_timeout)
        self.buffers.mkdir(parents=True)
        self._directory = directory
        self._hashserver = self._start_hashserver("--port-range", "20000", "29999")
        self._database = self._start_database("--port-range", "20000", "29999")
        try:
            self.hashserver_port = self._hashserver.wait_running()
            self.database_port = self._database.wait_running()
            self._await_hashserver()
        except BaseException:
            self.stop()
            raise

    def _hashserver_command(self) -> list[str]:
        return [str(TESTS_BIN / "hashserver"), str(self.buffers)]

    def _start_hashserver(self, *ports: str) -> Service:
        flags = ["--writable", "--host", "127.0.0.1", "--timeout", self._idle_timeout, *ports]
        return Service([*self._hashserver_command(), *flags], self._directory / "hashserver", {})

    def _start_database(self, *ports: str) -> Service:
        flags = ["--writable", "--host", "127.0.0.1", "--timeout", self._idle_timeout, *ports]
        file = self._directory / "seamless.db"
        return Service(
            [str(TESTS_BIN / "seamless-database"), str(file), *flags],
            self._directory / "database",
            {},
        )

    def kill_hashserver(self) -> None:
        self._hashserver.kill_tree()

    def kill_database(self) -> None:
        self._database.kill_tree()

    def restart_hashserver(self) -> None:
        """Start the hashserver again, at the port that it had."""
        self._hashserver = self._start_hashserver("--port", str(self.hashserver_port))
        self._hashserver.wait_running()
        self._await_hashserver()

    def _await_hashserver(self) -> None:
        """Wait until it answers: it says that it runs before it listens."""
        url = f"http://127.0.0.1:{self.hashserver_port}/healthcheck"

        def answers() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=PATIENCE):
                return True
            return False

        wait_until(answers, "the hashserver answers")

    def restart_database(self) -> None:
        """Start the database again, at the port that it had."""
        self._database = self._start_database("--port", str(self.database_port))
        self._database.wait_running()

    def signal_hashserver(self, number: signal.Signals) -> None:
        self._hashserver.process.send_signal(number)

    def parameters(self, *, read_folder: bool = False, record: bool = False) -> dict[str, Any]:
        """Return the ``parameters`` that the launcher would write for this store."""
        store = f"http://127.0.0.1:{self.hashserver_port}"
        database = f"http://127.0.0.1:{self.database_port}"
        buffer = {"readonly": False, "url": store, "remote_url": store}
        if read_folder:
            buffer["remote_directory"] = buffer["directory"] = str(self.buffers)
        return {
            "database": [{"readonly": False, "url": database, "remote_url": database}],
            "buffer": [buffer],
            "record": record,
        }

    def put(self, content: bytes) -> str:
        checksum = hashlib.sha256(content).hexdigest()
        if self.holds(checksum):
            # It would be answered before it is read, and the connection closed on who still sends.
            return checksum
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.hashserver_port}/{checksum}", data=content, method="PUT"
        )

        def sent() -> bool:
            with self._open(request) as answer:
                return answer.status in (200, 201)

        # 202: another test thread is sending the same at this moment.
        wait_until(sent, "the store has the buffer")
        return checksum

    def get(self, checksum: str) -> bytes:
        url = f"http://127.0.0.1:{self.hashserver_port}/{checksum}"
        with self._open(urllib.request.Request(url)) as answer:
            return answer.read()

    def holds(self, checksum: str) -> bool:
        """Whether the file of the buffer is there, whole, as the hashserver keeps it."""
        for path in (self.buffers / checksum, self.buffers / checksum[:2] / checksum):
            if path.exists():
                return hashlib.sha256(path.read_bytes()).hexdigest() == checksum
        return False

    def promise(self, checksum: str) -> None:
        url = f"http://127.0.0.1:{self.hashserver_port}/promise/{checksum}"
        with self._open(urllib.request.Request(url, method="PUT")):
            pass

    def result_of(self, transformation: str) -> str | None:
        """Return what the database says is the result of a transformation."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.database_port}/",
            data=json.dumps({"type": "transformation", "checksum": transformation}).encode(),
            method="GET",
        )
        try:
            with self._open(request) as answer:
                return answer.read().decode().strip('"')
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def has_now(self, checksum: str) -> bool:
        """What the hashserver itself says; it counts an upload that has only begun."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.hashserver_port}/has-now",
            data=json.dumps([checksum]).encode(),
            headers={"Content-Type": "application/json"},
            method="GET",
        )
        with self._open(request) as answer:
            return bool(json.loads(answer.read())[0])

    def _open(self, request: urllib.request.Request) -> Any:
        """Return the answer to a request; where there is none, say what has become of the store."""
        try:
            return urllib.request.urlopen(request, timeout=PATIENCE)
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            states = [
                f"{service.process.args}: exit code {service.process.poll()}\n{service.log[-2000:]}"
                for service in (self._hashserver, self._database)
            ]
            raise AssertionError(f"{request.full_url}: {error}\n" + "\n".join(states)) from error

    def log(self) -> str:
        return self._hashserver.log

    def request(
        self, code: str, *, output: str = "mixed", language: str = "python", **inputs: Any
    ) -> dict[str, Any]:
        """Return a run request as the client makes it, with code and inputs put in the store.

        An input is a JSON value, or ``bytes``, which arrive as such.
        """
        transformation: dict[str, Any] = {
            "__language__": language,
            "__output__": ["result", output, None],
        }
        code_checksum = self.put(code.encode() if code.endswith("\n") else code.encode() + b"\n")
        celltype = "python" if language == "python" else "text"
        transformation["code"] = [celltype, "transformer", code_checksum]
        for name, value in inputs.items():
            if isinstance(value, bytes):
                transformation[name] = ["bytes", None, self.put(value)]
            else:
                encoded = json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"
                transformation[name] = ["plain", None, self.put(encoded)]
        return run_request(transformation)

    def stop(self) -> None:
        self._hashserver.stop()
        self._database.stop()


def transformation_buffer(transformation: dict[str, Any]) -> bytes:
    """Return the buffer whose checksum is that of the transformation, as Seamless makes it."""
    return json.dumps(transformation, sort_keys=True, indent=2).encode() + b"\n"


def run_request(transformation: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "transformation_dict": transformation,
        "tf_checksum": hashlib.sha256(transformation_buffer(transformation)).hexdigest(),
        "tf_dunder": {},
        "scratch": False,
        "strict_dunder": False,
        "record": False,
        **fields,
    }


class Answer:
    """An HTTP answer, read whole."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Jobserver(Service):
    """The jobserver under test."""

    def __init__(
        self,
        directory: Path,
        parameters: dict[str, Any],
        *,
        workers: int = 1,
        flags: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        command: str | None = None,
        wait: bool = True,
    ) -> None:
        argv = [command or str(JOBSERVER), "--workers", str(workers), "--host", "127.0.0.1"]
        if "--port" not in flags and "--port-range" not in flags:
            argv += ["--port-range", "30000", "39999"]
        super().__init__([*argv, *flags], directory, {"parameters": parameters}, env=env)
        self.port = 0
        if wait:
            try:
                self.port = self.wait_running()
            except BaseException:
                self.stop()
                raise

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Send one request on a connection of its own; a body that is not bytes goes as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        with contextlib.closing(connection):
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body, headers=named)
            return Answer(connection.getresponse())

    def run(self, request: dict[str, Any]) -> Answer:
        return self.request("GET", "/run-transformation", request)

    def job_status(self, checksum: str) -> str:
        return self.request("GET", f"/transformation-status/{checksum}").json["status"]

    def cancel(self, checksum: str) -> Any:
        return self.request("POST", f"/cancel-transformation/{checksum}").json

    def everything_below(self) -> list[ProcessId]:
        """Return the identities of all processes that the server has started."""
        found = [ProcessId.of(pid) for pid in descendants(self.process.pid)]
        return [identity for identity in found if identity is not None]

    def kill(self) -> None:
        """Kill the server alone, with SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="jobserver-tests-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
