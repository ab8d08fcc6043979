"""The entry points of a worker process: `warm_up` once, then `run_job` for each job.

The server submits them to a `ProcessPoolExecutor` of one spawned process, so they are module-level
functions of plain arguments, they return plain data, and they never raise: an exception would be
pickled back with whatever it refers to. `record_result` follows a job that nobody waits for, and
`check_store` runs when somebody asks whether all is well.

These threads matter in a worker. The main thread runs the jobs, so that signal handlers, ``fork``
and libraries that insist on the main thread work for user code as in a script. Two others move
buffers (`staging`), and one tells the server of results that the store has confirmed since
(`confirmations`). A watcher waits for the server to disappear, and then takes the worker and all
that its jobs have started along.
"""

import asyncio
import dataclasses
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import connection, parent_process
from typing import Final

from seamless_jobserver import processtree
from seamless_jobserver.messages import Ending, Outcome, RunRequest, StoreCheck, WorkerSettings
from seamless_jobserver.progress import Phase, Progress

_RECORD_LIMIT: Final = 30.0
"""Seconds for the database to take a result, of which the slot of its job waits for the end."""

_worker: "_Worker | None" = None


def warm_up(settings: WorkerSettings, directory: str) -> str | None:
    """Turn this process into a worker; return None, or why that is impossible, for a person.

    `directory` is its own, for what it needs on disk; the server removes it after the worker.
    """
    global _worker
    try:
        # A session of its own, out of reach of a Ctrl-C meant for the server. Not only a group:
        # when the server dies, the kernel sends SIGHUP to one that is left alone in its session and
        # has a stopped process in it (setpgid(2)). To end what a job has started we stop it first,
        # and this process would die before it had killed them.
        os.setsid()
        processtree.become_subreaper()
        threading.Thread(target=_follow_parent, name="jobserver-watcher", daemon=True).start()
        _worker = _Worker(settings, directory)
    except ImportError as error:
        return f"a package is missing or broken: {error}"
    except Exception as error:  # noqa: BLE001 - whatever it is, the server tells the user
        return f"{type(error).__name__}: {error}"
    return None


def run_job(request: RunRequest, output_path: str, input_timeout: float) -> Outcome:
    """Run one job, with all that it prints going to a new file at `output_path`.

    It waits for `input_timeout` seconds for its inputs.
    """
    if _worker is None:
        return Outcome(Ending.LOST, message="The worker was not warmed up.\n")
    return _worker.run(request, output_path, input_timeout)


def record_result(transformation: str, result: str) -> str | None:
    """Tell the database the result of a transformation; return None, or why that failed."""
    if _worker is None:
        return "the worker was not warmed up"
    return _worker.record(transformation, result)


def check_store() -> StoreCheck:
    """Write to the store and read from it, and return what came of it."""
    if _worker is None:
        return StoreCheck("the worker was not warmed up", "the worker was not warmed up", {})
    return _worker.check()


class _Worker:
    """An ordinary Seamless process, configured for the store and the database of the server."""

    def __init__(self, settings: WorkerSettings, directory: str) -> None:
        from seamless_jobserver.transport import import_seamless_remote

        import_seamless_remote()
        with _temporary_files_in(directory):
            # It makes a directory for compiled modules when it is imported, and never removes it.
            import seamless_transformer.compiler  # noqa: F401
        # The rest is imported now, so that the first job does not pay for it, and only now,
        # because all of it wants seamless-remote.
        if os.path.samefile(".", os.path.dirname(directory)):
            # The server has left the directory that it was started in (`workingdirectory`).
            own = os.path.join(directory, "cwd")
            os.mkdir(own, 0o700)
            os.chdir(own)
        import seamless.config
        import seamless_config
        from seamless_config.select import select_record

        from seamless_jobserver.worker.bash import show_errors
        from seamless_jobserver.worker.capture import OutputCapture
        from seamless_jobserver.worker.confirmations import Confirmations
        from seamless_jobserver.worker.execution import Execution
        from seamless_jobserver.worker.isolation import Surroundings
        from seamless_jobserver.worker.measure import Meter
        from seamless_jobserver.worker.memory import settle
        from seamless_jobserver.worker.nested import take_over
        from seamless_jobserver.worker.readfolders import store_folder
        from seamless_jobserver.worker.record import hook_in
        from seamless_jobserver.worker.safekeeping import Safekeeping
        from seamless_jobserver.worker.staging import Staging
        from seamless_jobserver.worker.syntaxtrees import one_at_a_time

        seamless.config.set_remote_clients(settings.clients, in_remote=True)
        select_record(settings.record)  # last: what comes before may reset it
        # Or a module that calls `seamless.config.init()` when a job imports it, as every script
        # does, could not be imported. Private; the public way is to be a worker of Seamless's own.
        seamless_config._initialized = True
        self._progress = Progress(directory)
        self._capture = OutputCapture(directory)
        folder = store_folder(settings.clients)
        self._staging = Staging(settings.store_timeout, settings.cache_size, folder)
        self._execution = Execution(self._staging, Safekeeping(settings.clients))
        self._confirmations = Confirmations(directory, self._staging.take_traffic)
        self._meter = Meter(lambda: self._staging.storing_seconds)
        take_over(settings, self._execution.run_and_store, self._meter)
        show_errors()
        hook_in()
        one_at_a_time()
        settle()
        # But for the code of a job, which may interrupt the main thread of its process, or have a
        # thread that does so later, when it would be the end of the worker and of a result.
        _ignore_interrupts()
        self._surroundings = Surroundings(settings.open_files)  # last: all of ours belongs to them

    def run(self, request: RunRequest, output_path: str, input_timeout: float) -> Outcome:
        from seamless_jobserver.worker.isolation import apart

        with ExitStack() as captured:
            try:
                captured.enter_context(self._capture.to_file(output_path))
            except OSError as error:
                return Outcome(
                    Ending.LOST,
                    message=f"The job's output file {output_path} cannot be written: {error}. "
                    "Is the disk for temporary files full?\n",
                )
            self._surroundings.limits.limit_files()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a script
            ended = apart(
                self._execution.execute,
                request,
                input_timeout,
                self._meter,
                self._progress.enter,
                self._progress.call,
                self._mend,
                self._confirmations.settle,
            )
            phase = self._progress.phase
            if phase >= Phase.RUNNING:
                self._progress.enter(Phase.PUTTING_BACK)
            retire = self._surroundings.restore(self._staging.kept)
            self._progress.enter(phase)
            self._capture.make_next()
            if retire is None and ended.soon is not None and self._confirmations.possible():
                outcome = dataclasses.replace(ended.soon, unconfirmed=True)
                number = ended.soon.runtime["worker_execution_index"]
                self._confirmations.follow(number, ended.wait)
            else:
                outcome = ended.wait()
            # It refers to the result, which would be taken for growth for good.
            del ended
            if retire is not None:
                # What the job left behind may only have needed that moment to end, and a result is
                # in memory for as long as it is being stored.
                if phase >= Phase.RUNNING:
                    self._progress.enter(Phase.PUTTING_BACK)
                retire = self._surroundings.restore(self._staging.kept)
        return dataclasses.replace(
            outcome,
            retire=retire,
            traffic=self._staging.take_traffic(),
            holdings=self._staging.news_of_large(),
        )

    def _mend(self) -> None:
        """Put right what would hinder measuring and storing, as soon as the job's code has ended.

        All else can wait until the store is at work.
        """
        _ignore_interrupts()
        self._surroundings.mend()
        self._capture.mend()
        self._surroundings.limits.restore()  # a limit that stays is noticed by `restore`

    def check(self) -> StoreCheck:
        from seamless_jobserver.worker.storecheck import check

        return check(self._staging)

    def record(self, transformation: str, result: str) -> str | None:
        from seamless import Checksum
        from seamless_remote import database_remote

        entry = database_remote.set_transformation_result(
            Checksum(transformation), Checksum(result)
        )
        try:
            self._staging.call(asyncio.wait_for(entry, _RECORD_LIMIT))
        except asyncio.TimeoutError:
            return f"the database does not answer within {_RECORD_LIMIT:g} s"
        except Exception as error:  # noqa: BLE001 - whatever it is, the log says so
            return f"{type(error).__name__}: {error}"
        return None


@contextmanager
def _temporary_files_in(directory: str) -> Iterator[None]:
    before = tempfile.tempdir
    tempfile.tempdir = directory
    try:
        yield
    finally:
        tempfile.tempdir = before


def _ignore_interrupts() -> None:
    # One that has come already is raised by the first of these calls.
    with suppress(KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _follow_parent() -> None:
    """End this process and all below it as soon as the server is gone."""
    parent = parent_process()
    if parent is None:
        return
    connection.wait([parent.sentinel])
    try:
        myself = processtree.ProcessId.of(os.getpid())
        if myself is not None:
            processtree.kill_tree(myself, spare_root=True)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)
