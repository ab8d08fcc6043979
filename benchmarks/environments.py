"""The two virtual environments: upstream's jobserver with what it needs, and ours.

The benchmarks themselves, the store and the database run in ours; the floor, which uses nothing of
ours, in upstream's.
"""

import subprocess
import sys
import venv
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
# What it imports and does not declare comes along.
_UPSTREAM: Final = (
    "seamless-jobserver==0.3.0",
    "seamless-transformer",
    "seamless-remote",
    "seamless-config",
    "numpy",
)
_OURS: Final = (f"{ROOT}[bench]",)


def make_upstream(cache: Path) -> Path:
    """Return the folder of an environment with upstream's jobserver, made when it is not there."""
    return _make(cache / "upstream", _UPSTREAM)


def make_ours(cache: Path) -> Path:
    """Return the folder of an environment with this jobserver, as it is now.

    Installed as a user would, not in editable mode: that compiles it, as upstream's is.
    """
    folder = _make(cache / "ours", _OURS)
    _install(folder, "--no-deps", "--force-reinstall", str(ROOT))
    return folder


def packages(folder: Path) -> dict[str, str]:
    """Return the versions of Seamless's packages, and of what they use for HTTP, in a folder."""
    places = [str(place) for place in folder.glob("lib/python*/site-packages")]
    return {
        found.name: found.version
        for found in sorted(distributions(path=places), key=lambda found: found.name)
        if found.name.startswith("seamless") or found.name in ("aiohttp", "hashserver", "numpy")
    }


def _make(folder: Path, packages: tuple[str, ...]) -> Path:
    complete = folder / "complete"
    if not complete.exists():
        print(f"making {folder} …", file=sys.stderr, flush=True)
        venv.create(folder, clear=True, with_pip=True)
        _install(folder, *packages)
        complete.touch()
    return folder


def _install(folder: Path, *arguments: str) -> None:
    pip = folder / "bin" / "pip"
    subprocess.run([pip, "install", "--quiet", *arguments], check=True, timeout=1800)
