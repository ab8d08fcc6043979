"""Which buffers a transformation needs before it can run. Pure: names and checksums only.

A transformation dict holds pins, ``[celltype, subcelltype, checksum]``, and Seamless's own keys,
which start with two underscores. Some of those are checksums too and may stand in the dict or in
its envelope (the *dunder* of a run request).
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

_CHECKSUM_KEYS: Final = ("__env__", "__schema__", "__header__", "__compilation__")


class Need(NamedTuple):
    """A buffer that a transformation asks for: the pin or key that does, its type, its checksum.

    `optional` buffers may be missing: Seamless has another way to come by what they hold. Of those
    whose `celltype` is ``folder`` the job gets the contents, too.
    """

    name: str
    celltype: str
    checksum: str
    optional: bool = False


def needs(
    transformation: dict[str, Any],
    dunder: dict[str, Any],
    has_path: Callable[[str, str], bool] = lambda _checksum, _mode: False,
) -> Iterator[Need]:
    """Yield what has to be fetched for `transformation` with its envelope `dunder`.

    Left out are pins that a job gets as a path in a read folder: loading those is what their users
    want to avoid. ``__format__`` says for which ones that is wanted, and `has_path` whether a read
    folder has a ``file`` or ``directory`` with a checksum; without it a job gets the contents, or
    nothing, where only a file will do. (The files of a directory of ``seamless-run``, which can be
    larger than any memory, Seamless fetches and writes one by one.)

    The transformation's own buffer is not needed at all, since the dict came with the request, and
    must not be fetched: clients can lose it while its promise stays, and the store then waits ten
    minutes for it (protocol.md).
    """
    fingertip = _allows_fingertip(transformation, dunder)
    for name, value in transformation.items():
        if name.startswith("__") or value[2] is None:
            continue
        celltype, checksum, optional = value[0], value[2], fingertip
        filesystem = _form(transformation, name).get("filesystem")
        if isinstance(filesystem, dict) and (mode := filesystem.get("mode")):
            only_path = mode == "file" and not filesystem.get("optional")
            if only_path or has_path(str(checksum).lower(), mode):
                continue
        if name == "code" and transformation.get("__language__", "python") == "python":
            # What runs is the text as it was written. The pin names its syntax tree, which two
            # texts that differ in a comment share.
            checksum = transformation.get("__code_checksum__") or checksum
            optional = optional or transformation.get("__code_text__") is not None
        yield Need(name, celltype, str(checksum).lower(), optional)
    for key in _CHECKSUM_KEYS:
        checksum = transformation.get(key) or dunder.get(key)
        if isinstance(checksum, str):
            yield Need(key, "plain", checksum.lower())


def leaves(structure: Any) -> Iterator[str]:
    """Yield the checksums in a deep structure: nested dicts and lists with hex strings."""
    pending = [structure]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, str):
            yield value


def pins_with(checksum: str, transformation: dict[str, Any], dunder: dict[str, Any]) -> list[str]:
    """Return the names of the pins and keys that hold `checksum`, for a message to a person."""
    names = [
        name
        for name, value in transformation.items()
        if not name.startswith("__") and str(value[2]).lower() == checksum
    ]
    for key in (*_CHECKSUM_KEYS, "__code_checksum__"):
        if checksum in (transformation.get(key), dunder.get(key)):
            names.append(key)
    return names


def _allows_fingertip(transformation: dict[str, Any], dunder: dict[str, Any]) -> bool:
    """Whether a missing input may be computed anew (``__meta__.allow_input_fingertip``)."""
    merged: dict[str, Any] = {}
    for source in (transformation, dunder):
        meta = source.get("__meta__")
        if isinstance(meta, dict):
            merged.update(meta)
    return bool(merged.get("allow_input_fingertip"))


def _form(transformation: dict[str, Any], pin: str) -> dict[str, Any]:
    formats = transformation.get("__format__")
    form = formats.get(pin) if isinstance(formats, dict) else None
    return form if isinstance(form, dict) else {}
