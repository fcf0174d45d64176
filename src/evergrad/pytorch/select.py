"""Which elements to send, and how far they move: the torch reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def top_k(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The indices of the `k` largest positive scores, ascending; of equal ones, those of the lowest index.

    Exact, and the same on every platform: which of several equal scores `torch.topk` gives is not defined, so only its
    threshold is used.

    Args:
        scores: one-dimensional, no NaN.
        k: how many at most; fewer are given where fewer are positive.

    >>> top_k(torch.tensor([1.0, 3.0, 0.0, 3.0, 3.0]), 2)
    tensor([1, 3])
    """
    if k >= scores.numel():
        return (scores > 0).nonzero().squeeze(1)
    threshold = torch.topk(scores, k, sorted=False).values.min()
    if threshold <= 0:
        return (scores > 0).nonzero().squeeze(1)
    above = (scores > threshold).nonzero().squeeze(1)
    equal = (scores == threshold).nonzero().squeeze(1)[: k - above.numel()]
    return torch.cat((above, equal)).sort().values


def even_step(moves: npt.NDArray[np.float32], deployed: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], float]:
    """Which of the chosen elements move, all by one scale: their mean distance, and only where it brings them closer.

    Without the second condition, elements nearer than half the scale are overshot, and those whose half ulp is larger
    do not move at all: both are chosen again and again, for ever.

    Args:
        moves: master - deployed of the chosen elements, finite, not zero.
        deployed: their deployed values.

    Returns:
        Positions in `moves`, ascending, and the scale; no positions where no float32 is closer.

    >>> even_step(np.float32([8, -7, 9, 1]), np.zeros(4, np.float32))
    (array([0, 1, 2]), 8.0)
    """
    sizes = np.abs(moves).astype(np.float64)
    kept = np.arange(len(moves))
    while len(kept):
        scale = np.float32(sizes[kept].mean())
        closer = _closer(moves[kept], deployed[kept], scale)
        if closer.all():
            return kept, float(scale)
        # The largest alone is the last resort: its own distance is a step that it can take.
        largest = sizes[kept] == sizes[kept].max()
        kept = kept[closer] if closer.any() else kept[largest & ~largest.all()]
    return kept, 0.0


def _closer(moves: npt.NDArray[Any], deployed: npt.NDArray[Any], scale: np.float32) -> npt.NDArray[np.bool_]:
    with np.errstate(over="ignore"):
        after = deployed + np.where(moves < 0, -scale, scale)
    rest = moves.astype(np.float64) - (after.astype(np.float64) - deployed)
    result: npt.NDArray[np.bool_] = np.abs(rest) < np.abs(moves)
    return result
