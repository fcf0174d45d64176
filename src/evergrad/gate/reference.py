"""What losses are usual: the newest ones of the served model, and which new ones are large beside them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.gate.evidence import Evidence, Floats, share_factors

SHARES = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5])
"""Shares of the usual losses; a loss beyond those of the largest 10% is what the gate calls large."""
RISING = slice(0, 5)
VERY_LARGE, LARGE = 0, 3
COMPARED = slice(LARGE, 6)
LARGE_SHARE = float(SHARES[LARGE])
HIGHEST_TOLERANCE = 4.0
_BAD_SHARE = 0.9
_WORST = float(np.finfo(np.float64).max) / 2  # so that the mean of two is finite


def finite(losses: Floats) -> Floats:
    """The same losses, with a very large number in place of those that are none, or larger."""
    return np.where(np.isfinite(losses), np.minimum(losses, _WORST), _WORST)


class Reference:
    """The `size` losses of the served model before its newest ones, as a scale for the next ones.

    The newest, a quarter of `size`, wait: a rise that takes a while to be noticed does not become usual meanwhile.

    Only "is this loss larger than all but a share of the usual ones" is ever asked of a loss, so neither its unit nor
    the tail of its distribution matters. Equal losses are not larger. Losses that are no numbers are larger than all.
    """

    def __init__(self, size: int) -> None:
        self._size, self._waiting = size, size // 4
        self.losses = np.zeros(0)
        self.ids = np.zeros(0, dtype=np.int64)
        self.limits: Floats | None = None

    @property
    def limit(self) -> float:
        """Losses above it are large; infinite while too few are known: less than `size` / 2, half of which wait."""
        return math.inf if self.limits is None else float(self.limits[LARGE])

    def above(self, losses: Floats) -> npt.NDArray[np.bool_]:
        """Which losses [examples] are beyond those of each share: [examples, shares]."""
        limits = np.full(len(SHARES), np.inf) if self.limits is None else self.limits
        return (losses[:, None] > limits) | ~np.isfinite(losses)[:, None]

    def add(self, losses: Floats, first: int) -> None:
        """Takes in a batch, which `first` names."""
        most = self._size + self._waiting
        self.losses = np.concatenate((self.losses, finite(losses)))[-most:]
        self.ids = np.concatenate((self.ids, np.full(len(losses), first)))[-most:]
        if 2 * len(self.losses) >= self._size:
            usual = self.losses[: -self._waiting]
            places = len(usual) - 1 - (SHARES * len(usual)).astype(np.int64)
            self.limits = np.partition(usual, places)[places]

    def drop_from(self, first: int) -> Floats:
        """Takes the losses of all batches from `first` on out again, and gives them; what is large stays as it is."""
        keep = self.ids < first
        dropped = self.losses[~keep]
        self.losses, self.ids = self.losses[keep], self.ids[keep]
        return dropped

    def restart(self, losses: Floats, first: int) -> None:
        """Takes these losses alone for usual from now on."""
        self.losses, self.ids, self.limits = np.zeros(0), np.zeros(0, dtype=np.int64), None
        self.add(losses, first)

    def state_dict(self) -> dict[str, Any]:
        limits = None if self.limits is None else self.limits.tolist()
        return {"losses": self.losses.tolist(), "ids": self.ids.tolist(), "limits": limits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = np.array(state["losses"], dtype=np.float64)
        self.ids = np.array(state["ids"], dtype=np.int64)
        self.limits = None if state["limits"] is None else np.array(state["limits"], dtype=np.float64)


class Rise:
    """Evidence that losses beyond the usual ones come more than `tolerance` times as often as they did.

    The null hypothesis: whatever came before, the chance that the next loss is beyond those of the largest share q is
    at most `tolerance` x q, for q = 0.01, 0.02, 0.05, 0.1 and 0.2. For each there is a bet on 90%, and one
    on half way to that, in logarithms.
    """

    def __init__(self, tolerance: float) -> None:
        null = tolerance * SHARES[RISING]
        self._null = np.tile(null, 2)
        self._alternative = np.concatenate((np.full(len(null), _BAD_SHARE), np.sqrt(null * _BAD_SHARE)))
        self.evidence = Evidence(len(self._null), restarts=True)

    def add(self, above: npt.NDArray[np.bool_], first: int) -> float:
        """Takes in what `Reference.above` gave for a batch; the logarithm of the evidence at its highest."""
        return self.evidence.add(share_factors(np.tile(above[:, RISING], 2), self._null, self._alternative), first)

    def began(self, first: int) -> int:
        """The first example of the batch in which the rise began, as far as can be told at batch `first`."""
        return self.evidence.mark if self.evidence.levels.max() > 0 else first
