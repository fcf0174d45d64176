"""Examples by what happened to them: how often they were drawn, and what they cost the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import ConfigError
from evergrad.sampling.base import Examples, Ids, restore, save
from evergrad.sampling.tree import WeightTree

_LEAST = float(np.finfo(np.float32).tiny)


@dataclass
class LeastUsed:
    """An example that was in t batches has the weight 1 / t: those drawn least come next.

    Exactly: successive sampling, without replacement; each next example is one of those not yet in the batch, with
    probability proportional to its weight. That is the weighting in the code of Prapas et al. 2021. An example has been
    in one batch, the one that it was new in, when it can first be drawn.

    Args:
        used_before: how many batches those examples count as having been in that are there at the first draw, before
            anything is known of them; 50 in the authors' experiments, whose models were trained on them.
        seed: equal seeds draw equal examples.
    """

    used_before: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.used_before < 1:
            raise ConfigError("sampler.used_before", f"must be 1 or more, not {self.used_before}")
        self._rng, self._tree, self._begun = np.random.default_rng(self.seed), WeightTree(), False

    def draw(self, examples: Examples, before: int, count: int) -> Ids:
        self._tree.retire(examples.first)
        self._tree.grow(before, 1.0 if self._begun else 1.0 / self.used_before)
        self._begun = True
        drawn = self._tree.draw(self._rng, before, count)
        times = np.rint(1.0 / self._tree.get(drawn).astype(np.float64))
        self._tree.put(drawn, 1.0 / (times + 1.0))
        return drawn

    def state_dict(self) -> dict[str, Any]:
        return save("least_used", self._rng) | {"begun": self._begun, "tree": self._tree.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restore("least_used", self._rng, state)
        self._begun = bool(state["begun"])
        self._tree.load_state_dict(state["tree"])


@dataclass
class LossPrioritised:
    """Examples that cost the model much when it last saw them come more often.

    The proportional variant of Schaul et al. 2016: the priority of an example is (loss + `epsilon`) ** `alpha`, with
    its loss when it was last in a batch (a negative one counts as 0); one that was in none has the highest priority
    that there was so far, 1 before any. Exactly: successive sampling, without replacement; each next example is one of
    those not yet in the batch, with probability proportional to its priority. Their importance weights are *not*
    applied: the loss of a batch stays a plain mean, so training leans towards hard examples, and towards wrong labels.

    Args:
        alpha: 0: uniform; 1: in proportion to the loss.
        epsilon: what keeps an example of no loss in play.
        seed: equal seeds draw equal examples.
    """

    alpha: float = 0.6
    epsilon: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError("sampler.alpha", f"must lie between 0 and 1, not {self.alpha}")
        if not 0 < self.epsilon < float("inf"):
            raise ConfigError("sampler.epsilon", f"must be above 0, not {self.epsilon}")
        self._rng, self._tree = np.random.default_rng(self.seed), WeightTree()
        self._begun, self._highest = False, 1.0

    def draw(self, examples: Examples, before: int, count: int) -> Ids:
        self._tree.retire(examples.first)
        self._tree.grow(before, self._highest)
        self._begun = True
        return self._tree.draw(self._rng, before, count)

    def learned(self, ids: Ids, losses: npt.NDArray[np.float64]) -> None:
        """See `Feedback`; what is not finite, or gone, or comes before the first draw, is passed over."""
        known = np.isfinite(losses) & (ids >= self._tree.first)
        ids, losses = ids[known], losses[known]
        if not (self._begun and len(ids)):
            return
        priorities = (np.maximum(losses, 0.0) + self.epsilon) ** self.alpha
        priorities = np.clip(priorities, _LEAST, float(np.finfo(np.float32).max) / 2**64)  # so that sums are finite
        self._tree.grow(int(ids.max()) + 1, self._highest)
        self._tree.put(ids, priorities)
        self._highest = max(self._highest, float(priorities.max()))

    def state_dict(self) -> dict[str, Any]:
        mine = {"begun": self._begun, "highest": self._highest, "tree": self._tree.state_dict()}
        return save("loss_prioritised", self._rng) | mine

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restore("loss_prioritised", self._rng, state)
        self._begun, self._highest = bool(state["begun"]), float(state["highest"])
        self._tree.load_state_dict(state["tree"])
