"""A real jobserver with other constants than its own, where waiting for those would take too long.

Python imports ``sitecustomize`` from the ``PYTHONPATH`` when it starts, and so do the server and its
workers. Ours sets names in modules of the jobserver as soon as they have been imported.
"""

from pathlib import Path
from typing import Any

_SITECUSTOMIZE = """
from importlib.machinery import PathFinder
import sys

CONSTANTS = {constants!r}


class Setting(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in CONSTANTS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            for constant, value in CONSTANTS[name].items():
                getattr(module, constant)  # or it is misspelled here
                setattr(module, constant, value)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Setting)
"""


def constants(directory: Path, values: dict[str, Any]) -> dict[str, str]:
    """Return the environment in which names like ``server.connection.IDLE_LIMIT`` have `values`."""
    modules: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        module, _, constant = f"seamless_jobserver.{name}".rpartition(".")
        modules.setdefault(module, {})[constant] = value
    place = directory / "constants"
    place.mkdir()
    (place / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(constants=modules))
    return {"PYTHONPATH": str(place)}
