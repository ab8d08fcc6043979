"""State machines whose legal moves are a table. Pure."""

import enum
from collections.abc import Mapping
from typing import TypeVar

State = TypeVar("State", bound=enum.Enum)
Event = TypeVar("Event", bound=enum.Enum)


class IllegalMove(Exception):
    """An event that cannot happen to a thing in its state; the state is unchanged."""


def move(
    transitions: Mapping[tuple[State, Event], State], state: State, event: Event, what: str
) -> State:
    """Return the state that follows when `event` happens to `what`, which is in `state`.

    Raises `IllegalMove`.
    """
    following = transitions.get((state, event))
    if following is None:
        raise IllegalMove(f"{what} is {state.value}: it cannot {event.value}")
    return following
