"""A stand-in for the ``frozendict`` package: an immutable, hashable dict."""

from typing import Any, NoReturn, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class frozendict(dict[Key, Value]):  # noqa: N801 - the name of the class that it stands in for
    """A dict that cannot change, equal to a dict of the same items, and hashable as a cache key.

    Its values must be hashable for that, as with the package of this name.
    """

    __slots__ = ()

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def _refuse(self, *_arguments: Any, **_named: Any) -> NoReturn:
        raise TypeError("a frozendict cannot be changed")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse
