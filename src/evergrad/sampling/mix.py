"""Two samplers in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import ConfigError
from evergrad.sampling.base import Examples, Feedback, Ids, Sampler, choose, restore, save

_ROUNDS = 4


@dataclass
class Mix:
    """A share of each batch from one sampler, the rest from another.

    The first one draws `share` of the examples (on average exactly, where that is no whole number), then the second
    draws the rest; what it draws that is there already is drawn again. Where one has too few, the other makes up.

    Args:
        a, b: the samplers; each may be a mix.
        share: of `a`, from 0 to 1.
        seed: equal seeds, of the mix and of both, draw equal examples.
    """

    a: Sampler
    b: Sampler
    share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError("sampler.share", f"must lie between 0 and 1, not {self.share}")
        self._rng = np.random.default_rng(self.seed)

    def draw(self, examples: Examples, before: int, count: int) -> Ids:
        of_a = min(count, int(self.share * count + self._rng.random()))
        drawn = self.a.draw(examples, before, of_a)
        for _ in range(_ROUNDS):  # at least one, so that both see what has arrived
            more = self.b.draw(examples, before, count - len(drawn))
            drawn = np.concatenate((drawn, more[~np.isin(more, drawn)]))
            if len(drawn) == count:
                return drawn
        for sampler in (self.b, self.a):  # as many as are wanted in all hold as many as are missing
            more = sampler.draw(examples, before, count)
            more = more[~np.isin(more, drawn)]
            drawn = np.concatenate((drawn, more[choose(self._rng, 0, len(more), count - len(drawn))]))
        return drawn

    def learned(self, ids: Ids, losses: npt.NDArray[np.float64]) -> None:
        """See `Feedback`; passed on to those of the two that learn."""
        for sampler in (self.a, self.b):
            if isinstance(sampler, Feedback):
                sampler.learned(ids, losses)

    def state_dict(self) -> dict[str, Any]:
        return save("mix", self._rng) | {"a": self.a.state_dict(), "b": self.b.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restore("mix", self._rng, state)
        self.a.load_state_dict(state["a"])
        self.b.load_state_dict(state["b"])
