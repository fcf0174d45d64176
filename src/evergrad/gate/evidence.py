"""E-values: evidence that may be looked at after every example without losing its meaning.

A bet multiplies its capital by a factor whose mean, given all that came before, is at most 1 where the null hypothesis
holds. So a capital of 1000 has a chance of at most 1 in 1000 there, at whatever time one looks (Ville 1939). A mean of
several bets is a bet too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_FRACTIONS = np.array([0.05, 0.2, 0.8])  # of the capital that one example may win or lose


class Evidence:
    """The capital of several bets, as natural logarithms.

    With `restarts`, capital below 1 is made up to 1 before each example. What grows from there is an e-CUSUM (Shin,
    Ramdas, Rinaldo 2024): it reacts to a change at any time, and under the null hypothesis the chance that it reaches c
    within n examples is at most n / c, and the mean number of examples until then at least c. Without, it is one
    test from the first example on, whose chance to ever reach c is at most 1 / c.

    Args:
        bets: how many.
    """

    def __init__(self, bets: int, *, restarts: bool) -> None:
        self._restarts = restarts
        self.levels = np.zeros(bets)
        self.marks = np.zeros(bets, dtype=np.int64)
        self.value = 0.0

    def add(self, factors: Floats, mark: int) -> float:
        """Takes in the factors [examples, bets] of a batch, 1 example or more, in order.

        Args:
            factors: natural logarithms.
            mark: names the batch; each bet remembers that of the batch in which its capital last grew from 1.

        Returns:
            The logarithm of the mean capital where it was highest within the batch; `value` is that at its end.
        """
        carried = np.maximum(self.levels, 0.0) if self._restarts else self.levels
        sums = np.cumsum(factors, axis=0)
        lowest = np.minimum.accumulate(np.vstack((-carried, sums[:-1])), axis=0) if self._restarts else -carried
        levels = sums - lowest
        if self._restarts:
            self.marks[(lowest[-1] < -carried) | (carried <= 0)] = mark
        self.levels = levels[-1].copy()
        means = np.logaddexp.reduce(levels, axis=1) - np.log(levels.shape[1])
        self.value = float(means[-1])
        return float(means.max())

    @property
    def mark(self) -> int:
        """That of the strongest bet."""
        return int(self.marks[self.levels.argmax()])

    def state_dict(self) -> dict[str, Any]:
        return {"levels": self.levels.tolist(), "marks": self.marks.tolist(), "value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.levels = np.array(state["levels"], dtype=np.float64)
        self.marks = np.array(state["marks"], dtype=np.int64)
        self.value = float(state["value"])


def share_factors(happened: npt.NDArray[np.bool_], null: Floats, alternative: Floats) -> Floats:
    """Likelihood ratios of events [examples, bets] with chance `alternative` against `null`, both [bets].

    They are bets against every chance up to `null` where the alternative is above it, and from `null` on where below.
    """
    factors: Floats = np.where(happened, np.log(alternative / null), np.log((1 - alternative) / (1 - null)))
    return factors


def gain_factors(gains: Floats) -> Floats:
    """Bets [examples, 3] against gains [examples], each above -1.25, having a mean of 0 or less.

    Waudby-Smith, Ramdas 2024, with fixed fractions of the capital.
    """
    factors: Floats = np.log1p(gains[:, None] * _FRACTIONS)
    return factors


def gain_evidence(*, restarts: bool) -> Evidence:
    """What takes in the factors of `gain_factors`."""
    return Evidence(len(_FRACTIONS), restarts=restarts)
