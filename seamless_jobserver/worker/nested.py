"""Transformations that a job's own code asks for: ``direct`` and ``delayed`` inside a job.

Seamless in this process is told that it executes remotely, on a jobserver whose client is ours. So
a nested transformation goes the way of any other: it is looked up in the database, its inputs are
uploaded, and its client is asked to run it. Our client asks the server, on a path of its own, for
a slot that is free *at this moment*. The server runs the transformation there, or joins one that
is running already, or says at once that no slot is free. Then it is run here (*hosted*), in the
process whose own job has nothing to do but wait for it. A nested transformation never waits for a
slot, so that jobs that wait for each other cannot fill all slots; and no process is added.

What is hosted runs in a thread of its own, beside others of the same job (`measure` says what its
record holds). The thread tells the server when it begins and how it ended, so that others who want
the same can wait for it.
"""

import asyncio
import base64
import concurrent.futures
import http.client
import json
import os
import sys
import time
import urllib.parse
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn, TypeVar

from seamless import Checksum
from seamless.caching import buffer_writer
from seamless_config import set_nparallel
from seamless_config.select import select_execution, select_remote
from seamless_remote import buffer_remote, database_remote, jobserver_remote
from seamless_remote import client as remote_client
from seamless_remote.jobserver_client import JobserverClient
from seamless_transformer import transformation_cache, transformation_class

from seamless_jobserver.messages import (
    NESTED_PATH,
    Ending,
    Outcome,
    RunRequest,
    WorkerSettings,
)
from seamless_jobserver.transport.aiohttp_standin import (
    ClientError,
    ClientSession,
    ClientTimeout,
    ServerTimeoutError,
)
from seamless_jobserver.worker import failure
from seamless_jobserver.worker.measure import Meter, ThreadMeasurement
from seamless_jobserver.worker.naming import name_of
from seamless_jobserver.worker.unserved import Unserved

_LIMITS: Final = ClientTimeout(sock_connect=10.0, sock_read=60.0)
"""In seconds; the server shows every 20 s that a job goes on. One that has taken no notice of us
for longer has all its places taken, maybe by those who wait for this very job."""
_MOST_HOSTED: Final = 256
"""Transformations that are run here at the same time. They can wait for each other, so that few
threads could all wait for one that has none."""
_REPORTS: Final = 3
"""Attempts to tell the server of a transformation that is run here."""
_DATABASE_LIMIT: Final = 10.0
"""Seconds for the database to say what it knows of a nested transformation, or to take a note."""
_DATABASE_PAUSE: Final = 30.0
"""Seconds for which a database that has not answered is not asked again."""
_SERVER_PAUSE: Final = 60.0
"""Seconds for which a server that has not answered is not asked: each time may take as long."""
_FLUSHES: Final = 10
"""Attempts to send what the background writer of Seamless holds."""
_END_LIMIT: Final = 1.0
_REPORT_LIMIT: Final = 10.0

_NOT_PASSED_ON: Final = (StopIteration, concurrent.futures.CancelledError)

Result = TypeVar("Result")
RunHere = Callable[[RunRequest, float, ThreadMeasurement], Outcome]


def take_over(settings: WorkerSettings, run_here: RunHere, meter: Meter) -> None:
    """Have nested transformations of this process run as described above.

    Without a database or a store to write to, Seamless refuses to execute remotely, and a later
    seamless-remote may keep its clients elsewhere; they then run in this process, as Seamless does
    it by itself.
    """
    set_nparallel(settings.workers)
    transformation_cache.run_transformation_dict = _raising_exceptions(
        transformation_cache.run_transformation_dict
    )
    if not settings.record:
        transformation_cache.database_remote = _Database()
    # Private: the public way makes clients of seamless-remote's own class only.
    clients = getattr(jobserver_remote, "_extern_clients", None)
    stores = database_remote.has_write_server() and buffer_remote.has_write_server()
    if clients is None or not stores:
        return
    client = _NestedClient(settings, run_here, meter)
    client.url = settings.server
    clients["nested"] = client
    jobserver_remote.activate(no_main=True, extern_clients=["nested"])
    select_execution("remote")
    select_remote("jobserver")
    buffer_writer.flush = _in_one_thread(buffer_writer.flush)


def end_loops() -> None:
    """End the event loops that Seamless has started in threads for the job that has ended.

    It keeps one for each ``.start()`` outside a loop, for the life of the process; a script ends
    with it, a worker does not. Private, hence the guard: without it the threads are found by
    `leftovers`, and the worker is retired.
    """
    loops = getattr(transformation_class, "_LOOP_THREADS", {})
    for loop, thread in list(loops.items()):
        if thread.ident is None:
            # For want of threads it was never started, and cannot be waited for.
            loop.close()
            del loops[loop]
            continue
        if loop.is_running():
            ending = asyncio.run_coroutine_threadsafe(_end_loop(), loop)
            try:
                ending.result(_END_LIMIT)
            except Exception:  # noqa: BLE001, S112 - it goes on: leftovers finds its thread
                continue
            loop.call_soon_threadsafe(loop.stop)
        thread.join(_END_LIMIT)
        if not thread.is_alive():
            loop.close()
            del loops[loop]
    _close_connections_of_ended_threads()


def _close_connections_of_ended_threads() -> None:
    """Close what seamless-remote keeps for threads, and loops, that have ended.

    Private, hence the guards: without it a worker is retired when it has too many files open.
    """
    for client in list(getattr(remote_client, "_clients", ())):
        # Copies, made in one go: threads of Seamless's own put theirs in at any moment.
        for thread in list(getattr(client, "_sessions", ())):
            if not thread.is_alive():
                client._close_sessions_for_thread(thread)
        semaphores = getattr(client, "_semaphores", {})
        for loop in list(semaphores):
            if loop.is_closed():
                semaphores.pop(loop, None)


async def _end_loop() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


class _Database:
    """`database_remote`, as nested transformations see it: one that is away knows nothing.

    What it does not know is computed, and what it does not note is computed again: it matters to
    them no more than to any other job. (In record mode it does matter.)
    """

    def __init__(self) -> None:
        self._left_alone_until = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(database_remote, name)

    async def get_transformation_result(self, transformation: Checksum) -> Checksum | None:
        """Return the result of a transformation, if that can be found out."""
        return await self._ask(database_remote.get_transformation_result, transformation)

    async def set_transformation_result(self, transformation: Checksum, result: Checksum) -> Any:
        """Note the result of a transformation, if that is possible."""
        return await self._ask(database_remote.set_transformation_result, transformation, result)

    async def set_execution_record(
        self, transformation: Checksum, result: Checksum, record: dict[str, Any]
    ) -> Any:
        """Note how a transformation was run, if that is possible."""
        return await self._ask(database_remote.set_execution_record, transformation, result, record)

    async def _ask(self, call: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
        # Else one that hangs would hold up each of a thousand nested transformations.
        if time.monotonic() < self._left_alone_until:
            return None
        try:
            return await asyncio.wait_for(call(*arguments), _DATABASE_LIMIT)
        except Exception as error:  # noqa: BLE001 - seamless-remote passes on whatever it met
            _say(f"the database could not be asked: {type(error).__name__}: {error}")
            self._left_alone_until = time.monotonic() + _DATABASE_PAUSE
            return None


class _NestedClient(JobserverClient):  # type: ignore[misc]
    """Asks the server for a free slot, and runs the transformation here when there is none."""

    def __init__(self, settings: WorkerSettings, run_here: RunHere, meter: Meter) -> None:
        super().__init__()
        self._settings = settings
        self._run_here = run_here
        self._meter = meter
        self._address = urllib.parse.urlsplit(settings.server)
        password = f"{self._address.username}:{self._address.password}".encode()
        self._credentials = {"Authorization": "Basic " + base64.b64encode(password).decode()}
        # Connections for reports, between two of them: a new one costs more than a report.
        self._kept: list[http.client.HTTPConnection] = []
        self._left_alone_until = 0.0

    async def healthcheck(self) -> None:
        """Say that all is well, without asking.

        Once a nested transformation was canceled, seamless-remote would ask every 30 s for as long
        as the worker lives, and the server would never have been idle for long enough to end.
        """

    async def run_transformation(
        self,
        transformation_dict: dict[str, Any],
        *,
        tf_checksum: Any,
        tf_dunder: dict[str, Any] | None,
        scratch: bool,
        strict_dunder: bool = False,
    ) -> dict[str, Any]:
        """Run a transformation and return what seamless-remote's client returns for one.

        Raises RuntimeError with the failure's text when it failed in another slot, or here by
        what is no Exception, such as ``sys.exit``; else what it raised. Not through
        seamless-remote's retries, which would run it five times.
        """
        fields = {
            "transformation_dict": transformation_dict,
            "tf_checksum": Checksum(tf_checksum).hex(),
            "tf_dunder": tf_dunder or {},
            "scratch": bool(scratch),
            "strict_dunder": bool(strict_dunder),
            "record": self._settings.record,
        }
        payload = await self._ask(fields)
        if payload is None or "host" in payload:
            number = None if payload is None else payload["host"]
            loop = asyncio.get_running_loop()
            # The loop's own, which ends with it, and with the job: see `end_loops`. Private:
            # whether it has one already, of a few threads.
            if getattr(loop, "_default_executor", self) is None:
                loop.set_default_executor(ThreadPoolExecutor(_MOST_HOSTED))
            payload = await loop.run_in_executor(None, self._host, fields, number)
        if "remote_job_written" not in payload:
            payload["result_checksum"] = Checksum(payload["result_checksum"])
            for name in ("probe_context", "compilation_context", "job_validation"):
                payload.setdefault(name, None)
        return payload

    async def _ask(self, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Return the server's answer, or None when it cannot be asked, and the job runs here.

        The answer is that of a run in another slot, or ``{"host": NUMBER}``.
        """
        if time.monotonic() < self._left_alone_until:
            return None
        session = ClientSession(timeout=_LIMITS)
        url = f"{self._settings.server}{NESTED_PATH}/{self._settings.slot}"
        try:
            async with session.get(url, json=fields) as response:
                text = await response.text()
                status = response.status
        except ClientError as error:
            # The server is ending, or too busy to talk: here is always possible.
            _remark(f"{type(error).__name__}: {error}")
            if isinstance(error, ServerTimeoutError):
                self._left_alone_until = time.monotonic() + _SERVER_PAUSE
            return None
        finally:
            await session.close()
        if status == 403:
            _remark(text)  # a machine that does not tell whose connections are whose
            return None
        if status not in (200, 202) or not text.startswith("{"):
            raise RuntimeError(text)
        payload: dict[str, Any] = json.loads(text)
        return payload

    def _host(self, fields: dict[str, Any], number: int | None) -> dict[str, Any]:
        """Run a transformation in this thread, and report it as the job `number` of the server."""
        # Through JSON, as for any other slot: tuples become lists and checksums text.
        plain = json.loads(json.dumps(fields))
        request = RunRequest(
            checksum=plain["tf_checksum"],
            transformation=plain["transformation_dict"],
            dunder=plain["tf_dunder"],
            scratch=plain["scratch"],
            strict_dunder=plain["strict_dunder"],
            record=plain["record"],
        )
        # Its code was made by the job around it, and is at hand.
        self._report(number, "started", {"name": name_of(request.transformation)})
        try:
            with self._meter.measure_thread() as measurement:
                outcome = self._run_here(request, self._settings.input_timeout, measurement)
        except Unserved as error:
            self._report(number, "ended", Outcome(error.ending, message=str(error)).to_json())
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised again
            message = failure.describe(error, str(plain["transformation_dict"].get("__language__")))
            self._report(number, "ended", Outcome(Ending.FAILED, message=message).to_json())
            _raise_as_exception(error, message)
        self._report(number, "ended", outcome.to_json())
        if outcome.ending is Ending.REMOTE_JOB_WRITTEN:
            return {"remote_job_written": outcome.marker, "record_runtime": outcome.runtime}
        return {
            "result_checksum": outcome.result_checksum,
            "record_runtime": outcome.runtime,
            **outcome.extra,
        }

    def _report(self, number: int | None, event: str, content: dict[str, Any]) -> None:
        if number is None:
            return
        path, body = f"{NESTED_PATH}/{number}/{event}", json.dumps(content)
        # How it began is of interest for others, how it ended for those who have joined it.
        left = _REPORTS if event == "ended" else 1
        while left:
            try:
                kept, connection = True, self._kept.pop()
            except IndexError:
                kept, connection = False, self._connect()
            try:
                connection.request("POST", path, body, self._credentials)
                connection.getresponse().read()
            except ConnectionRefusedError:
                return  # the server has ended
            except (OSError, http.client.HTTPException):
                connection.close()
                # A kept one was closed after a while without use. Nothing is lost by saying it
                # twice; when it cannot be said, the server ends the job with the one around it.
                left -= not kept
            else:
                self._kept.append(connection)
                return

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._address.hostname or "", self._address.port
        return http.client.HTTPConnection(host, port, timeout=_REPORT_LIMIT)


def _raise_as_exception(error: BaseException, message: str) -> NoReturn:
    """Raise what a nested transformation raised, as an Exception whatever it was.

    SystemExit and KeyboardInterrupt would end the event loop that waits for the thread it ran in,
    and CancelledError would end the wait alone: the job around it would never end. Nor would it
    after StopIteration, which no future of asyncio takes.
    """
    if isinstance(error, Exception) and not isinstance(error, _NOT_PASSED_ON):
        raise error
    raise RuntimeError(f"A nested transformation failed:\n{message}") from None


def _raising_exceptions(run: Callable[..., Result]) -> Callable[..., Result]:
    """Have `run`, with which Seamless runs a nested transformation by itself, do the same."""

    def run_so(transformation: dict[str, Any], *arguments: Any, **named: Any) -> Result:
        try:
            return run(transformation, *arguments, **named)
        except BaseException as error:  # noqa: BLE001 - it is raised again
            message = failure.describe(error, str(transformation.get("__language__", "python")))
            _raise_as_exception(error, message)

    return run_so


def _remark(why: str) -> None:
    """Say in the output of the job why a transformation that it asked for gets no other worker."""
    _say(f"run here, since the jobserver could not be asked: {why}")


def _say(what: str) -> None:
    print(f"[worker {os.getpid()}] {what}".strip(), file=sys.stderr, flush=True)  # noqa: T201


def _in_one_thread(flush: Callable[..., None]) -> Callable[..., None]:
    """Have the flush of Seamless's background writer run in a thread that does nothing else.

    It is called on a running event loop, and then waits for that very loop when the client of the
    store has to be initialized first (after an error, or when all inputs came from a read folder).
    And two at once fail, because each stops the writer's thread at its end.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="jobserver-flush")
    process = os.getpid()

    def try_to_flush(*arguments: Any, **named: Any) -> None:
        for _ in range(_FLUSHES):
            try:
                return flush(*arguments, **named)
            except RuntimeError as error:
                # It looks through a dict that another thread may add to, before it does anything.
                if "changed size during iteration" not in str(error):
                    raise
        return flush(*arguments, **named)

    def flush_there(*arguments: Any, **named: Any) -> None:
        if os.getpid() != process:
            # None of our threads is there, and whoever waits for one waits for ever.
            raise RuntimeError(
                "A process that a job has forked (multiprocessing does) cannot ask for a "
                "transformation: ask for it in the job's own process."
            )
        thread.submit(try_to_flush, *arguments, **named).result()

    return flush_there
