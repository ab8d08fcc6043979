"""From start to end: what is made in which order, and how it is taken down again.

The main thread does this and nothing else. It makes the parts, then waits for a reason to end:
a signal, the idle timer, or workers that cannot be started. All three only put a word into a
queue (`queue.SimpleQueue`, which a signal handler may use at any point), so that everything that
happens at the end happens here, in the order of `server.ending`.
"""

import base64
import errno
import functools
import importlib.util
import logging
import queue
import random
import secrets
import signal
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from seamless_jobserver import processtree, spool
from seamless_jobserver.errors import StartupError
from seamless_jobserver.messages import WorkerProgram, WorkerSettings
from seamless_jobserver.server.access import (
    AccessRules,
    Gate,
    Network,
    log_access,
    make_tls,
    read_password,
)
from seamless_jobserver.server.bridge import Bridge
from seamless_jobserver.server.connection import Answerer
from seamless_jobserver.server.ending import (
    CLOSING,
    Interrupts,
    Reason,
    await_reason,
    end,
    is_unused,
)
from seamless_jobserver.server.guardian import Guardian
from seamless_jobserver.server.http import JobHTTPServer, allow_connections
from seamless_jobserver.server.idle import Activity, IdleTimer
from seamless_jobserver.server.joboutput import JobOutput
from seamless_jobserver.server.loopback import hold_other
from seamless_jobserver.server.overview import Overview, ServerFacts
from seamless_jobserver.server.routes import Routes
from seamless_jobserver.server.service import ABANDONED_AFTER, FAILURE_MEMORY, Policy, Service
from seamless_jobserver.server.slots import Slots
from seamless_jobserver.server.statusfile import StatusFile
from seamless_jobserver.server.watching import Watching
from seamless_jobserver.server.workingdirectory import leave_shared_directory

_END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PACKAGES: Final = {
    "seamless": "seamless-core",
    "seamless_transformer": "seamless-transformer",
    "seamless_remote": "seamless-remote",
    "seamless_config": "seamless-config",
}

_AGAIN: Final = 1.0
"""Seconds until the idle timer is started again."""
_NO_THREAD: Final = "can't start new thread"
"""What `threading` says when there is none to be had; the exception is no kind of its own."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What the command line asks for: times in seconds, sizes in bytes, None for no limit.

    `ports` are tried in random order; 0 is any free one.
    """

    host: str
    address: tuple[int, str]
    ports: range
    workers: int
    timeout: float | None
    status_file: Path | None
    input_timeout: float
    store_timeout: float
    cache_size: int
    job_timeout: float | None
    memory_limit: int | None
    reclaim_canceled: bool
    grace: float
    max_connections: int
    max_body: int
    access: str
    allow: tuple[Network, ...]
    allow_host: tuple[str, ...]
    password_file: Path | None
    certfile: Path | None
    keyfile: Path | None


def run(settings: Settings, program: WorkerProgram) -> int:
    """Run a jobserver until something ends it; return the exit code: 0, or 1 after a failure."""
    interrupts: Interrupts = queue.SimpleQueue()
    with _signals_into(interrupts):
        try:
            status_file = None
            if settings.status_file is not None:
                status_file = StatusFile.read(settings.status_file, interrupts)
                if status_file is None:
                    return 0
            try:
                reason = _serve_or_explain(settings, program, status_file, interrupts)
                if reason.failure:
                    raise StartupError(reason.text)
            except BaseException:
                if status_file is not None:
                    _report_failed(status_file)
                raise
        except StartupError as error:
            _complain(error)
            return 1
    return 0


def _report_failed(status_file: StatusFile) -> None:
    try:
        status_file.write_failed()
    except StartupError as error:
        _complain(error)  # beside the failure that it should have reported


def _complain(error: StartupError) -> None:
    print(f"seamless-jobserver: error: {error}", file=sys.stderr)  # noqa: T201


def _serve_or_explain(
    settings: Settings,
    program: WorkerProgram,
    status_file: StatusFile | None,
    interrupts: Interrupts,
) -> Reason:
    """Serve, and raise `StartupError` also when a thread that is needed cannot be had."""
    try:
        return _serve(settings, program, status_file, interrupts)
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            raise
        raise StartupError(
            f"{error}. Is a limit on processes reached (ulimit -u)? It counts threads too, and all "
            "that you run on this machine."
        ) from error


def _serve(
    settings: Settings,
    program: WorkerProgram,
    status_file: StatusFile | None,
    interrupts: Interrupts,
) -> Reason:
    """Start, serve, and end in order; return why it ended. Raises `StartupError`."""
    _check_packages()
    parameters = {} if status_file is None else status_file.parameters
    record = parameters.get("record", False)
    activity = Activity()
    with ExitStack() as stack:
        bridge = Bridge()
        stack.callback(bridge.close, CLOSING)
        try:
            output = JobOutput()
            stack.callback(output.close)
            spool.stay()  # a relative one is meant from here
            leave_shared_directory(output.directory)
            processtree.become_subreaper()
            guardian = Guardian(output.directory)
            stack.callback(guardian.close, CLOSING)
        except OSError as error:
            raise StartupError(
                f"what a jobserver needs cannot be had: {error}. Is the disk for temporary files "
                "(TMPDIR) full, or a limit on processes or open files reached?"
            ) from error
        policy = Policy(
            record=record,
            input_timeout=settings.input_timeout,
            reclaim_canceled=settings.reclaim_canceled,
            job_timeout=settings.job_timeout,
            failure_memory=FAILURE_MEMORY,
            abandoned_after=ABANDONED_AFTER,
            store_timeout=settings.store_timeout,
        )
        service = Service(policy=policy, output=output, activity=activity)
        password = secrets.token_urlsafe(32)
        credentials = "Basic " + base64.b64encode(f"worker:{password}".encode()).decode()
        routes = Routes(service, bridge, credentials)
        open_files = allow_connections(settings.max_connections, settings.workers)
        gate = Gate(_access_rules(settings), credentials)
        tls = make_tls(settings.certfile, settings.keyfile)
        http = _listen(settings, routes.answer, activity, gate, tls)
        stack.callback(http.server_close)
        _guard_localhost(settings.address[1], http.port, gate, stack)
        stack.callback(http.stop_accepting)
        facts = _describe(settings, gate, http, record)
        overview = Overview(facts, service, bridge, http, activity)
        routes.watching = Watching(overview, service, bridge)
        http.start()
        with suppress(OSError):  # nobody reads it, or the disk is full
            print(f"Welcome to the Seamless jobserver on {facts.listening}", flush=True)  # noqa: T201
        if status_file is not None:
            status_file.write_running(http.port)
        log_access(facts.access, facts.exposed)
        directory = spool.spool_directory()
        distrust = None if directory is None else spool.distrust(directory)
        if distrust is not None:
            _log.warning("%s", distrust)
        make_slots = functools.partial(
            _make_slots,
            settings,
            program,
            WorkerSettings(
                clients=parameters,
                record=record,
                server=f"http://worker:{password}@{http.local_address}",
                workers=settings.workers,
                input_timeout=settings.input_timeout,
                store_timeout=settings.store_timeout,
                open_files=open_files,
                cache_size=settings.cache_size,
            ),
            guardian,
            output,
            interrupts,
        )
        bridge.submit(service.start(make_slots)).result(CLOSING)
        reason = _await_end(http, activity, interrupts, settings.timeout)
        _log.info("ending: %s", reason.text)
        end(http, bridge, service, interrupts, reason, settings.grace)
    _log.info("ended")
    return reason


def _await_end(
    http: JobHTTPServer, activity: Activity, interrupts: Interrupts, timeout: float | None
) -> Reason:
    """Return why the server ends, once something ends it for good."""
    if timeout is None:
        return await_reason(interrupts)
    expired = Reason(f"no activity for {timeout:g} s", idle=True)
    while True:
        timer = IdleTimer(timeout, activity, lambda: interrupts.put(expired))
        try:
            timer.start()
            reason = await_reason(interrupts)
            if not reason.idle or is_unused(http, activity, timeout):
                return reason
        except RuntimeError as error:
            if str(error) != _NO_THREAD:
                raise
            # There is none to be had for the timer. Without it the server goes on.
            with suppress(queue.Empty):
                return interrupts.get(timeout=_AGAIN)
        finally:
            timer.close()


def _guard_localhost(address: str, port: int, gate: Gate, stack: ExitStack) -> None:
    """Keep the other address of ``localhost`` from others, or else do not answer to that name."""
    try:
        held = hold_other(address, port)
    except OSError:
        gate.disown("localhost")
        _log.warning(
            "another program has port %d of the other address of localhost: browsers are answered "
            "at %s only, not at localhost, of which either of the two could have the page",
            port,
            "[::1]" if ":" in address else "127.0.0.1",
        )
    else:
        if held is not None:
            stack.callback(held.close)


def _access_rules(settings: Settings) -> AccessRules:
    password = None if settings.password_file is None else read_password(settings.password_file)
    return AccessRules(
        any_user=settings.access == "any",
        allow=settings.allow,
        hosts=(*settings.allow_host, settings.host),
        password=password,
    )


def _describe(settings: Settings, gate: Gate, http: JobHTTPServer, record: bool) -> ServerFacts:
    host, address = settings.host, settings.address[1]
    return ServerFacts(
        listening=f"[{host}]:{http.port}" if ":" in host else f"{host}:{http.port}",
        access=gate.describe(host, address, http.port),
        exposed=gate.exposed(address),
        record=record,
        reclaims=settings.reclaim_canceled,
        idle_timeout=settings.timeout,
    )


def _make_slots(
    settings: Settings,
    program: WorkerProgram,
    worker_settings: WorkerSettings,
    guardian: Guardian,
    output: JobOutput,
    interrupts: Interrupts,
    freed: Callable[[], None],
    buried: Callable[[int, str | None], None],
) -> Slots:
    def exhausted(cause: str) -> None:
        interrupts.put(Reason(f"no worker can be started: {cause}", failure=True))

    return Slots(
        settings.workers,
        program,
        worker_settings,
        guardian,
        memory_limit=settings.memory_limit,
        new_directory=output.new_directory,
        freed=freed,
        buried=buried,
        exhausted=exhausted,
    )


@contextmanager
def _signals_into(interrupts: Interrupts) -> Iterator[None]:
    """Have the signals that end a service put a reason into `interrupts` instead.

    SIGHUP stays ignored where it is: that is what ``nohup`` is for.
    """

    def note(number: int, _frame: FrameType | None) -> None:
        interrupts.put(Reason(f"received {signal.Signals(number).name}"))

    before = {}
    for number in _END_SIGNALS:
        if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue
        before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_packages() -> None:
    """Look for the Seamless packages without importing them: that is the workers' business."""
    missing = [
        name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise StartupError(
            f"missing on this machine: {', '.join(missing)}. Install with: "
            f"{sys.executable} -m pip install {' '.join(missing)} (on a locked-down cluster with "
            "--no-deps, and what else locked-down.txt of the jobserver names)"
        )


def _listen(
    settings: Settings,
    answer: Answerer,
    activity: Activity,
    gate: Gate,
    tls: ssl.SSLContext | None,
) -> JobHTTPServer:
    """Bind the first port that is free. Raises `StartupError` that names the ports."""
    family, address = settings.address
    ports = random.sample(settings.ports, len(settings.ports))
    refused = 0
    for port in ports:
        try:
            return JobHTTPServer(
                family,
                (address, port),
                answer,
                activity,
                gate=gate,
                tls=tls,
                max_connections=settings.max_connections,
                max_body=settings.max_body,
            )
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0, _TAKEN)
            if len(ports) == 1 or error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise StartupError(
                    f"cannot listen on port {port} of {settings.host}: {error.strerror}. {advice}"
                ) from None
            refused += error.errno == errno.EACCES
    raise StartupError(
        f"no free port from {settings.ports[0]} to {settings.ports[-1]} on {settings.host}: "
        f"{len(ports) - refused} are taken, and {refused} are for root only. Widen --port-range."
    )


_TAKEN: Final = "Choose another one with --port, or let one be chosen with --port-range."
_ADVICE: Final = {
    errno.EADDRINUSE: _TAKEN,
    errno.EACCES: "Ports below 1024 are root's: choose a higher one with --port or --port-range.",
    errno.EADDRNOTAVAIL: "That is no address of this machine: choose one for --host among those "
    "that `ip address` shows, or 0.0.0.0 for all.",
}
