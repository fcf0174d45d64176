"""The area under the ROC curve: how likely a positive example scores above a negative one, ties counting half.

Written here because neither reference gives these three forms (`tests/unit/metrics/test_auc.py` compares with
scikit-learn): river 0.26's rolling AUC is off by 0.02 where scores are tied, its cumulative one and the binned one of
torchmetrics 1.9 cut [0, 1] evenly (off by 0.04 for rare positives at river's default), torchmetrics' exact one keeps
every example, and none fades.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import ScoreMismatch
from evergrad.metrics.means import decay_of, window_of
from evergrad.metrics.prequential import Forms
from evergrad.metrics.scores import check_batch, one_each

_DROPPED_BITS = 15  # of a float32: sign, exponent and 8 bits of its fraction stay
_BLOCK = 1 << 8  # bins of one power of 2
_FORGOTTEN = 1e-100  # weights are brought back to their own unit before they could run over


class WindowedAUC:
    """The exact AUC of the last `size` examples; NaN unless both classes are among them.

    Outputs are [examples] or [examples, 1], the higher the likelier class 1, or [examples, 2], of which the second
    minus the first is taken: probabilities or logits alike. Labels are 0 or 1. An output of NaN ranks where it is
    worst. `add` costs O(1) an example, `value` O(size log size).

    Raises:
        ConfigError: `size` is below 1.
    """

    def __init__(self, size: int) -> None:
        self._scores, self._positive = np.zeros(window_of(size)), np.zeros(size, dtype=bool)
        self._taken = 0

    def add(self, outputs: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        """Takes in a batch.

        Raises:
            ScoreMismatch: the shapes are others, or a label is neither 0 nor 1; nothing has changed.
        """
        scores, positive = _binary(outputs, labels)
        size = len(self._scores)
        where = np.arange(self._taken, self._taken + len(scores))[-size:] % size
        self._scores[where], self._positive[where] = scores[-size:], positive[-size:]
        self._taken += len(scores)

    @property
    def value(self) -> float:
        held = min(self._taken, len(self._scores))
        if not held:
            return float("nan")
        positive = self._positive[:held]
        groups = np.unique(self._scores[:held], return_inverse=True)[1]
        return _area(np.bincount(groups, positive), np.bincount(groups, ~positive))

    def state_dict(self) -> dict[str, Any]:
        order = np.arange(max(0, self._taken - len(self._scores)), self._taken) % len(self._scores)
        return {"scores": self._scores[order], "positive": self._positive[order]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `state_dict` gave; of a larger window's the newest examples."""
        scores, positive = state["scores"][-len(self._scores) :], state["positive"][-len(self._scores) :]
        self._scores[: len(scores)], self._positive[: len(scores)] = scores, positive
        self._taken = len(scores)


class BinnedAUC:
    """The AUC of all examples so far, or fading, in memory that does not grow; NaN until both classes came.

    Outputs and labels as in `WindowedAUC`. Scores count as tied where they agree in the leading 9 bits of their binary
    fraction (of 1 - score between 0.5 and 1, so that probabilities near 1 are told apart as those near 0 are). The
    error is at most half of the share of such pairs; it is exact where scores differ by 0.4% or are equal. `add` costs
    O(1) an example, `value` O(256) for each power of 2 that scores came from.

    Args:
        half_life: after so many further examples one counts half; None: it counts whole for ever.

    Raises:
        ConfigError: `half_life` is not above 0.
    """

    def __init__(self, half_life: float | None = None) -> None:
        self._decay = 1.0 if half_life is None else decay_of(half_life)
        self._weights, self._scale = np.zeros((2, _BINS)), 1.0  # of label 0 and 1, in units of the scale
        self._blocks = np.zeros(_BINS // _BLOCK, dtype=bool)  # where any weight is

    def add(self, outputs: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        """Takes in a batch.

        Raises:
            ScoreMismatch: the shapes are others, or a label is neither 0 nor 1; nothing has changed.
        """
        scores, positive = _binary(outputs, labels)
        self._scale *= self._decay ** len(scores)
        if self._scale < _FORGOTTEN:
            self._weights *= self._scale
            self._scale = 1.0
        weights = self._decay ** np.arange(len(scores))[::-1] / self._scale
        bins = _bins(scores)
        np.add.at(self._weights, (positive.astype(np.intp), bins), weights)
        self._blocks[bins // _BLOCK] = True

    @property
    def value(self) -> float:
        negative, positive = self._weights.reshape(2, -1, _BLOCK)[:, self._blocks].reshape(2, -1)
        return _area(positive, negative)

    def state_dict(self) -> dict[str, Any]:
        bins = np.flatnonzero(self._weights.any(axis=0))
        blocks = np.flatnonzero(
            self._blocks
        )  # some may hold nothing any more, and yet take part in how sums are rounded
        return {"bins": bins, "weights": self._weights[:, bins], "blocks": blocks, "scale": self._scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `state_dict` gave."""
        self._weights[:], self._blocks[:] = 0, False
        self._weights[:, state["bins"]] = state["weights"]
        self._blocks[state["blocks"]] = True
        self._scale = float(state["scale"])


AUC = Forms(cumulative=BinnedAUC, windowed=WindowedAUC, fading=BinnedAUC)
"""For `Prequential`: exact over the window, binned where memory would grow."""


def _area(positive: npt.NDArray[Any], negative: npt.NDArray[Any]) -> float:
    """From the weight of each class in each group of equal scores, lowest score first."""
    all_positive, all_negative = float(positive.sum()), float(negative.sum())
    if not (all_positive and all_negative):
        return float("nan")
    beaten = np.cumsum(negative) - negative / 2
    return float(positive @ beaten) / all_positive / all_negative


def _binary(outputs: npt.NDArray[Any], labels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """One float64 score per example, and whether its label is 1."""
    check_batch("AUC", outputs, labels)
    columns = outputs.reshape(-1, 1) if outputs.ndim == 1 else outputs
    if columns.ndim != 2 or columns.shape[1] not in (1, 2):
        raise ScoreMismatch("AUC", "outputs [examples], [examples, 1] or [examples, 2]", str(outputs.shape))
    found = one_each("AUC", labels)
    if not np.isin(found, (0, 1)).all():
        raise ScoreMismatch("AUC", "labels of 0 and 1", f"{found.min()} to {found.max()}")
    columns, positive = columns.astype(np.float64), found == 1
    with np.errstate(invalid="ignore"):
        scores = columns[:, -1] - (columns[:, 0] if columns.shape[1] == 2 else 0.0)
    return np.where(np.isnan(scores), np.where(positive, -np.inf, np.inf), scores), positive


def _code(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The leading bits of each score as float32: whole numbers in the order of the scores."""
    with np.errstate(over="ignore"):
        bits = (scores + 0.0).astype(np.float32).view(np.int32).astype(np.int64)  # -0.0 + 0.0 is 0.0
    return np.asarray(np.where(bits < 0, ~((bits & 0x7FFFFFFF) >> _DROPPED_BITS), bits >> _DROPPED_BITS))


def _bins(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    mirrored = (scores > 0.5) & (scores < 1)
    code = _code(np.where(mirrored, 1 - scores, scores))
    above = np.where(scores >= 1, code + 2 * _HALF - _ONE + 1, code)
    return np.where(mirrored, 2 * _HALF - code, above) - _LOWEST


_LOWEST, _HALF, _ONE, _HIGHEST = (int(code) for code in _code(np.array([-np.inf, 0.5, 1.0, np.inf])))
_BINS = -(-(_HIGHEST + 2 * _HALF - _ONE + 2 - _LOWEST) // _BLOCK) * _BLOCK
