"""Which examples of the history join a training batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evergrad.errors import ConfigError


class Sampler(Protocol):
    """Draws rows of the history."""

    def draw(self, rows: int, count: int) -> npt.NDArray[np.int64]:
        """Draws up to `count` different rows out of the first `rows`: int64 [drawn]; fewer only where fewer exist."""
        ...


def _choose(rng: np.random.Generator, first: int, rows: int, count: int) -> npt.NDArray[np.int64]:
    available = max(0, rows - first)
    # Floyd's algorithm inside: the cost follows `count`, not the length of the history.
    return rng.choice(available, size=min(count, available), replace=False, shuffle=False) + first


@dataclass
class Uniform:
    """Every example of the history is as likely as any other; without replacement.

    Args:
        seed: equal seeds draw equal rows.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def draw(self, rows: int, count: int) -> npt.NDArray[np.int64]:
        return _choose(self._rng, 0, rows, count)


@dataclass
class Window:
    """Uniform over the newest `size` examples of the history, older ones never; without replacement."""

    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError("sampler.size", f"must be 1 or more, not {self.size}")
        self._rng = np.random.default_rng(self.seed)

    def draw(self, rows: int, count: int) -> npt.NDArray[np.int64]:
        return _choose(self._rng, max(0, rows - self.size), rows, count)
