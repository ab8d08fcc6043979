"""What a person would call a job: its function's name, or the first telling line of its script."""

import re
from typing import Any, Final

from seamless import Checksum
from seamless.caching.buffer_cache import get_buffer_cache

_READ: Final = 4096
"""Bytes of code that are looked at: a name stands at the beginning, or nowhere."""
_LONGEST: Final = 80
_FUNCTION: Final = re.compile(r"^(?:async\s+)?def\s+([^\W\d]\w*)", re.MULTILINE)
_NOTHING_SAID: Final = ("#", "//", "/*", "*", '"""', "'''", "set -", "import ", "from ")
"""How lines begin that say nothing about what the code is for."""


def name_of(transformation: dict[str, Any]) -> str:
    """Return a name for a transformation whose code is held in this process; empty without one."""
    code = transformation.get("code")
    if not code:
        return ""
    buffer = get_buffer_cache().get(Checksum(code[2]))
    if buffer is None:
        return ""
    text = bytes(memoryview(buffer.content)[:_READ]).decode("utf-8", errors="ignore")
    return name_of_code(text, str(transformation.get("__language__", "python")))


def name_of_code(text: str, language: str) -> str:
    """Return a name for code: that of its only function, or else its first telling line."""
    functions = _FUNCTION.findall(text) if language == "python" else []
    if len(functions) == 1:
        return str(functions[0])
    for line in text.splitlines():
        words = " ".join(line.split())
        if words and not words.startswith(_NOTHING_SAID):
            return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)[
                :_LONGEST
            ]
    return ""
