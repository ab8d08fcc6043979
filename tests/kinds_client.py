"""A client process that runs transformations of some kinds, for ``test_kinds``.

Called with the JSON of ``{"parameters", "jobserver", "directory", "patience", "leaves"}``, the last of
which is how many a deep structure has, and the names of kinds; prints one line for each, with the name and JSON: what came back, or what was raised. It ends with the
first kind that takes more than ``patience`` seconds, and then shows where its threads were.
"""

import asyncio
import faulthandler
import functools
import hashlib
import json
import os
import sys
import textwrap
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import seamless.config
from seamless import Buffer, Checksum
from seamless.caching import buffer_writer
from seamless.transformer import delayed, direct
from seamless_config.select import select_execution, select_remote
from seamless_remote import buffer_remote, jobserver_remote
from seamless_remote.jobserver_client import JobserverClient

KINDS = {}
LEAVES = json.loads(sys.argv[1])["leaves"]
CELLTYPES = {
    "plain": {"a": [1, None, "x"]},
    "mixed": {"a": np.arange(3), "b": "text"},
    "text": "line\nline",
    "bytes": b"\0\xff bytes",
    "binary": np.arange(6.0).reshape(2, 3),
    "str": "a string",
    "int": 42,
    "float": 1.5,
    "bool": True,
}


def kind(function):
    KINDS[function.__name__] = function
    return function


@kind
def function(_directory):
    return direct(lambda_free_add)(1, 2)


def lambda_free_add(a, b):
    return a + b


@kind
def block(_directory):
    run = direct("c = a * 10\nresult = c + 1\n")
    run.args.a = 4
    return run()


@kind
def expression(_directory):
    run = direct("a ** 2 + b")
    run.args.a, run.args.b = 3, 1
    return run()


@kind
def lambda_(_directory):
    run = direct("lambda a, b: a - b")
    run.args.a, run.args.b = 9, 4
    return run()


@kind
def celltypes(_directory):
    found = {}
    for celltype, value in CELLTYPES.items():
        sent = Buffer(value, celltype)
        run = delayed(identity)
        run.celltypes.a = celltype
        run.celltypes.result = celltype
        transformation = run(value)
        transformation.compute()
        same = transformation.exception is None
        same = same and transformation.result_checksum == sent.get_checksum()
        found[celltype] = same or str(transformation.exception)
    return found


@kind
def ipython_celltype(_directory):
    sent = Buffer("%timeit -n 1 pass\nx = !ls\n", "ipython")
    run = delayed(identity)
    run.celltypes.a = "ipython"
    run.celltypes.result = "ipython"
    transformation = run(sent.get_value("text"))
    transformation.compute()
    return transformation.exception or transformation.result_checksum == sent.get_checksum()


@kind
def checksum_celltype(_directory):
    sent = Buffer("ab" * 32, "checksum")
    sent.incref()
    run = delayed(identity)
    run.celltypes.a = "checksum"
    run.celltypes.result = "checksum"
    transformation = run(sent.get_checksum())
    transformation.compute()
    return transformation.exception or transformation.result_checksum == sent.get_checksum()


def identity(a):
    return getattr(a, "content", a)


@kind
def several_hundred_pins(_directory):
    run = direct("sum(value for name, value in globals().items() if name.startswith('pin'))")
    for number in range(400):
        run.args[f"pin{number}"] = number
    return run()


@kind
def module_as_pin(directory):
    (directory / "mymodule.py").write_text("def triple(x):\n    return 3 * x\n")
    sys.path.insert(0, str(directory))
    import mymodule

    def use(a):
        from .mymodule import triple

        return triple(a)

    run = direct(use)
    run.modules.mymodule = mymodule
    return run(5)


@kind
def package_as_pin(directory):
    package = directory / "mypackage"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import LIMIT\n")
    (package / "inner.py").write_text("LIMIT = 77\n")
    sys.path.insert(0, str(directory))
    import mypackage

    def use(a):
        from .mypackage import LIMIT

        return LIMIT + a

    run = direct(use)
    run.modules.mypackage = mypackage
    return run(1)


@kind
def bash(_directory):
    run = direct("wc -c < infile > RESULT; cat other >> RESULT", language="bash")
    run.args.infile = "12345\n"
    run.args.other = "more"
    run.celltypes.result = "text"
    return run()


@kind
def bash_with_several_results(_directory):
    run = direct(
        "mkdir RESULT; echo one > RESULT/a.txt; mkdir RESULT/sub; echo two > RESULT/sub/b.txt",
        language="bash",
    )
    run.celltypes.result = "mixed"
    return run()


@kind
def deepcell_result_and_input(_directory):
    make = delayed(make_cells)
    make.celltypes.result = "deepcell"
    cells = make(LEAVES)
    cells.compute()

    def use(cells, last):
        return [len(cells), sum(cells[str(number)].resolve("mixed") for number in (0, 10, last))]

    run = direct(use)
    run.celltypes.cells = "deepcell"
    return run(cells.result_checksum, LEAVES - 1)


def make_cells(n):
    return {str(number): number for number in range(n)}


@kind
def folder_input(_directory):
    structure = made_folder().resolve("plain")
    uploaded = Buffer(b"from the client")
    uploaded.incref()
    sent = Buffer({**structure, "more.txt": uploaded.get_checksum().hex()}, "plain")
    sent.incref()

    def use(folder):
        return [len(folder), folder["x/7"].decode(), folder["more.txt"].decode()]

    run = direct(use)
    run.celltypes.folder = "folder"
    return run(sent.get_checksum())


@functools.cache
def made_folder():
    """Return the checksum of what a job has made, the first time.

    The client of today promises the store a result that it finds in its own cache, and can then
    wait for ever to upload what it never had.
    """
    run = delayed(
        f"mkdir -p RESULT/x; for i in $(seq {LEAVES}); do echo leaf $i > RESULT/x/$i; done",
        language="bash",
    )
    run.celltypes.result = "folder"
    made = run()
    made.compute()
    return made.result_checksum


@kind
def folder_result_and_deepfolder_input(_directory):
    def use(folder, last):
        return [len(folder), bytes(folder[last].resolve().content).decode()]

    run = direct(use)
    run.celltypes.folder = "deepfolder"
    return run(made_folder(), f"x/{LEAVES}")


@kind
def scratch(_directory):
    run = delayed(identity)
    run.scratch = True
    transformation = run("not stored")
    transformation.compute()
    return (
        transformation.result_checksum.hex() == Buffer("not stored", "mixed").get_checksum().hex()
    )


@kind
def driver(_directory):
    def use(a):
        from seamless_transformer.run import is_driver_context

        return [a, is_driver_context()]

    run = direct(use)
    run.driver = True
    return run(1)


@kind
def local(_directory):
    def use(a):
        import os

        return os.getpid()

    run = direct(use)
    run.local = True
    return run(1) == os.getpid()


@kind
def write_remote_job(directory):
    run = delayed("cat infile > RESULT", language="bash")
    # A run for another directory may still be under way, and would be joined.
    run.args.infile = f"content for {directory}\n"
    target = directory / "written"
    run.meta = {**run.meta, "write_remote_job": str(target)}
    transformation = run()
    transformation.compute()
    # It comes as an exception that says where it was written.
    if "RemoteJobWritten" not in str(transformation.exception):
        raise RuntimeError(transformation.exception)
    return sorted(path.name for path in target.iterdir())


@kind
def allow_input_fingertip(_directory):
    make = delayed(slow_made)
    make.scratch = True
    made = make(12)
    made.compute()
    checksum = made.result_checksum
    run = delayed(identity)
    run.allow_input_fingertip = True
    return run(checksum).run()


def slow_made(n):
    return "made " * n


@kind
def conda_environment_that_does_not_exist(_directory):
    run = delayed("echo 1 > RESULT", language="bash")
    run.celltypes.result = "text"
    run.environment.set_conda_env("no-such-environment")
    # seamless-transformer 0.6.1 does not upload the description of an environment by itself.
    Buffer(run.environment._to_lowlevel(), "plain").incref()
    transformation = run()
    transformation.compute()
    return transformation.exception


@kind
def none_as_result(_directory):
    transformation = delayed(nothing)(1)
    transformation.compute()
    return transformation.exception


def nothing(a):
    return None


@kind
def empty_buffer(_directory):
    def use(a):
        return b""

    run = delayed(use)
    run.celltypes.result = "bytes"
    transformation = run(1)
    transformation.compute()
    return transformation.result_checksum.hex() == hashlib.sha256(b"").hexdigest()


COMPILED_SCHEMA = """
inputs:
  - name: a
    dtype: int32
  - name: b
    dtype: int32
outputs:
  - name: result
    dtype: int32
"""


@kind
def compiled(_directory):
    return hundredfold(3, 4)


def hundredfold(a, b):
    from seamless_transformer import DirectCompiledTransformer

    run = DirectCompiledTransformer("c")
    run.schema = COMPILED_SCHEMA
    run.code = textwrap.dedent(
        """
        #include <stdint.h>
        int transform(int32_t a, int32_t b, int32_t *result) { *result = 100 * a + b; return 0; }
        """
    )
    return int(run(a=a, b=b))


@kind
def compiled_metadata(_directory):
    answers = []
    real = JobserverClient.run_transformation

    async def noting(*arguments, **named):
        answers.append(await real(*arguments, **named))
        return answers[-1]

    JobserverClient.run_transformation = noting
    hundredfold(5, 6)
    runtime = answers[0]["record_runtime"]
    return [len(runtime["compiled_module_digest"]), runtime["compilation_time_seconds"] > 0]


@kind
def compiled_with_extra_object(_directory):
    from seamless_transformer import CompiledObject, DirectCompiledTransformer

    run = DirectCompiledTransformer("c")
    run.schema = COMPILED_SCHEMA
    run.code = textwrap.dedent(
        """
        #include <stdint.h>
        int32_t weigh(int32_t a, int32_t b);
        int transform(int32_t a, int32_t b, int32_t *result) { *result = weigh(a, b); return 0; }
        """
    )
    extra = CompiledObject(language="c")
    extra.code = "#include <stdint.h>\nint32_t weigh(int32_t a, int32_t b) { return 7 * a - b; }\n"
    run.objects.append(extra)
    return int(run(a=3, b=4))


def main():
    given = json.loads(sys.argv[1])
    seamless.config.set_remote_clients(given["parameters"])
    jobserver_remote.define_extern_client("js", "jobserver", url=given["jobserver"])
    jobserver_remote.activate(no_main=True, extern_clients=["js"])
    select_execution("remote")
    select_remote("jobserver")
    # seamless-remote 0.4.0 waits for itself when it flushes on a running loop before its client
    # of the store was used there, which a client that was launched never does.
    asyncio.run(buffer_remote.get_buffer_lengths([Checksum("00" * 32)]))
    thread, flush = ThreadPoolExecutor(1), buffer_writer.flush
    buffer_writer.flush = lambda *args, **named: thread.submit(flush, *args, **named).result()
    for name in sys.argv[2:]:
        faulthandler.dump_traceback_later(given["patience"], exit=True)
        directory = Path(given["directory"]) / name
        directory.mkdir()
        try:
            outcome = {"value": KINDS[name](directory)}
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this kind's outcome
            traceback.print_exc()
            outcome = {"error": f"{type(error).__name__}: {error}"}
        print("OUTCOME", name, json.dumps(outcome, default=str), flush=True)
    # Not through seamless.close(): all that there is to say has been said.
    os._exit(0)


if __name__ == "__main__":
    main()
