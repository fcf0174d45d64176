"""Scores over a stream.

Prequential means: every example is predicted before it is trained on, so the score of a stream needs no test set
(Dawid 1984; Gama, Sebastiao, Rodrigues 2013, whose fading factor is used here).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Score = Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[np.float64]]
"""Scores a batch of outputs against its labels: one number per example."""


class Running:
    """The mean of all values so far; NaN before the first.

    >>> mean = Running()
    >>> mean.add([1.0, 0.0]); mean.add([1.0, 1.0]); mean.value
    0.75
    """

    def __init__(self) -> None:
        self.count, self.total = 0, 0.0

    def add(self, values: npt.ArrayLike) -> None:
        array = np.asarray(values, dtype=np.float64)
        self.count += array.size
        self.total += float(array.sum())

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")


class Windowed:
    """The mean of the last `size` values; NaN before the first."""

    def __init__(self, size: int) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def add(self, values: npt.ArrayLike) -> None:
        self._values.extend(np.asarray(values, dtype=np.float64).reshape(-1).tolist())

    @property
    def value(self) -> float:
        return sum(self._values) / len(self._values) if self._values else float("nan")


class Fading:
    """A mean in which a value counts half after `half_life` further ones; NaN before the first.

    >>> mean = Fading(half_life=1); mean.add([0.0, 1.0]); round(mean.value, 4)
    0.6667
    """

    def __init__(self, half_life: float) -> None:
        self._decay = 0.5 ** (1 / half_life)
        self._weight = self._total = 0.0

    def add(self, values: npt.ArrayLike) -> None:
        for value in np.asarray(values, dtype=np.float64).reshape(-1).tolist():
            self._weight = self._weight * self._decay + 1.0
            self._total = self._total * self._decay + value

    @property
    def value(self) -> float:
        return self._total / self._weight if self._weight else float("nan")


def accuracy(outputs: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """1.0 where the largest of `outputs` [examples, classes] is at the label [examples], 0.0 elsewhere."""
    return np.asarray(outputs.argmax(axis=1) == labels, dtype=np.float64)


def absolute_error(outputs: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """|output - label| per example, the mean over further axes."""
    error = np.abs(outputs.reshape(len(labels), -1) - labels.reshape(len(labels), -1))
    return np.asarray(error.mean(axis=1), dtype=np.float64)
