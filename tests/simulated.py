"""What a `budget.Amount` steers, in a few lines: a publisher over a link, and weights that training moves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.budget import Amount
from evergrad.testing import FakeClock


@dataclass(frozen=True)
class Sent:
    """One update: when it was written, its bytes, and the moves in it."""

    at_s: float
    nbytes: int
    elements: int


@dataclass
class Link:
    """A publisher that appends every `every` optimizer steps, and tells of it `late` steps later.

    Args:
        cost: an update's bytes, given how many elements it moves.
    """

    amount: Amount
    cost: Callable[[int], int]
    every: int = 1
    late: int = 0
    clock: FakeClock = field(default_factory=lambda: FakeClock(0.0))
    sent: list[Sent] = field(default_factory=list)
    due: list[int] = field(default_factory=list)
    _waiting: int = 0
    _untold: deque[tuple[int, Sent]] = field(default_factory=deque)

    def run(self, gaps_s: Iterable[float]) -> Link:
        for gap_s in gaps_s:
            self.clock.advance(gap_s)
            self._tell(len(self.due))
            elements = self.amount.due(self.clock())
            self.amount.moved(elements, None)
            self.due.append(elements)
            self._waiting += elements
            if len(self.due) % self.every == 0 and self._waiting:
                self.sent.append(Sent(self.clock(), self.cost(self._waiting), self._waiting))
                self._untold.append((len(self.due) + self.late, self.sent[-1]))
                self._waiting = 0
            if not self.late:
                self._tell(len(self.due))
        return self

    def _tell(self, step: int) -> None:
        while self._untold and self._untold[0][0] <= step:
            told = self._untold.popleft()[1]
            self.amount.sent(told.elements, told.nbytes, self.clock())

    @property
    def nbytes(self) -> int:
        return sum(update.nbytes for update in self.sent)

    def most_beyond(self, bytes_per_s: float) -> float:
        """Bytes beyond the rate, in that window, of all there are, where they are most."""
        most = running = last_s = 0.0
        for update in self.sent:
            running = max(0.0, running - bytes_per_s * (update.at_s - last_s)) + update.nbytes
            most, last_s = max(most, running), update.at_s
        return most


class Walk:
    """Weights that walk at random (with momentum, each at its own pace), and a deployed copy that follows by one scale.

    Args:
        spread: how much their paces differ (standard deviation of the logarithm).
    """

    def __init__(self, elements: int, spread: float = 0.5, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._pace = np.exp(spread * self._random.standard_normal(elements))
        self._pace /= np.sqrt((self._pace**2).mean())
        self._master = self._random.standard_normal(elements)
        self._deployed = self._master.copy()
        self._velocity = np.zeros(elements)

    def run(self, amount: Amount, steps: int, pace: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Distance and moves after each of so many steps; `pace`: how far a weight walks in one, against its size."""
        distances, moves = [], []
        for _ in range(steps):
            self._velocity *= 0.9
            self._velocity += 0.43 * pace * self._pace * self._random.standard_normal(len(self._pace))
            self._master += self._velocity
            moves.append(self._move(amount.due(0.0)))
            distances.append(self._norm(self._master - self._deployed) / self._norm(self._master))
            amount.moved(moves[-1], distances[-1])
        return np.array(distances), np.array(moves)

    def _move(self, k: int) -> int:
        if k == 0:
            return 0
        difference = self._master - self._deployed
        chosen = np.argpartition(np.abs(difference), -k)[-k:]
        size = np.abs(difference[chosen])
        chosen = chosen[size > size.mean() / 2]
        self._deployed[chosen] += np.sign(difference[chosen]) * size.mean()
        return len(chosen)

    @staticmethod
    def _norm(array: npt.NDArray[Any]) -> float:
        return float(np.sqrt((array * array).sum()))
