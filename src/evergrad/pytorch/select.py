"""Which elements to send, and how far they move: the torch reference of `kernels`, and the ways to choose.

A selector is one method; `GlobalTopK` and `Saliency` have a compiled form, which gives the same elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evergrad.codec.streams import MAX_LEVEL
from evergrad.errors import ConfigError

Indices = npt.NDArray[np.int64]
SALIENCY_EPS = 1e-8  # as in `kernels`
_SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "sum")
LEAST_LEVEL = 0.75 / 32  # as in `kernels`


@dataclass(frozen=True, slots=True)
class Pair:
    """One tensor's two copies.

    Attributes:
        parameter: what the optimizer knows it by.
        master, deployed: of one shape, dtype and device; the deployed one is row-major.
        offset: the flat index of its first element.
    """

    name: str
    parameter: nn.Parameter
    master: torch.Tensor
    deployed: torch.Tensor
    offset: int


class Selector(Protocol):
    """Chooses which elements move at a step."""

    def select(self, pairs: Sequence[Pair], k: int) -> Indices:
        """Flat indices, ascending, each once, of elements whose master and deployed values differ.

        Args:
            pairs: ascending by offset; finite.
            k: how many are due, at least 1.
        """
        ...


class GlobalTopK:
    """The k largest |master - deployed| of all tensors; of equal ones, those of the lowest index."""

    def select(self, pairs: Sequence[Pair], k: int) -> Indices:
        return _best_of_all(pairs, k, [None] * len(pairs))


class Saliency:
    """The k elements of all tensors whose arrival at the deployed copy is worth most to the loss, to first order.

    That worth is the gradient that has piled up times the distance; in a step of Adam and its kin a distance is a
    gradient over the square root of the second moment v, so it is about (master - deployed)^2 * sqrt(v). The score is
    its square root, |master - deployed| * sqrt(sqrt(v) + 1e-8): the largest, and of equal ones those of the lowest
    index. Where the optimizer keeps no second moments (SGD), or not of all that it steps (Adafactor), the score is
    `GlobalTopK`'s.

    Args:
        optimizer: the publisher's, of whose state `exp_avg_sq` is read (`square_avg` of RMSprop, `sum` of Adagrad).
            Tensors that it has not stepped yet count plainly.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def second_moments(self, pairs: Sequence[Pair]) -> list[torch.Tensor | None]:
        """Of each pair, in the master's shape; None: it has none."""
        states = [self._optimizer.state.get(pair.parameter, {}) for pair in pairs]
        found = [next((state[name] for name in _SECOND_MOMENTS if name in state), None) for state in states]
        if any(state and squares is None for state, squares in zip(states, found, strict=True)):
            return [None] * len(pairs)  # beside those with a weight, the others would always come first
        return [squares.detach() if isinstance(squares, torch.Tensor) else None for squares in found]

    def select(self, pairs: Sequence[Pair], k: int) -> Indices:
        return _best_of_all(pairs, k, self.second_moments(pairs))


class LayerTopK:
    """Of each tensor its share of k, the largest |master - deployed|; at least one of each that has moved."""

    def select(self, pairs: Sequence[Pair], k: int) -> Indices:
        total = max(1, sum(pair.master.numel() for pair in pairs))
        found = []
        for pair in pairs:
            size = pair.master.numel()
            scores = torch.empty(size, dtype=torch.float32, device=pair.master.device)
            _score(pair, scores)
            found.append(top_k(scores, max(1, round(k * size / total))).cpu().numpy() + pair.offset)
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


class RandomK:
    """k elements, all with the same chance; those among them that have not moved are left out.

    Args:
        seed: equal seeds choose equal elements.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)

    def select(self, pairs: Sequence[Pair], k: int) -> Indices:
        total = sum(pair.master.numel() for pair in pairs)
        drawn = np.sort(self._random.choice(total, min(k, total), replace=False, shuffle=False))
        indices = _flat(drawn, pairs)
        moved: Indices = indices[moves_of(pairs, indices) != 0]
        return moved

    def state_dict(self) -> dict[str, Any]:
        """The state of its generator."""
        return {"random": self._random.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Draws on from there."""
        self._random.bit_generator.state = state["random"]


class Threshold:
    """All elements whose |master - deployed| is above a fixed bound, however many these are.

    Args:
        bound: positive.

    Raises:
        ConfigError: it is not.
    """

    def __init__(self, bound: float) -> None:
        if not bound > 0:
            raise ConfigError("bound", f"must be positive, not {bound}")
        self._bound = bound

    def select(self, pairs: Sequence[Pair], k: int) -> Indices:  # noqa: ARG002
        found = []
        for pair in pairs:
            scores = torch.empty(pair.master.numel(), dtype=torch.float32, device=pair.master.device)
            _score(pair, scores)
            found.append((scores > self._bound).nonzero().squeeze(1).cpu().numpy() + pair.offset)
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _device(pairs: Sequence[Pair]) -> torch.device:
    return pairs[0].master.device if pairs else torch.device("cpu")


def _best_of_all(pairs: Sequence[Pair], k: int, squares: Sequence[torch.Tensor | None]) -> Indices:
    sizes = [pair.master.numel() for pair in pairs]
    scores = torch.empty(sum(sizes), dtype=torch.float32, device=_device(pairs))
    for pair, own, target in zip(pairs, squares, torch.split(scores, sizes), strict=True):
        _score(pair, target)
        if own is not None:
            target.mul_(own.reshape(-1).float().sqrt().add_(SALIENCY_EPS).sqrt_())
    return _flat(top_k(scores, k).cpu().numpy(), pairs)


def _score(pair: Pair, target: torch.Tensor) -> None:
    torch.sub(pair.master.detach().reshape(-1), pair.deployed.reshape(-1), out=target)
    target.abs_()


def _flat(chosen: Indices, pairs: Sequence[Pair]) -> Indices:
    """Flat indices of positions among the elements of `pairs`, one after another."""
    ends = np.cumsum([pair.master.numel() for pair in pairs], dtype=np.int64)
    shifts = np.array([pair.offset for pair in pairs], dtype=np.int64) - np.concatenate(([0], ends[:-1]))
    indices: Indices = chosen + shifts[np.searchsorted(ends, chosen, side="right")]
    return indices


def _gather(
    pairs: Sequence[Pair], indices: Indices, values: Callable[[Pair, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    parts = []
    for pair in pairs:
        first, last = np.searchsorted(indices, (pair.offset, pair.offset + pair.master.numel()))
        if first < last:
            positions = torch.from_numpy(indices[first:last] - pair.offset).to(pair.master.device)
            parts.append(values(pair, positions))
    return torch.cat(parts).cpu() if parts else torch.empty(0)


def moves_of(pairs: Sequence[Pair], indices: Indices) -> npt.NDArray[np.float32]:
    """master - deployed at ascending flat `indices`, rounded to float32."""
    gathered = _gather(pairs, indices, lambda pair, at: _at(pair.master, at).sub(_at(pair.deployed, at)).float())
    moves: npt.NDArray[np.float32] = gathered.numpy()
    return moves


def masters_at(pairs: Sequence[Pair], indices: Indices) -> torch.Tensor:
    """The masters at ascending flat `indices`, all of one dtype, on the CPU."""
    return _gather(pairs, indices, lambda pair, at: _at(pair.master, at))


def _at(tensor: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Elements at row-major positions, of a tensor that may lie in memory in another order."""
    tensor = tensor.detach()
    if tensor.is_contiguous():
        return tensor.view(-1)[positions]
    return tensor[tuple(torch.unravel_index(positions, tensor.shape))]


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


def even_step(
    moves: npt.NDArray[np.float32], deployed: npt.NDArray[np.float32]
) -> tuple[Indices, float, npt.NDArray[np.uint8]]:
    """Which of the chosen elements move, and how far: by the power of two of one scale that is nearest to the distance.

    The scale is such that they move as far as they are away, in sum. Only what that brings closer moves: without this
    condition, elements nearer than half their step are overshot, and those whose half ulp is larger do not move at all:
    both are chosen again and again, for ever.

    Args:
        moves: master - deployed of the chosen elements, not zero; infinite ones, of finite numbers, stay.
        deployed: their deployed values.

    Returns:
        Positions in `moves`, ascending, the scale, and the level of each; no positions where no float32 is closer.

    >>> even_step(np.float32([8, -7, 9, 1]), np.zeros(4, np.float32))
    (array([0, 1, 2, 3]), 1.0, array([3, 3, 3, 0], dtype=uint8))
    """
    sizes = np.abs(moves).astype(np.float64)
    kept = np.flatnonzero(np.isfinite(moves))
    while len(kept):
        # A running sum, from the first to the last: numpy's own order of addition differs between versions.
        total = np.cumsum(sizes[kept])[-1]
        levels = levels_of(sizes[kept], total / len(kept))
        scale = np.float32(total / np.cumsum(np.ldexp(1.0, levels.astype(np.int64)))[-1])
        closer = _closer(moves[kept], deployed[kept], np.ldexp(scale, levels.astype(np.int32)))
        if closer.all():
            return kept, float(scale), levels
        # The largest alone is the last resort: its own distance is a step that it can take.
        largest = sizes[kept] == sizes[kept].max()
        kept = kept[closer] if closer.any() else kept[largest & ~largest.all()]
    return kept, 0.0, np.empty(0, np.uint8)


def levels_of(sizes: npt.NDArray[np.float64], mean: float) -> npt.NDArray[np.uint8]:
    """Powers of two that distances are nearest to, the lowest 0; what is below a 32nd of their mean counts as that."""
    _, exponents = np.frexp(sizes / (mean * LEAST_LEVEL))
    levels = np.clip(exponents - 1, 0, MAX_LEVEL).astype(np.uint8)
    found: npt.NDArray[np.uint8] = levels - levels.min()
    return found


def _closer(moves: npt.NDArray[Any], deployed: npt.NDArray[Any], steps: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    with np.errstate(over="ignore", invalid="ignore"):
        after = deployed + np.where(moves < 0, -steps, steps)
        rest = moves.astype(np.float64) - (after.astype(np.float64) - deployed)
    result: npt.NDArray[np.bool_] = np.abs(rest) < np.abs(moves)
    return result
