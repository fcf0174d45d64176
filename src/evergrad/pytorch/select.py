"""Which elements to send: the torch reference."""

from __future__ import annotations

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
