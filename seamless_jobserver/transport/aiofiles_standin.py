"""A stand-in for the part of ``aiofiles`` that seamless-remote uses: reading whole files.

Each call runs in the event loop's thread pool, as in aiofiles itself, so that a slow file system
does not hold up the loop.
"""

import asyncio
import builtins
import os as _os
from types import ModuleType, SimpleNamespace, TracebackType
from typing import IO, Any


class _File:
    """``async with open(path, "rb") as file: await file.read()``."""

    def __init__(self, path: str | _os.PathLike[str], mode: str) -> None:
        self._path = path
        self._mode = mode
        self._file: IO[Any] | None = None

    async def __aenter__(self) -> "_File":
        # Closed by __aexit__, as everywhere where a class opens what another method closes.
        self._file = await asyncio.to_thread(
            lambda: builtins.open(self._path, self._mode)  # noqa: SIM115
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            await asyncio.to_thread(self._file.close)

    async def read(self) -> Any:
        """Return the rest of the file."""
        if self._file is None:
            raise ValueError("the file is not open: use 'async with'")
        return await asyncio.to_thread(self._file.read)


def open(path: str | _os.PathLike[str], mode: str = "r") -> _File:
    """Return a file to be entered with ``async with``, which opens it."""
    return _File(path, mode)


async def _stat(path: str | _os.PathLike[str]) -> _os.stat_result:
    return await asyncio.to_thread(_os.stat, path)


async def _exists(path: str | _os.PathLike[str]) -> bool:
    return await asyncio.to_thread(_os.path.exists, path)


os = ModuleType("aiofiles.os", "The part of ``aiofiles.os`` that seamless-remote uses.")
os.stat = _stat  # type: ignore[attr-defined]
os.path = SimpleNamespace(exists=_exists, join=_os.path.join)  # type: ignore[attr-defined]
