"""Whether draws follow a distribution: chi-square, with fixed seeds, at five standard deviations of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass
class Listed:
    """A history of given arrival times (ascending) and labels: see `evergrad.sampling.Examples`."""

    times_s: Floats
    labels: npt.NDArray[np.int64] | None = None
    first: int = 0
    reads: int = 0

    def gather(self, ids, columns=None):
        self.reads += len(ids)
        return {"y": self.labels[ids]}

    def since(self, arrived_us: int) -> int:
        return max(self.first, int(np.searchsorted(self.arrived_us(np.arange(len(self.times_s))), arrived_us)))

    def arrived_us(self, ids):
        return np.round(self.times_s[ids] * 1e6).astype(np.int64)


def chosen_at(draw: Callable[[], npt.NDArray[np.int64]], size: int, draws: int) -> npt.NDArray[np.int64]:
    """How often each place of a draw held each id: [count, size]; ids below `size`."""
    drawn = np.stack([draw() for _ in range(draws)])
    return np.stack([np.bincount(place, minlength=size) for place in drawn.T])


def chi_square(seen: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """How many standard deviations the statistic lies above its mean; infinite where what cannot be was seen."""
    counts, expected = np.asarray(seen, dtype=np.float64), np.asarray(probabilities) * np.sum(seen)
    if counts[expected == 0].sum():
        return float("inf")
    counts, expected = counts[expected > 0], expected[expected > 0]
    if expected.min() < 5:
        raise ValueError("too few draws for a chi-square test")
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def second_of_two(weights: Floats) -> Floats:
    """The distribution of the second of two successive draws without replacement."""
    p = weights / weights.sum()
    return np.asarray(p * ((p / (1 - p)).sum() - p / (1 - p)))


def fits_successive(draw: Callable[[], npt.NDArray[np.int64]], weights: Floats, draws: int) -> None:
    """Checks draws of two: the first in proportion to the weights, the second to those of the rest."""
    first, second = chosen_at(draw, len(weights), draws)
    assert chi_square(first, weights / weights.sum()) < 5
    assert chi_square(second, second_of_two(weights)) < 5
