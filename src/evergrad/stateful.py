"""What a checkpoint asks of everything that remembers: the two methods that the field has for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Stateful(Protocol):
    """Something whose later behaviour follows from what it has seen.

    A state is made of None, booleans, numbers, texts, bytes, arrays, tensors, and lists, tuples and dictionaries of
    those. What `load_state_dict` was given behaves from then on as the one that gave it.
    """

    def state_dict(self) -> dict[str, Any]:
        """Its state; may share memory with it."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Goes on from there."""
        ...


def states_of(parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """The state of each part, by name."""
    return {name: part.state_dict() for name, part in parts.items()}


def load_all(parts: Mapping[str, Stateful], states: Mapping[str, Any]) -> None:
    """Gives each part its state, by name."""
    for name, part in parts.items():
        part.load_state_dict(states[name])
