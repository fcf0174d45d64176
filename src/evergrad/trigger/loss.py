"""A trigger by how bad the model is now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evergrad.config import require_kind
from evergrad.errors import ConfigError
from evergrad.trigger.base import News


@dataclass(kw_only=True)
class OnLoss:
    """A step whenever the fading mean of the prequential loss is above a level.

    It stays due from batch to batch for as long as the mean is above: a step does not restart the mean, which only
    better predictions bring down. What was not scored (NaN) changes nothing; an infinite loss makes a step due and does
    not join the mean.

    Args:
        above: the level.
        half_life: a loss counts half after so many further examples.
    """

    above: float
    half_life: float = 256.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.above):
            raise ConfigError("trigger.above", f"must be finite, not {self.above}")
        if not 0 < self.half_life < math.inf:
            raise ConfigError("trigger.half_life", f"must be above 0, not {self.half_life}")
        self._examples = self._total = 0.0
        self._due = False

    def inform(self, news: News) -> bool:
        if math.isfinite(news.loss) and news.examples:
            kept = 0.5 ** (news.examples / self.half_life)
            self._examples = self._examples * kept + news.examples
            self._total = self._total * kept + news.examples * news.loss
            self._due = self._due or self._total / self._examples > self.above
        self._due = self._due or news.loss == math.inf
        return self._due

    def taken(self, now_s: float) -> None:  # noqa: ARG002 - time plays no part here
        self._due = False

    def state_dict(self) -> dict[str, Any]:
        return {"kind": "on_loss", "examples": self._examples, "total": self._total, "due": self._due}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        require_kind(state, "on_loss", "trigger")
        self._examples, self._total = float(state["examples"]), float(state["total"])
        self._due = bool(state["due"])
