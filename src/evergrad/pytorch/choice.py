"""Which loop: the copy that the next gradient is taken at, chosen from what both copies score on fresh examples.

    deployed clearly worse than the master    it cannot follow: gradients at the deployed weights (closed loop)
    else                                      it follows: gradients at the master (open loop)
    master worse than the deployed            it has lost its way: a part of what was not sent is dropped

The study that this is the outcome of: experiments/sparsity, docs/sparsity.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_FADE = 0.98  # the weight of what was seen a score ago: some fifty scores count
_MOST_LET_GO = 0.5  # of master - deployed, at a step
_LEAST_SCORED, _BATCH_PER_SCORED = 8, 16
_FIRST_ASKED, _ONE_IN = 50, 4
_WAITS = 0.9  # small parts wait until no more than this is left: dropping them costs a pass over all weights


def examples_to_score(batch_size: int) -> int:
    """How many new examples to score the master on, so that this costs little of a training step.

    Forward passes take a third of training, and of those it is a sixteenth; but at least eight examples.
    """
    return max(_LEAST_SCORED, batch_size // _BATCH_PER_SCORED)


class Choice:
    """Chooses a loop online.

    Args:
        margin: how far above the master's loss the deployed weights' may be, as a fraction of it.
        let_go: of master - deployed: what a step drops of it for each whole loss that the master is worse by.

    Attributes:
        closed: whether gradients are to be taken at the deployed weights.
    """

    def __init__(self, margin: float = 0.05, let_go: float = 0.1) -> None:
        self._margin, self._let_go = margin, let_go
        self._deployed = self._master = 0.0
        self._kept, self._asked = 1.0, 0
        self.closed = False

    def wants_score(self) -> bool:
        """Whether to score both copies on new examples; to be asked once for each batch of them.

        At the beginning, and wherever the deployed weights were lately worse than the master: always. Where they
        follow, one batch in four, for a forward pass costs time.
        """
        self._asked += 1
        worse = self._deployed > self._master
        return worse or self._asked <= _FIRST_ASKED or self._asked % _ONE_IN == 0

    def score(self, deployed: float, master: float) -> None:
        """Takes note of both copies' losses on examples that neither has learned from; of none that is not finite."""
        if not (math.isfinite(deployed) and math.isfinite(master)):
            return
        self._deployed = _FADE * self._deployed + (1 - _FADE) * deployed
        self._master = _FADE * self._master + (1 - _FADE) * master
        self.closed = self._deployed > (1 + self._margin) * self._master

    def keep(self) -> float:
        """The fraction of master - deployed that is to be kept after a step; to be asked once at each."""
        if self._deployed > 0:
            worse = max(0.0, self._master / self._deployed - 1)
            self._kept *= 1 - min(_MOST_LET_GO, self._let_go * worse)
        if self._kept > _WAITS:
            return 1.0
        kept, self._kept = self._kept, 1.0
        return kept

    def state_dict(self) -> dict[str, Any]:
        """See `Stateful`."""
        means = {"deployed": self._deployed, "master": self._master}
        return means | {"kept": self._kept, "asked": self._asked, "closed": self.closed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Stateful`."""
        self._deployed, self._master, self._kept = state["deployed"], state["master"], state["kept"]
        self._asked, self.closed = state["asked"], state["closed"]
