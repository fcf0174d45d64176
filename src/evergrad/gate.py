"""Whether a training step may reach the replicas now.

A held step is not lost: the publisher folds it into the next update that is let through.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from evergrad.errors import ConfigError
from evergrad.metrics import Fading


@dataclass
class Gate:
    """Holds updates while the loss on fresh labels is well above what it was.

    The deployed model's loss on each new batch (scored before it is trained on) feeds a fast and a slow fading mean.
    While fast > `ratio` * slow, updates are held; the slow mean then stands still, so a lasting fault is not learned as
    the new normal, but for at most `patience` batches: after that the change is taken for a drift of the world. A loss
    that is NaN or infinite holds its own batch, and enters neither mean.

    Args:
        ratio: how much worse is too much.
        fresh, baseline: half-lives of the two means, in batches.
        patience: the longest hold, in batches.
    """

    ratio: float = 2.0
    fresh: float = 4.0
    baseline: float = 64.0
    patience: int = 100

    def __post_init__(self) -> None:
        if not self.ratio > 1:
            raise ConfigError("gate.ratio", f"must be above 1, not {self.ratio}")
        if not 0 < self.fresh < self.baseline:
            raise ConfigError("gate.fresh", f"must lie between 0 and gate.baseline, not {self.fresh}")
        self._fast, self._slow = Fading(self.fresh), Fading(self.baseline)
        self._batches = 0
        self.held = 0

    def judge(self, loss: float) -> bool:
        """Takes in the mean loss of the newest batch; True: updates may be published."""
        self._batches += 1
        warm, usable = self._batches > self.baseline, math.isfinite(loss)
        if usable:
            self._fast.add(loss)
        worse = warm and not (usable and self._fast.value <= self.ratio * self._slow.value)
        if worse and self.held < self.patience:
            self.held += 1
            return False
        self.held = 0
        if worse:  # patience has run out: what the newest batches say is the new normal
            self._slow = Fading(self.baseline)
            self._slow.add(self._fast.value)
        elif usable:
            self._slow.add(loss)
        return True
