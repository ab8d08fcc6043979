"""Jobs that share a worker process: what one changes, the next does not find."""

import json
import unittest
from concurrent.futures import ThreadPoolExecutor

from tests.constants import constants
from tests.stack import PATIENCE, wait_until
from tests.test_running import ADD, OnAStore

REPORT = """
def f(nonce):
    import logging, os, resource, signal, subprocess, sys, threading, warnings, gc, decimal, socket
    import asyncio, locale, multiprocessing, tempfile, time
    import numpy
    try:
        asyncio.get_event_loop().close()
        has_loop = True
    except RuntimeError:
        has_loop = False
    return {
        "pid": os.getpid(),
        "directory": os.getcwd(),
        "environment": sorted(os.environ.items()),
        "path": sys.path,
        "argv": sys.argv,
        "umask": subprocess.check_output("umask", shell=True, text=True),
        "limits": [resource.getrlimit(number) for number in range(16)],
        "affinity": sorted(os.sched_getaffinity(0)),
        "policy": os.sched_getscheduler(0),
        "signals": [str(signal.getsignal(n)) for n in (1, 2, 10, 14, 15)],
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "timers": [signal.getitimer(number)[0] > 0 for number in range(3)],
        "descriptor of wake-ups": signal.set_wakeup_fd(-1),
        "logging": [logging.root.level, len(logging.root.handlers), logging.root.manager.disable,
                    logging.getLogger("seamless").level, logging.getLogger("of.a.job").level],
        "loggers": [[len(one.filters), one.propagate, one.disabled]
                    for one in map(logging.getLogger, ("seamless", "of.a.job"))],
        "warnings": [str(one) for one in warnings.filters],
        "recursion": sys.getrecursionlimit(),
        "hooks": [sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__,
                  threading.excepthook is threading.__excepthook__, sys.gettrace() is None,
                  sys.getprofile() is None],
        "collector": [gc.isenabled(), gc.get_threshold()],
        "turns of threads": sys.getswitchinterval(),
        "decimals": decimal.getcontext().prec,
        "numpy errors": numpy.geterr(),
        "socket timeout": socket.getdefaulttimeout(),
        "meta path": len(sys.meta_path),
        "event loop": has_loop,
        "environment's class": type(os.environ).__name__,
        "standard input": sys.stdin is None,
        "time zone": time.tzname,
        "the C library's time zone": time.localtime(0).tm_gmtoff,
        "how warnings are shown": warnings.showwarning.__module__,
        "locale": locale.setlocale(locale.LC_ALL),
        "temporary directory": tempfile.gettempdir(),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "digits": getattr(sys, "get_int_max_str_digits", int)(),
        "captured warnings": logging._warnings_showwarning is None,
        "log records": [logging.getLogRecordFactory().__name__, logging.getLoggerClass().__name__,
                        logging.raiseExceptions, logging.lastResort is None],
        "collector's callbacks": len(gc.callbacks),
        "stack size": threading.stack_size(),
        "tracing of threads": [threading._trace_hook is None, threading._profile_hook is None],
        "finders of a hook": "/of/a/hook" in sys.path_importer_cache,
        "modules of a transformation": "transformer.left" in sys.modules,
        "length of tracebacks": getattr(sys, "tracebacklimit", None),
        "what cannot be raised": sys.unraisablehook is sys.__unraisablehook__,
        "threads not of Python": None,
        "server of forks": None,
    }
"""

# What a job does to its process -> nothing of it is found by the next job in the same process.
MEDDLING = {
    "directory": "os.chdir('/')",
    "environment": "os.environ['LEAK'] = '1'; del os.environ['PATH']; os.environ['HOME'] = '/x'",
    "path": "sys.path.insert(0, '/leak'); sys.path = list(sys.path) + ['/other']",
    "argv": "sys.argv.append('leak')",
    "umask": "os.umask(0o077)",
    "limits": "resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))",
    "affinity": "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])",
    "policy": "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
    "signals": "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, lambda *a: None)",
    "mask": "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])",
    "timers": "for number in range(3): signal.setitimer(number, 500)",
    "descriptor of wake-ups": "signal.set_wakeup_fd(os.open('/dev/null', os.O_WRONLY | os.O_NONBLOCK))",
    "logging": "logging.basicConfig(level=1); logging.disable(50); logging.getLogger('of.a.job').setLevel(10); logging.getLogger('seamless').setLevel(10)",
    "loggers": (
        "for one in map(logging.getLogger, ('seamless', 'of.a.job')):\n"
        "        one.addFilter(print); one.propagate = False; one.disabled = True"
    ),
    "warnings": "warnings.simplefilter('error')",
    "recursion": "sys.setrecursionlimit(5000)",
    "hooks": "sys.excepthook = sys.displayhook = threading.excepthook = print; "
    "sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)",
    "collector": "gc.disable(); gc.set_threshold(5, 5, 5)",
    "turns of threads": "sys.setswitchinterval(0.1)",
    "decimals": "decimal.getcontext().prec = 3",
    "numpy errors": "import numpy; numpy.seterr(all='raise')",
    "socket timeout": "socket.setdefaulttimeout(3)",
    "meta path": "sys.meta_path.append(None)",
    "event loop": "import asyncio; asyncio.set_event_loop(None)",
    "environment's class": "os.environ = dict(os.environ)",
    "standard input": "sys.stdin = sys.__stdin__ = None",
    "time zone": "import time; os.environ['TZ'] = 'XYZ5'; time.tzset(); del os.environ['TZ']",
    "the C library's time zone": "import time; os.environ['TZ'] = 'XYZ5'; time.mktime(time.localtime())",
    "how warnings are shown": "warnings.showwarning = print; logging.captureWarnings(True)",
    "locale": "import locale; locale.setlocale(locale.LC_ALL, 'POSIX')",
    "temporary directory": "import tempfile; os.environ['TMPDIR'] = '/dev/shm'; tempfile.gettempdir()",
    "start method": "import multiprocessing; multiprocessing.set_start_method('spawn')",
    "digits": "getattr(sys, 'set_int_max_str_digits', int)(1000)",
    "captured warnings": "logging.captureWarnings(True)",
    "log records": "logging.setLogRecordFactory(print); logging.raiseExceptions = False; "
    "logging.setLoggerClass(type('Mine', (logging.Logger,), {})); logging.lastResort = None",
    "collector's callbacks": "gc.callbacks.append(lambda *a: None)",
    "stack size": "threading.stack_size(2**20)",
    "tracing of threads": "threading.settrace(lambda *a: None); threading.setprofile(print)",
    # In use without the hook that has made it, for as long as it is remembered.
    "finders of a hook": (
        "import importlib.machinery, importlib.util\n"
        "    def hook(path):\n"
        "        if path != '/of/a/hook': raise ImportError\n"
        "        return importlib.machinery.FileFinder('/')\n"
        "    sys.path_hooks.append(hook); sys.path.append('/of/a/hook')\n"
        "    sys.path_importer_cache.pop('/of/a/hook', None); importlib.util.find_spec('nowhere')"
    ),
    # As they are when two nested ones have left in another order than they had come.
    "modules of a transformation": (
        "import types; sys.modules['transformer.left'] = types.ModuleType('transformer.left')"
    ),
    "length of tracebacks": "sys.tracebacklimit = 0",
    "what cannot be raised": "sys.unraisablehook = print",
    # threading knows each by a dummy from then on, also when it has ended.
    "threads not of Python": (
        "import _thread, ctypes; over = _thread.allocate_lock(); over.acquire()\n"
        "    def run():\n        threading.current_thread(); over.release()\n"
        "    _thread.start_new_thread(run, ()); over.acquire()"
    ),
    "server of forks": (
        "import multiprocessing; context = multiprocessing.get_context('forkserver')\n"
        "    with context.Pool(1) as pool: assert pool.apply(abs, (-1,)) == 1"
    ),
}

# What a job makes of its standard streams and descriptors.
STREAMS = (
    "import io; sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')",
    "import codecs; sys.stdout = codecs.getwriter('utf-8')(sys.stdout.detach())",
    "sys.stdout = open(sys.stdout.fileno(), 'w', buffering=1)",
    "sys.stderr = os.fdopen(2, 'w')",
    "sys.stdout.close(); sys.stderr.close()",
    "sys.stdout = sys.stderr = None",
    "del sys.stdout, sys.stderr, sys.__stdout__",
    "os.close(0); os.close(1); os.close(2)",
    "open(0).read()",
)

# As much of matplotlib as keeps something for the whole process.
MATPLOTLIB = {
    "__init__.py": "rcParams = {}\ndef rc_file_defaults():\n    rcParams.clear()\n",
    "pyplot.py": "figures = []\ndef close(which):\n    assert which == 'all'\n    figures.clear()\n",
}

# A library that installs itself when it is imported, as `six` and many others do.
LIBRARY = """
import importlib.machinery, logging, sys, types
__path__ = []
logging.getLogger(__name__).addHandler(logging.NullHandler())
class Own(logging.Handler):
    def emit(self, record):
        pass
logging.getLogger(__name__ + ".part").addHandler(Own())
class Record(logging.LogRecord):
    pass
logging.setLogRecordFactory(Record)
class Talkative(logging.getLoggerClass()):
    pass
logging.setLoggerClass(Talkative)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("installed.late"):
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        return types.ModuleType(spec.name)
    def exec_module(self, module):
        module.answer = 42
sys.meta_path.insert(0, Finder())
def hook(path):
    raise ImportError(path)
sys.path_hooks.append(hook)
import gc
def collecting(*_):
    pass
gc.callbacks.append(collecting)
def say(text, out=sys.stdout):
    out.write(text)
"""
LIBRARY_REPORT = """
def f(number):
    import importlib, logging, sys
    import installed
    late = importlib.import_module(f"installed.late{number}")
    def name(one):
        return getattr(one, "__qualname__", type(one).__qualname__)
    return [
        late.answer,
        [name(one) for one in sys.meta_path],
        [name(one) for one in sys.path_hooks],
        [name(one) for one in logging.getLogger("installed").handlers],
        [name(one) for one in logging.getLogger("installed.part").handlers],
        [name(one) for one in __import__("gc").callbacks if "collecting" in name(one)],
        [name(logging.getLogRecordFactory()), name(logging.getLoggerClass())],
        [name(one) for one in logging.getLogger("of.a.job").handlers + logging.root.handlers],
    ]
"""
# What a job does of its own accord to the places where a library installs itself.
OWN_INSTALLATIONS = (
    "sys.meta_path.insert(0, type('Mine', (), {'find_spec': lambda *a: None})())",
    "sys.meta_path.append(type('Mine', (), {'find_spec': classmethod(lambda *a: None)}))",
    "import importlib.machinery; sys.meta_path.append(importlib.machinery.PathFinder())",
    "sys.path_hooks.insert(0, lambda path: sys.path_hooks[-1](path))",
    "import importlib.machinery as m; sys.path_hooks.insert(0, m.FileFinder.path_hook())",
    "sys.meta_path.clear(); sys.path_hooks.clear()",
    "sys.meta_path = []; del sys.path_hooks",
    "logging.getLogger('installed').addHandler(logging.StreamHandler())",
    "logging.getLogger('installed').addHandler(type('Mine', (logging.NullHandler,), {})())",
    "logging.getLogger('installed').handlers.clear()",
    "logging.getLogger('of.a.job').addHandler(logging.NullHandler())",
    "logging.root.addHandler(logging.NullHandler())",
    "import installed; logging.getLogger('of.a.job').addHandler(installed.Own())",
    "logging.setLogRecordFactory(logging.LogRecord); logging.setLoggerClass(logging.Logger)",
)

# A watchdog that nobody has called off: it strikes while the process is put back.
LATE_INTERRUPTS = """
def f(a):
    import _thread, signal, threading, time

    def interrupt():
        for _ in range(30):
            if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
                break
            time.sleep(0.005)
        for _ in range(20):
            _thread.interrupt_main()
            time.sleep(0.005)

    threading.Thread(target=interrupt, name="watchdog").start()
    return a
"""

# What cannot be put back -> the reason for which the worker is retired.
PAST_MENDING = {
    "threads": (
        "threading.Thread(target=threading.Event().wait, daemon=True, name='mine').start()",
        "left threads behind: mine",
    ),
    # It counts as one from the moment on at which it has its first turn.
    "threads behind the back of threading": (
        "import _thread; begun = threading.Event()\n"
        "    _thread.start_new_thread(lambda: begun.set() or threading.Event().wait(), ())\n"
        "    begun.wait()",
        "left 1 threads behind that were started without threading",
    ),
    "processes": ("subprocess.Popen(['sleep', '600'])", "left 1 processes behind"),
    "daemons": (
        "subprocess.run('setsid sleep 600 >&- 2>&- &', shell=True)",
        "left 1 processes behind",
    ),
    "memory": (
        "sys.leak = bytearray(700 * 2**20); sys.leak[::4096] = bytes(len(sys.leak[::4096]))",
        "has grown by",
    ),
    "files": ("sys.leak = [open('/dev/null') for _ in range(300)]", "files open"),
    "the locale": (
        "import locale; look = locale.setlocale\n"
        "    def refuse(kind, wanted=None):\n"
        "        if wanted is not None: raise locale.Error('it is gone')\n"
        "        return 'of a job'\n"
        "    locale.setlocale = refuse",
        "cannot be put back: it is gone",
    ),
    "what makes pictures": (
        "import types; sys.modules['matplotlib.pyplot'] = types.ModuleType('pyplot')",
        "matplotlib cannot be put back: AttributeError",
    ),
    "what it is put back with": (
        "logging.captureWarnings = None",
        "what a job has changed cannot be put back: TypeError",
    ),
}


class SharedProcess(OnAStore):
    shares_store = True

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        from tests.stack import Jobserver

        cls.server = Jobserver(cls.directory / "shared", cls.store.parameters())
        cls.addClassCleanup(cls.server.stop)

    def report(self):
        return self.value(self.server.run(self.store.request(REPORT, output="plain", nonce=0)))

    def meddle(self, what):
        code = (
            "def f(nonce):\n    import decimal, gc, logging, os, resource, signal, socket, subprocess\n"
            f"    import sys, threading, warnings\n    {what}\n    return nonce\n"
        )
        answer = self.server.run(self.store.request(code, nonce=1))
        self.assertEqual(answer.status, 200, answer.text)

    def test_what_a_job_changes_is_put_back(self):
        before = self.report()
        self.assertEqual(set(MEDDLING), before.keys() - {"pid"})
        for name, what in MEDDLING.items():
            with self.subTest(name):
                self.meddle(what)
                self.assertEqual(self.report(), before, self.server.log[-1000:])

    def test_whatever_a_job_makes_of_its_streams_the_next_prints_and_so_do_its_children(self):
        code = (
            "def f(nonce):\n    import subprocess\n    print('mine')\n"
            "    subprocess.run('cat; echo of a child', shell=True, check=True)\n"
            "    raise ValueError(nonce)\n"
        )
        before = self.report()["pid"]
        for number, what in enumerate(STREAMS):
            with self.subTest(what):
                self.meddle(what)
                said = self.server.run(self.store.request(code, nonce=f"the end {number}")).text
                self.assertIn(f"ValueError: the end {number}", said)
                self.assertIn("mine\nof a child\n", said)
                self.assertNotIn("output was lost", said)
                self.assertEqual(self.report()["pid"], before, self.server.log[-1000:])

    def test_a_process_that_a_job_has_forked_ends_where_the_jobs_code_ends(self):
        for end, code in (
            ("sys.exit(7)", 7),
            ("sys.exit(2**70 + 7)", 7),
            ("return 5", 0),
            ("raise ValueError", 1),
            ("sys.stdout = sys.stderr = None; raise ValueError", 1),
            ("sys.stderr.close(); sys.exit('no')", 1),
        ):
            before = self.report()["pid"]
            job = (
                f"def f(a):\n    import os, sys\n    child = os.fork()\n    if not child: {end}\n"
                "    return [a, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]\n"
            )
            with self.subTest(end):
                answer = self.server.run(self.store.request(job, output="plain", a=end))
                self.assertEqual(self.value(answer), [end, code])
                self.assertEqual(self.report()["pid"], before, self.server.log[-1000:])

    def test_a_process_that_a_job_has_forked_cannot_wait_for_what_it_has_not(self):
        code = (
            "def f(a):\n    import multiprocessing\n    from seamless.transformer import direct\n"
            "    def inner(b):\n        return b + 1\n"
            "    def ask(b):\n"
            "        try:\n            return direct(inner)(b)\n"
            "        except Exception as error:\n            return str(error)\n"
            "    here = direct(inner)(a)\n"
            "    context = multiprocessing.get_context('fork')\n"
            "    pipe, end = context.Pipe()\n"
            "    child = context.Process(target=lambda: end.send(ask(a + 1)))\n"
            "    child.start()\n    said = pipe.recv()\n    child.join()\n    return [here, said]\n"
        )
        answer = self.server.run(self.store.request(code, output="plain", a=1))
        here, said = self.value(answer)
        self.assertEqual(here, 2)
        self.assertIn("a job has forked", said)

    def test_a_module_that_configures_seamless_as_scripts_do_can_be_imported(self):
        self.meddle("import seamless.config; seamless.config.init()")

    def test_connections_and_loops_of_nested_transformations_are_closed_with_their_job(self):
        code = (
            "def f(a):\n    import os\n    from seamless.transformer import direct\n"
            "    def inner(b):\n        return b + 1\n"
            "    assert direct(inner)(a) == a + 1\n    return len(os.listdir('/proc/self/fd'))\n"
        )
        opened = [
            self.value(self.server.run(self.store.request(code, a=number))) for number in range(8)
        ]
        # More or less of them are open to the store at the same time.
        self.assertLess(opened[-1], opened[1] + 4, opened)

    def test_a_job_that_has_ended_is_not_ended_by_the_interpreter_later(self):
        self.meddle("import faulthandler; faulthandler.dump_traceback_later(2, exit=True)")
        code = "def f(a):\n    import time\n    time.sleep(2.5)\n    return a\n"
        self.assertEqual(self.value(self.server.run(self.store.request(code, a=3))), 3)

    def test_the_next_picture_has_nothing_of_the_last_one_in_it(self):
        package = self.directory / "pictures" / "matplotlib"
        package.mkdir(parents=True)
        for name, content in MATPLOTLIB.items():
            (package / name).write_text(content)
        server = self.start(env={"PYTHONPATH": str(package.parent)})
        code = (
            "def f(a):\n    import matplotlib\n    from matplotlib import pyplot\n"
            "    pyplot.figures.append(a)\n    matplotlib.rcParams[a] = a\n"
            "    return [pyplot.figures, matplotlib.rcParams]\n"
        )
        for a in ("one", "two"):
            answer = server.run(self.store.request(code, output="plain", a=a))
            self.assertEqual(self.value(answer), [[a], {a: a}])
        self.assertNotIn("is replaced", server.log)

    def test_a_worker_that_cannot_be_put_back_is_replaced(self):
        for name, (what, reason) in PAST_MENDING.items():
            with self.subTest(name):
                before = self.report()["pid"]
                self.meddle(what)
                wait_until(lambda r=reason: r in self.server.log, f"the log says: {reason}")
                after = self.report()
                self.assertNotEqual(after["pid"], before)

    def test_an_interrupt_that_a_job_has_left_behind_costs_no_result(self):
        answer = self.server.run(self.store.request(LATE_INTERRUPTS, a=5))
        self.assertEqual(self.value(answer), 5)
        self.assertEqual(self.value(self.server.run(self.store.request(ADD, a=1, b=2))), 3)
        self.assertNotIn("unforeseen", self.server.log)

    def test_what_a_library_installs_at_its_import_stays_and_what_a_job_installs_goes(self):
        (self.directory / "library").mkdir()
        (self.directory / "library" / "installed.py").write_text(LIBRARY)
        server = self.start(env={"PYTHONPATH": str(self.directory / "library")})
        numbers = iter(range(100))

        def report():
            request = self.store.request(LIBRARY_REPORT, output="plain", number=next(numbers))
            return self.value(server.run(request))

        first = report()
        self.assertEqual(first[0], 42)
        self.assertEqual(first[1][0], "Finder")
        self.assertEqual(first[2][-1], "hook")
        installed = [["NullHandler"], ["Own"], ["collecting"], ["Record", "Talkative"], []]
        self.assertEqual(first[3:], installed)
        self.assertEqual(report(), first)
        for what in OWN_INSTALLATIONS:
            code = f"def f(a):\n    import logging, sys\n    {what}\n    return a\n"
            with self.subTest(what):
                self.assertEqual(server.run(self.store.request(code, a=1)).status, 200)
                self.assertEqual(report(), first)
        # Through the stream that was there when it was imported, and without an end of the line.
        code = "def f(a):\n    import installed\n    installed.say(a)\n    raise ValueError\n"
        for a in ("said once", "said twice"):
            self.assertIn(a, server.run(self.store.request(code, a=a)).text)
        self.assertNotIn("is replaced", server.log)

    def test_a_lowered_hard_limit_retires_the_worker_unless_it_may_be_raised_again(self):
        before = self.report()
        self.meddle("resource.setrlimit(resource.RLIMIT_CORE, (0, 0))")
        after = self.report()
        self.assertEqual(after["limits"], before["limits"])

    def test_random_numbers_of_two_jobs_differ_whatever_the_first_has_seeded(self):
        draw = "def f(seed):\n    import random, numpy\n    if seed: random.seed(1); numpy.random.seed(1)\n    return [random.random(), float(numpy.random.random())]\n"
        draws = []
        for seed in (1, 0, 1, 0, 0):
            request = self.store.request(draw, output="plain", seed=seed)
            draws.append(self.value(self.server.run(request)))
        self.assertEqual(draws[0], draws[2], "a seeded job is reproducible")
        for index in range(2):
            self.assertEqual(len({one[index] for one in draws[1:]}), 4)

    def test_jobs_in_many_ways_of_concurrency_leave_a_process_that_can_go_on(self):
        # What they leave behind has a moment to end, which is longer on a machine with a load.
        patient = constants(self.directory, {"worker.leftovers.PATIENCE": 5.0})
        self.server = self.start(env=patient)
        before = self.report()["pid"]
        for what in (
            "import asyncio; asyncio.run(asyncio.to_thread(print, 'x'))",
            "t = threading.Thread(target=print); t.start(); t.join()",
            "from concurrent.futures import ThreadPoolExecutor as E\n    with E(3) as e: list(e.map(str, range(9)))",
            "subprocess.run(['true']); os.system('sleep 0.01 & wait')",
            "p = subprocess.Popen(['true']); os.waitid(os.P_PID, p.pid, os.WEXITED | os.WNOWAIT)",
            "os.popen('echo all; exec >&-; sleep 0.05').read()",
            "import time; threading.Thread(target=time.sleep, args=(0.5,)).start()",
            "import _thread, time; begun = threading.Event()\n"
            "    _thread.start_new_thread(lambda: begun.set() or time.sleep(0.5), ())\n"
            "    begun.wait()",
        ):
            self.meddle(what)
        self.assertEqual(self.report()["pid"], before)

    def test_ordinary_jobs_of_every_size_share_one_worker(self):
        server = self.start(parameters=self.store.parameters(read_folder=True))
        for number in range(20):
            request = self.store.request(ADD, a=number, b=10)
            self.assertEqual(self.value(server.run(request)), number + 10)
        request = self.store.request("def f(a):\n    return a\n", output="bytes", a=bytes(10**7))
        self.assertEqual(server.run(request).status, 200)
        self.assertNotIn("is replaced", server.log)

    def test_a_result_larger_than_a_worker_may_grow_costs_no_worker(self):
        server = self.start()
        # No zeros, which would take no memory.
        code = "def f(n):\n    return b'x' * n\n"
        request = self.store.request(code, output="bytes", n=600 * 2**20)
        self.assertEqual(server.run(request).status, 200)
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=1, b=10))), 11)
        self.assertNotIn("is replaced", server.log)

    def test_inputs_that_are_kept_on_purpose_cost_no_worker_however_large(self):
        place = self.directory / "kept"
        place.mkdir()
        limited = constants(place, {"worker.leftovers.GROWTH_LIMIT": 60 * 2**20})
        server = self.start("--cache-size", "250M", env=limited)
        for a in range(2):
            content = bytes([a]) * 100 * 2**20
            request = self.store.request("def f(a):\n    return len(a.content)\n", a=content)
            self.assertEqual(self.value(server.run(request)), len(content))
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=1, b=10))), 11)
        self.assertNotIn("is replaced", server.log)

    def test_a_result_is_stored_however_few_files_its_job_has_left_itself(self):
        # With a read folder nothing has been asked of the store before the result is sent.
        server = self.start(
            "--store-timeout", "1", parameters=self.store.parameters(read_folder=True)
        )
        code = (
            "def f(a):\n    import resource, seamless\n"
            "    seamless.Buffer(a, 'mixed')  # imports what making the result needs\n"
            "    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
            "    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))\n    return a\n"
        )
        large = "def f(a):\n    return len(b'x' * a)\n"
        self.value(server.run(self.store.request(large, a=300 * 10**6)))
        answer = server.run(self.store.request(code, a=12))
        self.assertEqual(self.value(answer), 12)
        # And measured: that of the process's life would be all that can be told without files.
        self.assertLess(answer.json["record_runtime"]["memory_peak_bytes"], 100e6)
        self.assertNotIn("is replaced", server.log)

    def test_a_job_that_closes_the_pipe_of_receipts_costs_neither_its_result_nor_others(self):
        server = self.start()
        code = (
            "def f(a):\n    import os\n"
            "    opened = {n: os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')}\n"
            "    pipes = [int(n) for n, path in opened.items() if path.endswith('/receipts')]\n"
            "    for pipe in pipes: os.close(pipe)\n    return len(pipes) + a\n"
        )
        self.assertEqual(self.value(server.run(self.store.request(code, a=10))), 11)
        self.assertEqual(self.value(server.run(self.store.request(ADD, a=1, b=2))), 3)
        self.assertNotIn("ended by", server.log)

    def test_a_raised_nice_value_is_put_back_or_costs_the_worker(self):
        code = "def f(nonce):\n    import os\n    return os.getpriority(os.PRIO_PROCESS, 0)\n"

        def niceness():
            return self.value(self.server.run(self.store.request(code, output="plain", nonce=0)))

        before = niceness()
        self.meddle("os.nice(5)")  # which root may take back, and nobody else
        self.assertEqual(niceness(), before, self.server.log[-1000:])


class Metadata(OnAStore):
    shares_store = True

    BURN = (
        "import time, os\n"
        "block = bytearray(400 * 10**6)\n"
        "block[::4096] = bytes(len(block[::4096]))\n"
        "while time.process_time() < {seconds}: pass\n"
    )

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        from tests.stack import Jobserver

        cls.server = Jobserver(cls.directory / "shared", cls.store.parameters())
        cls.addClassCleanup(cls.server.stop)

    def runtime(self, request):
        answer = self.server.run(request)
        self.assertEqual(answer.status, 200, answer.text)
        return answer.json["record_runtime"]

    def burned(self, runtime, seconds=1.5):
        cpu = runtime["cpu_user_seconds"] + runtime["cpu_system_seconds"]
        self.assertAlmostEqual(cpu, seconds, delta=0.1 * seconds)
        self.assertAlmostEqual(runtime["memory_peak_bytes"], 400e6, delta=40e6)
        self.assertGreaterEqual(runtime["wall_time_seconds"], 1.3)

    def small(self):
        runtime = self.runtime(self.store.request(ADD, a=1, b=2))
        self.assertLess(runtime["memory_peak_bytes"], 60e6)
        self.assertGreater(runtime["memory_peak_bytes"], 10e6)
        self.assertLess(runtime["cpu_user_seconds"] + runtime["cpu_system_seconds"], 0.2)
        return runtime

    def test_a_job_is_reported_with_what_it_used_and_the_next_with_what_that_used(self):
        burn = self.BURN.format(seconds="start + 1.5").replace(
            "block =", "start = time.process_time()\nblock =", 1
        )
        code = (
            "def f(a):\n"
            + "".join(f"    {line}\n" for line in burn.splitlines())
            + "    return 1\n"
        )
        first = self.small()
        self.burned(self.runtime(self.store.request(code, a=1)))
        last = self.small()
        self.assertEqual(last["worker_execution_index"], first["worker_execution_index"] + 2)

    def test_a_child_counts_as_the_job_does(self):
        code = (
            "python3 -S -E -c '"
            + self.BURN.format(seconds="1.45").replace("'", '"')
            + "'\ntimes > t; tail -n 1 t > RESULT\n"
        )
        request = self.store.request(code, language="bash", output="text", a="x")
        answer = self.server.run(request)
        # What the shell says of its children: the end of a process that large takes time too.
        user, system = self.result(answer).decode().replace("0m", "").replace("s", "").split()
        used = float(user) + float(system)
        self.assertGreaterEqual(used, 1.4)
        self.burned(answer.json["record_runtime"], used)
        self.small()

    def test_a_child_of_a_nested_job_counts_as_that_job_does_in_its_callers_process(self):
        burn = self.BURN.format(seconds="1.0").replace("400", "300")
        bash = f"python3 -S -E -c '{burn}'\necho done > RESULT\n"
        code = (
            "def f(bash):\n    from seamless.transformer import direct\n"
            "    run = direct(bash, language='bash')\n    run.celltypes.a = 'text'\n"
            "    run.celltypes.result = 'text'\n    return run(a='x')\n"
        )
        self.runtime(self.store.request(code, bash=bash))
        listed = self.server.request("GET", "/jobs?limit=2").json["jobs"]
        nested, around = sorted(listed, key=lambda job: not job["hosted"])
        self.assertEqual([job["hosted"] for job in (nested, around)], [True, False])
        self.assertGreaterEqual(nested["cpu"], 0.95)
        self.assertLess(nested["cpu"], 2)
        self.assertAlmostEqual(around["cpu"], nested["cpu"], delta=0.5)
        self.assertGreaterEqual(nested["memory"], 300e6)
        self.assertLess(nested["memory"], 500e6)
        self.small()

    def test_the_inputs_of_earlier_jobs_are_left_out_and_make_room_for_a_jobs_own(self):
        server = self.start("--cache-size", "250M")
        code = "def f(data, more):\n    taken = b'x' * more\n    return len(taken) + 0\n"
        peaks = []
        for data, more in ((b"1" * 200 * 10**6, 1), (b"1", 1), (b"2" * 200 * 10**6, 300 * 10**6)):
            answer = server.run(self.store.request(code, data=data, more=more))
            self.assertEqual(self.value(answer), more)
            peaks.append(answer.json["record_runtime"]["memory_peak_bytes"])
        first, small, last = peaks
        self.assertGreater(first, 200e6)
        self.assertLess(small, 60e6)
        self.assertAlmostEqual(last, small + 500e6, delta=50e6)

    def test_the_process_is_described(self):
        runtime = self.small()
        code = "def f(a):\n    import os, socket\n    return [os.getpid(), socket.gethostname()]\n"
        pid, host = self.value(self.server.run(self.store.request(code, output="plain", a=1)))
        self.assertEqual((runtime["pid"], runtime["hostname"]), (pid, host))
        self.assertEqual(runtime["retry_count"], 0)
        self.assertIsNone(runtime["gpu_memory_peak_bytes"])
        self.assertRegex(runtime["process_started_at"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        with open(f"/proc/{pid}/stat") as stat, open("/proc/stat") as system:
            ticks = int(stat.read().rpartition(")")[2].split()[19])
            boot = next(int(line.split()[1]) for line in system if line.startswith("btime"))
        self.assertAlmostEqual(runtime["process_create_time_epoch"], boot + ticks / 100, delta=0.02)

    def test_a_failed_job_is_measured_without_harm(self):
        answer = self.server.run(self.store.request("def f(a):\n    1 / 0\n", a=1))
        self.assertEqual(answer.status, 500)
        self.small()


# Each nested job leaves the number of its process, and waits until there are so many processes.
FAN_OUT = """
def f(n, tag, place, processes):
    import os
    from seamless.transformer import delayed

    @delayed
    def meet(i, tag, place, processes):
        import os, time
        open(os.path.join(place, str(os.getpid())), "w").close()
        deadline = time.monotonic() + 20
        while len(os.listdir(place)) < processes and time.monotonic() < deadline:
            time.sleep(0.01)
        return [i, os.getpid()]

    transformations = [meet(i, tag, place, processes) for i in range(n)]
    for transformation in transformations:
        transformation.start()
    return [transformation.run() for transformation in transformations] + [[-1, os.getpid()]]
"""
PARALLEL = """
def f(n):
    from seamless.transformer import delayed, parallel

    @delayed
    def square(i):
        return i * i

    return [transformation.value for transformation in parallel([square(i) for i in range(n)])]
"""
THREE_LEVELS = """
def f(a):
    from seamless.transformer import direct

    @direct
    def two(a):
        from seamless.transformer import direct

        @direct
        def three(a):
            return a + 1

        return three(a) * 10

    return two(a) + 0.5
"""
FAILING_INSIDE = """
def f(trace):
    from seamless.transformer import direct

    @direct
    def inner(trace):
        open(trace, "a").write("x")
        raise KeyError("from within")

    return inner(trace)
"""


WAITING_FOR_ONE = """
def f(n):
    from seamless.transformer import delayed

    def common(number):
        import time
        time.sleep(0.2)
        return number

    def member(index):
        import time
        from seamless.transformer import delayed
        time.sleep(0.5)
        def common(number):
            import time
            time.sleep(0.2)
            return number
        return delayed(common)(7).run() + index

    members = [delayed(member)(index) for index in range(n)]
    for one in members:
        one.start()
    other = delayed(common)(7)
    other.start()
    return sum(one.run() for one in members)
"""


class Nested(OnAStore):
    shares_store = True

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # What a job leaves behind for a moment is no matter here, however long that moment is.
        cls.patient = constants(
            cls.directory, {"worker.leftovers.PATIENCE": 5.0, "worker.nested._END_LIMIT": 20.0}
        )

    def ready(self, workers):
        server = self.start(workers=workers, env=self.patient)
        wait_until(lambda: server.log.count("is ready") == workers, "all workers are ready")
        return server

    def fan_out(self, tag, processes):
        """Return a request for a job with 8 nested ones, which meet in so many processes."""
        place = self.directory / f"meeting-{processes}"
        place.mkdir(exist_ok=True)
        return self.store.request(
            FAN_OUT, output="plain", n=8, tag=tag, place=str(place), processes=processes
        )

    def check_not_retired(self, server):
        self.assertNotIn("is replaced", server.log)
        self.assertNotIn("Traceback", server.log)

    def test_a_fan_out_uses_the_free_slots_and_its_own_process_for_the_rest(self):
        server = self.ready(4)
        request = self.fan_out("four", 4)
        result = self.value(server.run(request))
        self.assertEqual([index for index, _ in result], [*range(8), -1])
        self.assertEqual(len({pid for _, pid in result}), 4)
        self.check_not_retired(server)

    def test_three_levels_run_on_however_few_workers(self):
        for workers in (1, 2, 3):
            server = self.ready(workers)
            with self.subTest(workers):
                request = self.store.request(THREE_LEVELS, a=workers)
                self.assertEqual(self.value(server.run(request)), (workers + 1) * 10 + 0.5)
                self.check_not_retired(server)

    def test_one_that_runs_inside_its_caller_is_joined_by_others(self):
        server = self.ready(2)
        trace, gate, second = (self.directory / f"joining-{name}" for name in ("t", "g", "s"))
        code = (
            "def f(a):\n"
            "    import os, time\n"
            "    from seamless.transformer import direct\n"
            "    def inner(trace, gate):\n"
            "        import os, time\n"
            "        open(trace, 'a').write('x')\n"
            "        while not os.path.exists(gate): time.sleep(0.01)\n"
            "        return 5\n"
            f"    while a == 2 and not os.path.exists({str(second)!r}): time.sleep(0.01)\n"
            f"    return a * direct(inner)({str(trace)!r}, {str(gate)!r})\n"
        )
        with ThreadPoolExecutor(2) as callers:
            try:
                # The second takes the other slot first, so that none is free for the first.
                answers = [callers.submit(server.run, self.store.request(code, a=2))]
                wait_until(lambda: "received from a caller" in server.log, "the second is there")
                answers.append(callers.submit(server.run, self.store.request(code, a=1)))
                wait_until(trace.exists, "the nested job runs")
                told = "run by the worker whose job asks for it"
                wait_until(lambda: told in server.log, "it is told")
                second.touch()
                wait_until(lambda: "joined by another job" in server.log, "the other joins it")
            finally:
                second.touch()
                gate.touch()
            values = [self.value(answer.result(PATIENCE)) for answer in answers]
        self.assertEqual(values, [10, 5])
        self.assertEqual(trace.read_text(), "x")
        self.check_not_retired(server)

    def test_more_than_there_are_threads_can_wait_for_one_more(self):
        server = self.ready(1)
        request = self.store.request(WAITING_FOR_ONE, n=24)
        self.assertEqual(self.value(server.run(request)), sum(range(24)) + 24 * 7)
        self.check_not_retired(server)

    def test_parallel_works_inside_a_job(self):
        server = self.ready(2)
        request = self.store.request(PARALLEL, output="plain", n=7)
        self.assertEqual(self.value(server.run(request)), [n * n for n in range(7)])
        self.check_not_retired(server)

    def test_16_jobs_that_each_fan_out_8_on_2_workers_all_end(self):
        from concurrent.futures import ThreadPoolExecutor

        server = self.ready(2)
        requests = [self.fan_out(f"tag {n}", 2) for n in range(16)]
        with ThreadPoolExecutor(16) as callers:
            for answer in callers.map(server.run, requests):
                self.assertEqual([index for index, _ in self.value(answer)], [*range(8), -1])
        self.check_not_retired(server)

    def test_a_nested_failure_is_the_failure_of_the_job_and_happens_once(self):
        for workers in (1, 2):
            server = self.ready(workers)
            trace = self.directory / f"inner-{workers}"
            answer = server.run(self.store.request(FAILING_INSIDE, trace=str(trace)))
            with self.subTest(workers):
                self.assertEqual(answer.status, 500)
                self.assertIn("from within", answer.text)
                self.assertEqual(trace.read_text(), "x")

    def test_a_nested_job_that_raises_what_is_no_exception_fails_and_the_job_around_it_ends(self):
        without_database = {**self.store.parameters(), "database": []}
        for workers, parameters in ((1, None), (2, None), (1, without_database)):
            server = self.start(workers=workers, parameters=parameters)
            wait_until(lambda s=server, n=workers: s.log.count("is ready") == n, "all are ready")
            for raising, expected in (
                ("sys.exit(3)", "sys.exit(3)"),
                ("raise KeyboardInterrupt('a hand here')", "KeyboardInterrupt: a hand here"),
                ("import asyncio; raise asyncio.CancelledError('odd')", "CancelledError: odd"),
                # An exception like any other, which no future of asyncio takes.
                ("next(iter(()))", "StopIteration"),
                ("import concurrent.futures as c; raise c.CancelledError('odd')", "CancelledError"),
            ):
                code = (
                    "def f(a):\n    from seamless.transformer import direct\n"
                    f"    def inner(a):\n        import sys; {raising}\n"
                    "    return direct(inner)(a)\n"
                )
                with self.subTest(raising, workers=workers, database=parameters is None):
                    answer = server.run(self.store.request(code, a=workers))
                    self.assertEqual(answer.status, 500)
                    self.assertIn(expected, answer.text)
                    self.assertIn("RuntimeError", answer.text)
            self.assertEqual(
                self.value(server.run(self.store.request(ADD, a=2, b=workers))), 2 + workers
            )
            self.assertNotIn("is replaced", server.log)

    def test_a_nested_result_is_found_in_the_database_the_next_time(self):
        server = self.ready(2)
        trace = self.directory / "cached"
        inner = "    @direct\n    def inner(trace):\n        open(trace, 'a').write('x')\n        return 6\n"
        for number in range(3):
            code = f"def f(trace):\n    from seamless.transformer import direct\n{inner}    return inner(trace) * {number}\n"
            self.assertEqual(
                self.value(server.run(self.store.request(code, trace=str(trace)))), 6 * number
            )
        self.assertEqual(trace.read_text(), "x")

    def test_nested_inputs_reach_the_store_when_only_the_folder_was_read_so_far(self):
        server = self.start(parameters=self.store.parameters(read_folder=True), workers=2)
        request = self.store.request(THREE_LEVELS, a=77)
        self.assertEqual(self.value(server.run(request)), 780.5)

    def test_without_a_database_nested_jobs_run_where_they_are(self):
        parameters = {**self.store.parameters(), "database": []}
        server = self.start(parameters=parameters, workers=2)
        self.assertEqual(self.value(server.run(self.store.request(THREE_LEVELS, a=5))), 60.5)

    def test_without_a_store_to_write_to_a_scratch_job_can_still_nest(self):
        parameters = self.store.parameters()
        parameters["buffer"][0]["readonly"] = True
        server = self.start(parameters=parameters, workers=2)
        answer = server.run({**self.store.request(THREE_LEVELS, a=6), "scratch": True})
        self.assertEqual(answer.status, 200, answer.text)

    def test_nobody_but_a_worker_may_ask_for_a_nested_run(self):
        server = self.ready(1)
        request = self.store.request(ADD, a=1, b=2)
        for headers in ({}, {"Authorization": "Basic d29ya2VyOg=="}, {"Authorization": "é"}):
            answer = server.request("GET", "/nested-transformation", request, **headers)
            self.assertEqual(answer.status, 404)
        self.assertNotIn("received", server.log)

    def test_jobs_cannot_read_the_password_from_their_environment(self):
        server = self.ready(1)
        code = "def f(a):\n    import os, sys\n    return [sorted(os.environ.values()), sys.argv]\n"
        answer = server.run(self.store.request(code, output="plain", a=1))
        self.assertNotIn("worker:", json.dumps(self.value(answer)))


if __name__ == "__main__":
    unittest.main()
