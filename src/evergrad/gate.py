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
    Updates are held while the fast one is above `ratio` times the slow one, and above it by `sigmas` of its standard
    errors, but for at most `patience` batches: after that the change is taken for a drift of the world, which only
    fresh weights can follow, and both means start anew. So it stops a burst of bad labels, not a lasting fault.

    Args:
        ratio, sigmas: how much worse is too much.
        fresh, baseline: half-lives of the two means, in batches; nothing is held during the first `baseline` batches.
        patience: the longest hold, in batches.
    """

    ratio: float = 3.0
    sigmas: float = 6.0
    fresh: float = 8.0
    baseline: float = 256.0
    patience: int = 16

    def __post_init__(self) -> None:
        if not self.ratio >= 1:
            raise ConfigError("gate.ratio", f"must be 1 or more, not {self.ratio}")
        if not self.sigmas >= 0:
            raise ConfigError("gate.sigmas", f"must be 0 or more, not {self.sigmas}")
        if not 0 < self.fresh < self.baseline:
            raise ConfigError("gate.fresh", f"must lie between 0 and gate.baseline, not {self.fresh}")
        if self.patience < 0:
            raise ConfigError("gate.patience", f"must be 0 or more, not {self.patience}")
        self._start()
        decay = 0.5 ** (1 / self.fresh)
        self._error_factor = math.sqrt((1 - decay) / (1 + decay))  # of an exponentially weighted mean

    def _start(self) -> None:
        self._fast, self._slow, self._slow_square = (Fading(h) for h in (self.fresh, self.baseline, self.baseline))
        self._batches = self.held = 0

    def judge(self, loss: float) -> bool:
        """Takes in the mean loss of the newest batch; True: updates may be published."""
        self._batches += 1
        if math.isfinite(loss):
            self._fast.add(loss)
        bad = not math.isfinite(loss) or (self._batches > self.baseline and self._fast.value > self._limit())
        if bad and self.held < self.patience:
            self.held += 1
            return False
        if bad:
            self._start()
        self.held = 0
        if math.isfinite(loss):
            self._slow.add(loss)
            self._slow_square.add(loss * loss)
        return True

    def _limit(self) -> float:
        mean = self._slow.value
        deviation = math.sqrt(max(0.0, self._slow_square.value - mean * mean))
        return max(self.ratio * mean, mean + self.sigmas * deviation * self._error_factor)
