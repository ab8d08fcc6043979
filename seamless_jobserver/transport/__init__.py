"""seamless-remote on the standard library: stand-ins for aiohttp, aiofiles and frozendict.

seamless-core and seamless-transformer reach for seamless-remote in many places, and seamless-remote
imports three packages that locked-down clusters do not have. `import_seamless_remote` imports it
once, with our stand-ins under those three names, and takes the names away again: seamless-remote
keeps the modules that it was given, while a job that says ``import aiohttp`` finds the real
package where it is installed, and gets an ordinary ImportError where it is not.

The stand-ins are used whether or not the real packages are there, so that one path is tested.
They cover what seamless-remote 0.4 uses, and `tests.test_transport` runs one suite over them and
over real aiohttp. Left out, because nothing here asks for it: redirects, cookies, proxies,
streaming. ``aiohttp_standin`` stands on ``connector``, ``connection``, ``request`` and
``exceptions``; ``aiofiles_standin`` and ``frozendict_standin`` stand alone.
"""

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Final

from seamless_jobserver.transport import aiofiles_standin, aiohttp_standin, frozendict_standin

STAND_INS: Final[dict[str, ModuleType]] = {
    "aiohttp": aiohttp_standin,
    "aiofiles": aiofiles_standin,
    "aiofiles.os": aiofiles_standin.os,
    "frozendict": frozendict_standin,
}
"""What an import finds under each name while seamless-remote is imported."""

_MODULES: Final = (
    "seamless_remote.client",
    "seamless_remote.buffer_client",
    "seamless_remote.buffer_remote",
    "seamless_remote.database_client",
    "seamless_remote.database_remote",
    "seamless_remote.jobserver_client",
    "seamless_remote.jobserver_remote",
    "seamless_remote.daskserver_remote",
)
"""All of them at once: one that is first imported later would look for the real packages."""

_lock = threading.Lock()


def import_seamless_remote() -> None:
    """Import all of seamless-remote on top of the stand-ins. Further calls do nothing.

    Raises ImportError when seamless-remote itself, or what it needs of Seamless, is missing, and
    RuntimeError when seamless-remote was imported before: it would have the real packages, and
    the confirmation of writes (`aiohttp_standin.observe_answers`) would see nothing.
    """
    with _lock:
        client = sys.modules.get("seamless_remote.client")
        if client is None:
            with _stand_ins_in_place():
                for name in _MODULES:
                    importlib.import_module(name)
        elif client.aiohttp is not aiohttp_standin:
            raise RuntimeError(
                "seamless_remote was imported before the jobserver's transport; "
                "import seamless_jobserver.transport first"
            )


@contextmanager
def _stand_ins_in_place() -> Iterator[None]:
    # Submodules too: a real aiofiles.os under our aiofiles would be found by a plain import.
    roots = {name.partition(".")[0] for name in STAND_INS}
    hidden = {
        name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in roots
    }
    sys.modules.update(STAND_INS)
    try:
        yield
    finally:
        for name in STAND_INS:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)
