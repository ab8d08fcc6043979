"""Reading a run request: bytes in, `RunRequest` out, or an error that names the field.

protocol.md, "Request body of a run". Checked here is everything that would otherwise surface as a
strange failure in a worker; what only Seamless can judge (does this celltype exist, does this code
compile) is left to it.
"""

import json
import re
from typing import Any, Final, NoReturn

from seamless_jobserver.errors import InvalidJSON, InvalidPayload, shorten
from seamless_jobserver.messages import RunRequest

_CHECKSUM: Final = re.compile(r"[0-9a-fA-F]{64}\Z")
_CHECKSUM_KEYS: Final = ("__env__", "__schema__", "__header__", "__compilation__")
_OBJECT_KEYS: Final = ("__as__", "__format__", "__meta__")
_TEXT_KEYS: Final = ("__language__", "__code_checksum__", "__code_text__")
_MAX_DEPTH: Final = 100
"""Levels of arrays and objects in a request. Seamless's own have five; what is passed on to a
worker is pickled, which at some hundreds would end in an error that nobody could make sense of."""
_MOST_VALUES: Final = 1_000_000


def parse_checksum(text: str) -> str | None:
    """Return `text` in lower case when it is 64 hexadecimal digits, else None."""
    return text.lower() if _CHECKSUM.match(text) else None


def parse_run_request(body: bytes) -> RunRequest:
    """Return the request in `body`. Raises `InvalidJSON` or `InvalidPayload`."""
    payload = _load(body)
    if not isinstance(payload, dict):
        raise InvalidPayload("body", f"expected an object, got {_name(payload)}")
    transformation = _field(payload, "transformation_dict", dict)
    checksum = parse_checksum(_field(payload, "tf_checksum", str))
    if checksum is None:
        raise InvalidPayload("tf_checksum", _not_a_checksum(payload["tf_checksum"]))
    dunder = _field(payload, "tf_dunder", dict, {})
    _check_transformation(transformation)
    _check_dunder_keys("tf_dunder", dunder)
    return RunRequest(
        checksum=checksum,
        transformation=transformation,
        dunder=dunder,
        scratch=_field(payload, "scratch", bool, False),
        strict_dunder=_field(payload, "strict_dunder", bool, False),
        record=_field(payload, "record", bool, False),
    )


def _load(body: bytes) -> Any:
    # Tens of millions of empty lists fit into a body. Parsing them would hold the interpreter, and
    # with it every other caller, for seconds. Counting takes a hundredth of that.
    if len(body) > _MOST_VALUES and sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise InvalidJSON(f"it has over {_MOST_VALUES:,} values")
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise InvalidJSON("it is nested too deeply") from None
    except ValueError as error:
        raise InvalidJSON(shorten(str(error), 200)) from None
    if _is_deeper(value, _MAX_DEPTH):
        raise InvalidJSON(f"it is nested over {_MAX_DEPTH} levels deep")
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
        if not level:
            return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _field(payload: dict[str, Any], name: str, kind: type, default: Any = ...) -> Any:
    value = payload.get(name)
    if value is None:
        # Python callers send null for what they leave open.
        if default is ...:
            raise InvalidPayload(name, "it is missing")
        return default
    if not isinstance(value, kind):
        raise InvalidPayload(name, f"expected {_KIND_NAMES[kind]}, got {_name(value)}")
    return value


def _check_transformation(transformation: dict[str, Any]) -> None:
    where = "transformation_dict"
    _check_dunder_keys(where, transformation)
    output = transformation.get("__output__")
    if not isinstance(output, list) or len(output) != 3:
        raise InvalidPayload(f"{where}.__output__", "expected [name, celltype, subcelltype]")
    for part, value in zip(("name", "celltype"), output[:2], strict=True):
        if not isinstance(value, str) or not value:
            raise InvalidPayload(f"{where}.__output__", f"its {part} is not a string")
    if not isinstance(output[2], str | None):
        raise InvalidPayload(f"{where}.__output__", "its subcelltype is neither string nor null")
    if "code" not in transformation:
        raise InvalidPayload(f"{where}.code", "it is missing")
    code = transformation["code"]
    if isinstance(code, list) and len(code) == 3 and code[2] is None:
        raise InvalidPayload(f"{where}.code", "it has no checksum")
    for name, pin in transformation.items():
        if not name.startswith("__"):
            _check_pin(f"{where}.{shorten(name)}", pin)


def _check_pin(where: str, pin: Any) -> None:
    if not isinstance(pin, list) or len(pin) != 3:
        raise InvalidPayload(where, f"expected [celltype, subcelltype, checksum], got {_name(pin)}")
    celltype, subcelltype, checksum = pin
    if not isinstance(celltype, str | None):
        raise InvalidPayload(where, f"its celltype is {_name(celltype)}, not a string")
    if not isinstance(subcelltype, str | None):
        raise InvalidPayload(where, f"its subcelltype is {_name(subcelltype)}, not a string")
    if checksum is not None and not _is_checksum(checksum):
        raise InvalidPayload(where, _not_a_checksum(checksum))


def _check_dunder_keys(where: str, values: dict[str, Any]) -> None:
    """Check the keys that Seamless gives a meaning to; newer clients may add others."""
    for key in _CHECKSUM_KEYS:
        if values.get(key) is not None and not _is_checksum(values[key]):
            raise InvalidPayload(f"{where}.{key}", _not_a_checksum(values[key]))
    for key in _OBJECT_KEYS:
        if values.get(key) is not None and not isinstance(values[key], dict):
            raise InvalidPayload(f"{where}.{key}", f"expected an object, got {_name(values[key])}")
    for pin, name in (values.get("__as__") or {}).items():
        if not isinstance(name, str):
            at = f"{where}.__as__.{shorten(pin)}"
            raise InvalidPayload(at, f"expected a string, got {_name(name)}")
    for pin, form in (values.get("__format__") or {}).items():
        filesystem = form.get("filesystem") if isinstance(form, dict) else None
        if not isinstance(form, dict | None) or not isinstance(filesystem, dict | None):
            raise InvalidPayload(
                f"{where}.__format__.{shorten(pin)}", "it and its filesystem have to be objects"
            )
    for key in _TEXT_KEYS:
        if values.get(key) is not None and not isinstance(values[key], str):
            raise InvalidPayload(f"{where}.{key}", f"expected a string, got {_name(values[key])}")
    code = values.get("__code_checksum__")
    if code is not None and not _is_checksum(code):
        raise InvalidPayload(f"{where}.__code_checksum__", _not_a_checksum(code))


def _is_checksum(value: Any) -> bool:
    return isinstance(value, str) and parse_checksum(value) is not None


def _not_a_checksum(value: Any) -> str:
    got = repr(shorten(value)) if isinstance(value, str) else _name(value)
    return f"expected 64 hexadecimal digits, got {got}"


_KIND_NAMES: Final = {dict: "an object", str: "a string", bool: "true or false"}


def _name(value: Any) -> str:
    """Return what JSON calls the type of `value`."""
    if value is None:
        return "null"
    for kind, name in ((bool, "a boolean"), (str, "a string"), (dict, "an object")):
        if isinstance(value, kind):
            return name
    return "an array" if isinstance(value, list) else "a number"
