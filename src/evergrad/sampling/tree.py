"""Weights of many examples, from which a few are drawn in proportion; nothing here says what a weight means."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.sampling.base import Ids, first_of_each

Weights = npt.NDArray[Any]
_BRANCHES = 64


class WeightTree:
    """The weights of the ids in [first, end), and their sums in blocks of 64, of 64 blocks, and so on.

    A draw of m and a change of m weights cost O(m log n). Sums are always made anew from what they sum, so they are a
    function of the weights alone and gather no rounding errors. Weights are float32, 0 or more.
    """

    def __init__(self) -> None:
        self.first = self.end = self._base = 0  # the leaf of `id` is number id - base
        self._levels = _levels(_BRANCHES)

    def begin(self, first: int) -> None:
        """Makes an empty tree's next id `first`."""
        self.first = self.end = self._base = first

    def grow(self, end: int, weight: float) -> None:
        """Gives all ids up to `end` that it does not hold yet one weight."""
        if end <= self.end:
            return
        if end - self._base > len(self._levels[0]):
            self._make_room(end)
        low, high = self.end - self._base, end - self._base
        self._levels[0][low:high] = weight
        self._sum(np.arange(low // _BRANCHES, (high - 1) // _BRANCHES + 1))
        self.end = end

    def retire(self, first: int) -> None:
        """Forgets the ids below `first`."""
        if first <= self.first:
            return
        if first >= self.end:
            self._levels = _levels(len(self._levels[0]))
            self.begin(first)
            return
        low, high = self.first - self._base, first - self._base
        self._levels[0][low:high] = 0
        self._sum(np.arange(low // _BRANCHES, (high - 1) // _BRANCHES + 1))
        self.first = first

    def get(self, ids: Ids) -> Weights:
        return self._levels[0][ids - self._base]

    def put(self, ids: Ids, weights: npt.ArrayLike) -> None:
        """Changes the weights of some ids in [first, end)."""
        self._put(ids - self._base, weights)

    def draw(self, rng: np.random.Generator, before: int, count: int) -> Ids:
        """Up to `count` ids below `before` by successive sampling: each next one in proportion to its weight.

        That is what drawing with replacement gives once repeats are left out. Those already drawn weigh nothing in the
        rounds that make up for repeats, and get their weights back at the end.
        """
        leaves, limit = self._levels[0], min(before, self.end) - self._base
        drawn, weights = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        while len(drawn) < count and (total := self._sum_to(limit)) > 0:
            missing = count - len(drawn)
            found = self._find(rng.random(max(missing, 16)) * total)
            found = first_of_each(found[(found < limit) & (leaves[found] > 0)])[:missing]
            drawn, weights = np.concatenate((drawn, found)), np.concatenate((weights, leaves[found]))
            self._put(found, 0)
        self._put(drawn, weights)
        return drawn + self._base

    def state_dict(self) -> dict[str, Any]:
        held = self._levels[0][self.first - self._base : self.end - self._base]
        return {"base": self._base, "first": self.first, "capacity": len(self._levels[0]), "weights": held.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._base, self.first = int(state["base"]), int(state["first"])
        self._levels = _levels(int(state["capacity"]))
        self.end = self.first + len(state["weights"])
        self._levels[0][self.first - self._base : self.end - self._base] = state["weights"]
        self._sum(np.arange(len(self._levels[0]) // _BRANCHES))

    def _make_room(self, end: int) -> None:
        held = self._levels[0][self.first - self._base : self.end - self._base]
        capacity = len(self._levels[0])
        while 2 * capacity < 3 * (end - self.first):  # a third stays free, so this is rare
            capacity *= 2
        self._levels, self._base = _levels(capacity), self.first
        self._levels[0][: len(held)] = held
        self._sum(np.arange(capacity // _BRANCHES))

    def _put(self, at: Ids, weights: npt.ArrayLike) -> None:
        self._levels[0][at] = weights
        self._sum(np.unique(at // _BRANCHES))

    def _sum(self, blocks: Ids) -> None:
        for below, above in pairwise(self._levels):
            above[blocks] = below.reshape(-1, _BRANCHES)[blocks].astype(np.float64).sum(axis=1)
            blocks = np.unique(blocks // _BRANCHES)

    def _sum_to(self, limit: int) -> float:
        total = 0.0
        for level in self._levels[:-1]:
            block = limit // _BRANCHES
            total += float(level[block * _BRANCHES : limit].sum(dtype=np.float64))
            limit = block
        return total + float(self._levels[-1][:limit].sum(dtype=np.float64))

    def _find(self, targets: npt.NDArray[np.float64]) -> Ids:
        """The leaf at which the sum of all leaves up to it passes each target."""
        node = np.zeros(len(targets), dtype=np.int64)
        for level in reversed(self._levels):
            rows = level.reshape(-1, _BRANCHES)
            node = np.minimum(node, len(rows) - 1)  # a target may be the sum of all but for rounding
            sums = np.cumsum(rows[node], axis=1, dtype=np.float64)
            child = np.minimum((sums <= targets[:, None]).sum(axis=1), _BRANCHES - 1)
            to_the_left = np.take_along_axis(sums, np.maximum(child - 1, 0)[:, None], axis=1)[:, 0]
            targets = targets - np.where(child > 0, to_the_left, 0.0)
            node = node * _BRANCHES + child
        return node


def _levels(capacity: int) -> list[Weights]:
    """Zeros for so many leaves, a multiple of 64, and the levels above, up to one of a single block."""
    levels: list[Weights] = [np.zeros(capacity, dtype=np.float32)]
    while len(levels[-1]) > _BRANCHES:
        blocks = len(levels[-1]) // _BRANCHES
        levels.append(np.zeros(-(-blocks // _BRANCHES) * _BRANCHES, dtype=np.float64))
    return levels
