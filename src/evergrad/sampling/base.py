"""The seams between history, samplers and trainer, and the little that all samplers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from evergrad.config import require_kind

Ids: TypeAlias = npt.NDArray[np.int64]
LONGEST_US = 2.0**62  # no time lies further back, and differences stay within int64


class Examples(Protocol):
    """What a sampler sees of a history: examples numbered in order of arrival, of which the oldest may be gone."""

    @property
    def first(self) -> int:
        """The id of the oldest example that is still held."""
        ...

    def gather(self, ids: Ids, columns: Sequence[str] | None = None) -> Mapping[str, Any]:
        """The named columns (None: all) of the given examples, in the order of `ids`."""
        ...

    def since(self, arrived_us: int) -> int:
        """The lowest id that arrived at or after a time, microseconds since 1970."""
        ...

    def arrived_us(self, ids: Ids) -> Ids:
        """When each of the given examples arrived, microseconds since 1970: int64 [ids]."""
        ...


class Sampler(Protocol):
    """Draws historical examples. One sampler draws from one history, whose `first` never falls, nor does `before`."""

    def draw(self, examples: Examples, before: int, count: int) -> Ids:
        """Draws up to `count` different ids in [examples.first, before): int64 [drawn]; fewer only where it must."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that the next draws depend on beside the history: plain JSON values and numpy arrays, all copies."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on exactly where the sampler was, one made with the same arguments, that gave `state`.

        Raises:
            ConfigError: it is the state of another kind of sampler, or of one of another capacity.
        """
        ...


@runtime_checkable
class Feedback(Protocol):
    """What a sampler has beside the above if it learns from the batches that were trained on."""

    def learned(self, ids: Ids, losses: npt.NDArray[np.float64]) -> None:
        """Tells the examples of a training batch, new and old, and the loss of each before the step."""
        ...


def choose(rng: np.random.Generator, low: int, high: int, count: int) -> Ids:
    """Up to `count` different numbers in [low, high), uniform, in no meaningful order; O(count)."""
    available = max(0, high - low)
    # Floyd's algorithm inside: the cost follows `count`, not the length of the history.
    return rng.choice(available, size=min(count, available), replace=False, shuffle=False) + low


def first_of_each(ids: Ids) -> Ids:
    """Without its repeats, in the order of the first appearances."""
    return ids[np.sort(np.unique(ids, return_index=True)[1])]


def save(kind: str, rng: np.random.Generator) -> dict[str, Any]:
    """The state of a sampler that has a random state and nothing beside."""
    return {"kind": kind, "rng": rng.bit_generator.state}


def restore(kind: str, rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Takes back what `save` gave."""
    require_kind(state, kind, "sampler")
    rng.bit_generator.state = state["rng"]
