"""Which buffers a transformation needs before it can run. Pure: names and checksums only.

A transformation dict holds pins, ``[celltype, subcelltype, checksum]``, and Seamless's own keys,
which start with two underscores. Some of those are checksums too and may stand in the dict or in
its envelope (the *dunder* of a run request).
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

_CHECKSUM_KEYS: Final = ("__env__", "__schema__", "__header__", "__compilation__")


class Need(NamedTuple):
    """A buffer that a transformation asks for: the pin or key that does, its type, its checksum.

    `optional` buffers may be missing: Seamless has another way to come by what they hold.
    """

    name: str
    celltype: str
    checksum: str
    optional: bool = False


def needs(transformation: dict[str, Any], dunder: dict[str, Any]) -> Iterator[Need]:
    """Yield what has to be fetched for `transformation` with its envelope `dunder`.

    Left out are pins that a job reads by path from a read folder (``__format__`` says so): loading
    those is what their users want to avoid. The transformation's own buffer is not needed at all,
    since the dict came with the request, and must not be fetched: clients can lose it while its
    promise stays, and the store then waits ten minutes for it (protocol.md).
    """
    fingertip = _allows_fingertip(transformation, dunder)
    by_path = set(_pins_by_path(transformation))
    for name, value in transformation.items():
        if name.startswith("__") or name in by_path or value[2] is None:
            continue
        celltype, checksum, optional = value[0], value[2], fingertip
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


def _pins_by_path(transformation: dict[str, Any]) -> Iterator[str]:
    formats = transformation.get("__format__")
    if isinstance(formats, dict):
        for name, form in formats.items():
            filesystem = form.get("filesystem") if isinstance(form, dict) else None
            if isinstance(filesystem, dict) and filesystem.get("mode"):
                yield name
