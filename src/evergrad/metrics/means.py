"""Means of values over a stream: of all, of the last, and with a memory that fades.

NaN among the values makes the mean NaN: for ever in `Running` and `Fading`, until it has left the window in `Windowed`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import ConfigError


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

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.total = int(state["count"]), float(state["total"])


class Windowed:
    """The mean of the last `size` values; NaN before the first.

    Raises:
        ConfigError: `size` is below 1.
    """

    def __init__(self, size: int) -> None:
        self._values: deque[float] = deque(maxlen=window_of(size))

    def add(self, values: npt.ArrayLike) -> None:
        self._values.extend(np.asarray(values, dtype=np.float64).reshape(-1).tolist())

    @property
    def value(self) -> float:
        return sum(self._values) / len(self._values) if self._values else float("nan")

    def state_dict(self) -> dict[str, Any]:
        return {"values": np.array(self._values, dtype=np.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `state_dict` gave; of a larger window's the newest values."""
        self._values = deque(np.asarray(state["values"], dtype=np.float64).tolist(), maxlen=self._values.maxlen)


class Fading:
    """A mean in which a value counts half after `half_life` further ones; NaN before the first.

    >>> mean = Fading(half_life=1); mean.add([0.0, 1.0]); round(mean.value, 4)
    0.6667

    Raises:
        ConfigError: `half_life` is not above 0.
    """

    def __init__(self, half_life: float) -> None:
        self._decay = decay_of(half_life)
        self._weight = self._total = 0.0

    def add(self, values: npt.ArrayLike) -> None:
        for value in np.asarray(values, dtype=np.float64).reshape(-1).tolist():
            self._weight = self._weight * self._decay + 1.0
            self._total = self._total * self._decay + value

    @property
    def value(self) -> float:
        return self._total / self._weight if self._weight else float("nan")

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self._weight, "total": self._total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._weight, self._total = float(state["weight"]), float(state["total"])


def window_of(size: int) -> int:
    """`size`, where it is a whole number of 1 or more.

    Raises:
        ConfigError: it is not.
    """
    if not (isinstance(size, int) and size >= 1):
        raise ConfigError("window", f"must be a whole number, 1 or more, not {size}")
    return size


def decay_of(half_life: float) -> float:
    """The factor per value after which `half_life` of them make one half.

    Raises:
        ConfigError: `half_life` is not above 0.
    """
    if not half_life > 0:
        raise ConfigError("half_life", f"must be above 0, not {half_life}")
    return float(0.5 ** (1 / half_life))
