"""The architecture, as imports: they go down only, and the server side is free of Seamless."""

import ast
import configparser
import re
import subprocess
import sys
import unittest
from importlib import metadata

from seamless_jobserver.server import lifecycle
from seamless_jobserver.transport import STAND_INS
from tests.stack import ROOT

PACKAGE = ROOT / "seamless_jobserver"
SEAMLESS = {"seamless", "seamless_transformer", "seamless_remote", "seamless_config"}
LEAVES = {
    "messages",
    "errors",
    "http1",
    "options",
    "passwordfile",
    "peer",
    "processtree",
    "progress",
    "spool",
    "__init__",
}
ALLOWED = {
    "__main__": {"cli"},
    "cli": {"server", "worker", "upload", "check", "top"} | LEAVES,
    "asking": LEAVES,
    "check": {"asking", "display"},
    "top": {"asking", "display"},
    "display": set(),
    "upload": {"asking", "display"} | LEAVES,
    "server": {"server", "receipts"} | LEAVES,
    "worker": {"worker", "transport", "receipts"} | LEAVES,
    "receipts": {"messages"},
    "transport": {"transport"} | LEAVES,
    **{leaf: set() for leaf in LEAVES},
}


def imports(path):
    """Yield the dotted name of every module that the file at `path` imports, also in functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = (ROOT / name.replace(".", "/")).with_suffix(".py").exists()
                yield name if is_module else node.module


def room(parts):
    return parts[0].removesuffix(".py") if parts else "__init__"


class Imports(unittest.TestCase):
    def test_imports_go_down_only(self):
        for path in PACKAGE.rglob("*.py"):
            here = room(path.relative_to(PACKAGE).parts)
            for name in imports(path):
                parts = name.split(".")
                if parts[0] == "seamless_jobserver":
                    there = room(parts[1:])
                    self.assertIn(there, ALLOWED[here] | {"__init__"}, f"{path} imports {name}")

    def test_nothing_but_the_standard_library_and_seamless_is_imported(self):
        for path in PACKAGE.rglob("*.py"):
            for name in imports(path):
                top = name.partition(".")[0]
                if top != "seamless_jobserver" and top not in SEAMLESS:
                    self.assertIn(top, sys.stdlib_module_names, f"{path} imports {name}")

    def test_only_workers_and_their_transport_import_seamless(self):
        for path in PACKAGE.rglob("*.py"):
            if room(path.relative_to(PACKAGE).parts) not in ("worker", "transport"):
                for name in imports(path):
                    self.assertNotIn(name.partition(".")[0], SEAMLESS, f"{path} imports {name}")

    def test_the_server_process_loads_neither_seamless_nor_numpy(self):
        code = (
            "import sys, seamless_jobserver.cli, seamless_jobserver.server.lifecycle\n"
            "import seamless_jobserver.worker.entry\n"
            f"loaded = {SEAMLESS | {'numpy'}!r} & set(sys.modules)\n"
            "assert not loaded, loaded\n"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)

    def test_a_spawned_worker_that_imports_the_command_again_loads_next_to_nothing(self):
        code = (
            "import sys, seamless_jobserver.cli\n"
            "loaded = {'asyncio', 'http.server', 'logging'} & set(sys.modules)\n"
            "assert not loaded, loaded\n"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


class Requirements(unittest.TestCase):
    """What pip is told that the package needs."""

    def test_it_requires_the_four_seamless_packages_and_nothing_else(self):
        setup = configparser.ConfigParser(interpolation=None)
        setup.read(ROOT / "setup.cfg")
        required = setup["options"]["install_requires"].split()
        four = ["seamless-core", "seamless-transformer", "seamless-remote", "seamless-config"]
        self.assertEqual(sorted(required), sorted(four))
        # The server looks for these before it listens.
        self.assertEqual(set(lifecycle._PACKAGES), SEAMLESS)
        self.assertEqual(sorted(lifecycle._PACKAGES.values()), sorted(four))

    def test_the_locked_down_list_is_what_these_need_without_what_there_are_stand_ins_for(self):
        lines = (ROOT / "locked-down.txt").read_text().splitlines()
        listed = {normalized(line) for line in lines if line and not line.startswith("#")}
        left_out = {normalized(name) for name in STAND_INS if "." not in name}
        needed, pending = set(), list(lifecycle._PACKAGES.values())
        while pending:
            name = normalized(pending.pop())
            if name not in needed | left_out:
                needed.add(name)
                # Those with a marker are for other systems, or for extras.
                pending += [one for one in metadata.requires(name) or () if ";" not in one]
        self.assertEqual(listed, needed)


def normalized(requirement):
    """Return the name in a requirement, as indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()
