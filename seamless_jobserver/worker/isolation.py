"""Keeping jobs that share a process apart.

What a job changes in its process, the next job would find. `Surroundings` notes how the process is
before the first job, and puts it back after each one. What a job has *imported* stays, as it would
in a script, and with it what a library has installed for itself at that: finders and hooks of the
import system that it defines, and handlers of its own logger. (`six` imports ``six.moves`` through
such a finder, which nobody would install again.) What cannot be put back, and what is left of
processes, threads, files and memory (`leftovers`), is a reason to retire the worker: `restore`
returns it.

Random generators are not put back but seeded anew: jobs that start from the same state would draw
the same numbers, which is worse than any leak. And pyplot's figures and settings are put back where
it has been imported: it draws onto what there is, so that the next picture would have the last one
in it.

Around the job, `apart` keeps apart warning filters, and context variables with all that lives in
them (numpy's error handling and decimal's precision included); `capture` does so for standard
output and error.
"""

import asyncio
import contextvars
import faulthandler
import gc
import locale
import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from seamless_jobserver.worker.lane import give_way
from seamless_jobserver.worker.leftovers import Leftovers
from seamless_jobserver.worker.limits import Limits

_SIGNALS: Final = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_NO_LIBRARIES: Final = sys.stdlib_module_names | {"", "__main__", "__mp_main__"}
_HAS_POLICIES: Final = sys.version_info < (3, 14)
"""From 3.14 on those of event loops are about to go, and no loop is made for who asks for one."""
_DEFAULT_POLICY: Final = asyncio.DefaultEventLoopPolicy if _HAS_POLICIES else None
_WINTER, _SUMMER = 1_767_225_600.0, 1_782_864_000.0
_TIMERS: Final = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


Result = TypeVar("Result")


class _LoggerState(NamedTuple):
    level: int
    handlers: list[logging.Handler]
    filters: list[Any]
    propagate: bool
    disabled: bool


def apart(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call `function` with warning filters and context variables of its own."""
    with warnings.catch_warnings():
        return contextvars.copy_context().run(function, *arguments)


class Surroundings:
    """How the process is between jobs. Make it once, in the thread that runs them.

    `open_files` is how many files a job may have open; its `limits` are put back earlier than all
    else.
    """

    def __init__(self, open_files: int) -> None:
        self._directory = os.getcwd()
        self._environment = dict(os.environb)
        self._sys: dict[str, Any] = {
            name: getattr(sys, name) for name in ("path", "meta_path", "path_hooks", "argv")
        }
        self._sys_lists = {name: list(value) for name, value in self._sys.items()}
        self._hooks = sys.excepthook, sys.displayhook, sys.unraisablehook, threading.excepthook
        self._environ = os.environ, os.environb
        self._time_zone = _time_zone()
        self._stdin = sys.stdin, sys.__stdin__
        self._gc_callbacks = list(gc.callbacks)
        self._show_warning = warnings.showwarning
        self._policy = asyncio.get_event_loop_policy() if _HAS_POLICIES else None
        self._stack_size = threading.stack_size()
        self._locale = locale.setlocale(locale.LC_ALL)
        self._digits = _get_digits()
        # It comes from the process that has spawned this one, and a job may want to choose.
        multiprocessing.set_start_method(None, force=True)
        self._recursion_limit = sys.getrecursionlimit()
        self._switch_interval = sys.getswitchinterval()
        self._collector = gc.get_threshold()
        self._umask = _get_umask()
        self.limits = Limits(open_files)
        self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._logging = logging.raiseExceptions, logging.lastResort
        self._log_factory = logging.getLogRecordFactory()
        self._logger_class = logging.getLoggerClass()
        self._loggers = {name: _logger_state(logger) for name, logger in _all_loggers()}
        self._leftovers = Leftovers()

    def restore(self, kept: int = 0) -> str | None:
        """Put the process back; return why that is not possible, in words, or None.

        Everything that can be put back is, whatever else cannot. `kept` is how many bytes are kept
        on purpose, and are no growth.
        """
        reasons = [
            reason
            for step in (
                self._restore_process,
                self.limits.restore,
                self._restore_signals,
                self._restore_interpreter,
                self._restore_libraries,
                self._restore_locale,
                self._restore_logging,
                self._leftovers.check_children,
                self._leftovers.check_threads,
                lambda: self._leftovers.check_growth(kept),
            )
            if (reason := _try(step)) is not None
        ]
        return "; ".join(reasons) or None

    def mend(self) -> None:
        """Put right what would strike what follows a job's code: its timers and its umask.

        With some umasks a result could not be kept in a directory that is made for it.
        """
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        os.umask(self._umask)

    def _restore_process(self) -> str | None:
        os.environ, os.environb = self._environ
        if dict(os.environb) != self._environment:
            os.environb.clear()
            os.environb.update(self._environment)
        if _time_zone() != self._time_zone:
            time.tzset()
        try:
            os.chdir(self._directory)
        except OSError as error:
            return f"its working directory is gone: {error.strerror}"
        return None

    def _restore_signals(self) -> str | None:
        self.mend()
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            # None: a handler that was not installed from Python cannot be, either.
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return None

    def _restore_interpreter(self) -> str | None:
        for name in ("meta_path", "path_hooks"):
            self._keep_of_libraries(name)
        for name, value in self._sys.items():
            value[:] = self._sys_lists[name]
            setattr(sys, name, value)
        # What Seamless makes of a job's modules, where two nested jobs have left in another order
        # than they had come. Nothing that was imported has no spec.
        for name in [one for one in sys.modules if one.startswith("transformer")]:
            of_a_job = name.partition(".")[0] == "transformer"
            if of_a_job and getattr(sys.modules[name], "__spec__", None) is None:
                del sys.modules[name]
        sys.excepthook, sys.displayhook, sys.unraisablehook, threading.excepthook = self._hooks
        vars(sys).pop("tracebacklimit", None)
        sys.setrecursionlimit(self._recursion_limit)
        sys.setswitchinterval(self._switch_interval)
        sys.settrace(None)
        sys.setprofile(None)
        threading.settrace(None)
        threading.setprofile(None)
        threading.stack_size(self._stack_size)
        sys.stdin, sys.__stdin__ = self._stdin  # type: ignore[misc]
        if self._digits is not None:
            sys.set_int_max_str_digits(self._digits)
        gc.enable()
        gc.set_threshold(*self._collector)
        self._gc_callbacks += [
            one
            for one in gc.callbacks
            if _is_of_library(one) and not _is_in(self._gc_callbacks, one)
        ]
        gc.callbacks[:] = self._gc_callbacks
        faulthandler.cancel_dump_traceback_later()
        return None

    def _restore_libraries(self) -> str | None:
        tempfile.tempdir = None
        multiprocessing.set_start_method(None, force=True)
        socket.setdefaulttimeout(None)
        if type(self._policy) is _DEFAULT_POLICY:
            # Not the same one: once a loop was set, or taken away, it makes no other.
            asyncio.set_event_loop_policy(None)
        else:
            if _HAS_POLICIES:
                asyncio.set_event_loop_policy(self._policy)
            asyncio.set_event_loop(None)
        random.seed()
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            numpy_random.seed()
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            try:
                pyplot.close("all")
                sys.modules["matplotlib"].rc_file_defaults()
            except Exception as error:  # noqa: BLE001 - a job may have made anything of it
                return f"matplotlib cannot be put back: {type(error).__name__}: {error}"
        return None

    def _restore_locale(self) -> str | None:
        try:
            if locale.setlocale(locale.LC_ALL) != self._locale:
                locale.setlocale(locale.LC_ALL, self._locale)
        except locale.Error as error:
            return f"the locale {self._locale} cannot be put back: {error}"
        return None

    def _keep_of_libraries(self, name: str) -> None:
        """Count what libraries have put into a list of ``sys`` among what is put back."""
        known = self._sys_lists[name]
        present = getattr(sys, name, None)
        if not isinstance(present, list) or list(map(id, present)) == list(map(id, known)):
            return
        if name == "path_hooks":
            # The finders that a hook has made stay in use without it.
            sys.path_importer_cache.clear()
        kept = [one for one in present if _is_in(known, one) or _is_of_library(one)]
        if all(_is_in(kept, one) for one in known):
            self._sys_lists[name] = kept  # in this order: some must come before the others
        else:
            self._sys_lists[name] = known + [one for one in kept if not _is_in(known, one)]

    def _restore_logging(self) -> str | None:
        logging.disable(logging.NOTSET)
        logging.captureWarnings(False)
        if _is_of_library(factory := logging.getLogRecordFactory()):
            self._log_factory = factory
        logging.setLogRecordFactory(self._log_factory)
        logging.raiseExceptions, logging.lastResort = self._logging
        warnings.showwarning = self._show_warning
        for name, logger in _all_loggers():
            state = self._loggers.get(name, _NEW_LOGGER)
            if _logger_state(logger) != state:
                added = [one for one in logger.handlers if not _is_in(state.handlers, one)]
                own = [one for one in added if _is_own_handler(name, one)]
                state = self._loggers[name] = state._replace(handlers=state.handlers + own)
                logger.setLevel(state.level)
                logger.handlers[:] = state.handlers
                logger.filters[:] = state.filters
                logger.propagate, logger.disabled = state.propagate, state.disabled
        if _is_of_library(kind := logging.getLoggerClass()):
            self._logger_class = kind
        if logging.getLoggerClass() is not self._logger_class:
            logging.setLoggerClass(self._logger_class)  # last: it fails where `Logger` is another
        return None


_NEW_LOGGER: Final = _LoggerState(logging.NOTSET, [], [], True, False)


def _all_loggers() -> list[tuple[str, logging.Logger]]:
    known = logging.Logger.manager.loggerDict
    named = [(name, one) for name, one in known.items() if isinstance(one, logging.Logger)]
    return [("", logging.getLogger()), *named]


def _logger_state(logger: logging.Logger) -> _LoggerState:
    return _LoggerState(
        logger.level, list(logger.handlers), list(logger.filters), logger.propagate, logger.disabled
    )


def _is_in(things: list[Any], thing: Any) -> bool:
    """Whether `thing` itself is among `things`: what a job defines may be equal to anything."""
    return any(one is thing for one in things)


def _is_of_library(thing: Any) -> bool:
    """Whether `thing`, or its class, is defined in a module that was imported.

    A module of Python's own does not count: none installs anything by itself, so that a job must
    have done it.
    """
    module = getattr(thing, "__module__", None)
    if not isinstance(module, str) or module.partition(".")[0] in _NO_LIBRARIES:
        return False
    # Modules that Seamless makes of a job's pins have no spec.
    return getattr(sys.modules.get(module), "__spec__", None) is not None


def _is_own_handler(logger: str, handler: logging.Handler) -> bool:
    """Whether the library that `logger` is named for has given itself this handler of it.

    That is one that does nothing, or of a kind that the library defines. Any other is of a job that
    wants to see more.
    """
    library = logger.partition(".")[0]
    if library in _NO_LIBRARIES:
        return False
    if type(handler) is logging.NullHandler:
        return getattr(sys.modules.get(library), "__spec__", None) is not None
    return _is_of_library(handler) and type(handler).__module__.partition(".")[0] == library


def _try(step: Callable[[], str | None]) -> str | None:
    """Take a step of `Surroundings.restore`; a process in which it fails is not to go on."""
    give_way()
    try:
        return step()
    except Exception as error:  # noqa: BLE001 - a job may have made anything of what is looked at
        return f"what a job has changed cannot be put back: {type(error).__name__}: {error}"


def _time_zone() -> tuple[object, ...]:
    """Return what tells one time zone from another, in Python and in the C library."""
    days = time.localtime(_WINTER), time.localtime(_SUMMER)
    return time.tzname, *((day.tm_zone, day.tm_gmtoff) for day in days)


def _get_digits() -> int | None:
    return sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else None


def _get_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
