"""A bounded, uniform memory of all examples so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evergrad.errors import ConfigError
from evergrad.sampling.base import Examples, Ids, choose, first_of_each, restore, save

_CHUNK = 1 << 16


@dataclass
class Reservoir:
    """Draws from a reservoir of `capacity` examples, which is at any time a uniform sample of all that are held.

    The reservoir is Vitter's (1985, Algorithm R): the n-th example takes a random place with probability capacity / n.
    One draw after the other sees mostly the same few examples, which therefore stay in memory. Where retention removes
    some, their places go to examples drawn uniformly from the rest of the history. A draw is uniform over the
    reservoir, without replacement, so it never has more than `capacity`.

    Args:
        capacity: how many examples it holds.
        seed: equal seeds draw equal examples.
    """

    capacity: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ConfigError("sampler.capacity", f"must be 1 or more, not {self.capacity}")
        self._rng = np.random.default_rng(self.seed)
        self._ids: Ids = np.empty(0, dtype=np.int64)
        self._first = self._end = 0  # it is a sample of this range

    def draw(self, examples: Examples, before: int, count: int) -> Ids:
        self._retire(examples.first)
        while self._end < before:
            self._take_in(min(before, self._end + _CHUNK))
        return self._ids[choose(self._rng, 0, len(self._ids), count)]

    def state_dict(self) -> dict[str, Any]:
        mine = {"capacity": self.capacity, "ids": self._ids.copy(), "first": self._first, "end": self._end}
        return save("reservoir", self._rng) | mine

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restore("reservoir", self._rng, state)
        if state["capacity"] != self.capacity:
            problem = f"is {self.capacity}, and {state['capacity']} in the saved state; resume with the same"
            raise ConfigError("sampler.capacity", problem)
        self._ids = np.array(state["ids"], dtype=np.int64)
        self._first, self._end = int(state["first"]), int(state["end"])

    def _take_in(self, end: int) -> None:
        room = self.capacity - len(self._ids)
        if room:
            end = min(end, self._end + room)
            self._ids = np.concatenate((self._ids, np.arange(self._end, end)))
        else:
            new = np.arange(self._end, end)
            places = self._rng.integers(0, new - self._first + 1)
            taken = places < self.capacity
            self._ids[places[taken]] = new[taken]  # in order: of two that take one place, the later one stays
        self._end = end

    def _retire(self, first: int) -> None:
        if first <= self._first:
            return
        self._ids = self._ids[self._ids >= first]
        self._first, self._end = first, max(first, self._end)
        held = self._end - first
        missing = min(self.capacity, held) - len(self._ids)
        if held <= 4 * self.capacity:  # else a number drawn at random is mostly not in it yet
            others = np.setdiff1d(np.arange(first, self._end), self._ids, assume_unique=True)
            self._ids = np.concatenate((self._ids, others[choose(self._rng, 0, len(others), missing)]))
            return
        target = len(self._ids) + missing
        while len(self._ids) < target:
            more = self._rng.integers(first, self._end, size=2 * (target - len(self._ids)))
            self._ids = first_of_each(np.concatenate((self._ids, more)))[:target]
