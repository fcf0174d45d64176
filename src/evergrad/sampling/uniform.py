"""Every example alike, of the whole history or of its newest part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evergrad.errors import ConfigError
from evergrad.sampling.base import LONGEST_US, Examples, Ids, choose, restore, save


@dataclass
class Uniform:
    """Every example of the history is as likely as any other; without replacement (Prapas et al. 2021).

    Args:
        seed: equal seeds draw equal examples.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def draw(self, examples: Examples, before: int, count: int) -> Ids:
        return choose(self._rng, examples.first, before, count)

    def state_dict(self) -> dict[str, Any]:
        return save("uniform", self._rng)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restore("uniform", self._rng, state)


@dataclass
class Window:
    """Uniform over the newest examples of the history, older ones never; without replacement.

    Args:
        size: how many are in the window; or
        seconds: those that arrived at most so long before the newest that may be drawn.
        seed: equal seeds draw equal examples.
    """

    size: int | None = None
    seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.size is None) == (self.seconds is None):
            raise ConfigError("sampler.size", "a window has either a size or seconds")
        if self.size is not None and self.size < 1:
            raise ConfigError("sampler.size", f"must be 1 or more, not {self.size}")
        if self.seconds is not None and not 0 <= self.seconds < float("inf"):
            raise ConfigError("sampler.seconds", f"must be 0 or more, not {self.seconds}")
        self._rng = np.random.default_rng(self.seed)

    def draw(self, examples: Examples, before: int, count: int) -> Ids:
        low = examples.first
        if self.size is not None:
            low = max(low, before - self.size)
        elif self.seconds is not None and before > low:
            newest_us = int(examples.arrived_us(np.array([before - 1]))[0])
            low = max(low, examples.since(newest_us - round(min(self.seconds * 1e6, LONGEST_US))))
        return choose(self._rng, low, before, count)

    def state_dict(self) -> dict[str, Any]:
        return save("window", self._rng)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restore("window", self._rng, state)
