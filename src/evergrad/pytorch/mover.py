"""Moves the deployed weights towards the master, one step at a time: compiled where numba is, by torch elsewhere.

Both ways choose the same elements and give the same bits.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evergrad.pytorch.bridge import as_numpy
from evergrad.pytorch.moments import Moments
from evergrad.pytorch.select import GlobalTopK, Indices, Pair, Saliency, Selector, even_step, masters_at, moves_of
from evergrad.pytorch.tables import Table, find_tables
from evergrad.update import Change, GroupChange, Section, State, Steps, Values

logger = logging.getLogger(__name__)
ValuesAs = Literal["steps", "exact", "bf16"]
COMPILABLE = (GlobalTopK, Saliency)
MOMENTS_LIE_OTHERWISE = "the optimizer's second moments are not float32, or not laid out in memory as the weights are"
COMPILED = importlib.util.find_spec("numba") is not None
_MASK = (1 << 64) - 1
_SPARE = 1024
_LEAST_MARGIN, _MOST_MARGIN = 0.003, 0.7


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """What one step moved: as sections of an update, and as the change that it made to the state."""

    sections: tuple[Section, ...]
    change: Change


def written(state: State, sections: Sequence[Section]) -> Moved | None:
    """Writes sections into a state; None where there are none. Raises CorruptRecord, and nothing is written."""
    if not sections:
        return None
    change = state.resolve(sections)
    state.commit(change)
    return Moved(tuple(sections), change)


def told_levels(levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | None:
    """As `Steps` has them: None where all are 0."""
    return levels if levels.any() else None


class Mover(Protocol):
    """Moves the deployed weights towards the master."""

    tables: Sequence[Table]
    """Embedding tables that wait to be told of each step."""

    def move(self, k: int) -> Moved | None:
        """Moves k elements at most; None where none is due. Raises NonFiniteWeights, and nothing moved."""
        ...


class ReferenceMover:
    """By torch and numpy, with any selector and any dtype.

    Args:
        pairs: what may move, ascending by offset.
        state: the deployed copy, which `pairs` are views of.
        check_finite: raises where a master is NaN or infinite.
        values: "steps": float32 elements move by powers of two of one scale; "exact": all are set to the master's
            values.
    """

    tables: Sequence[Table] = ()

    def __init__(
        self,
        pairs: Callable[[], Sequence[Pair]],
        state: State,
        check_finite: Callable[[], None],
        selector: Selector,
        values: ValuesAs,
    ) -> None:
        self._pairs, self._state, self._check_finite = pairs, state, check_finite
        self._selector, self._values = selector, values

    def move(self, k: int) -> Moved | None:
        """Moves the k elements that the selector finds due; None where none is.

        Raises:
            NonFiniteWeights: the master holds NaN or infinity; nothing moved.
        """
        self._check_finite()
        pairs = self._pairs()
        indices = self._selector.select(pairs, k)
        return self.write(pairs, indices, moves_of(pairs, indices))

    def write(self, pairs: Sequence[Pair], indices: Indices, moves: npt.NDArray[np.float32]) -> Moved | None:
        """Moves the chosen elements, whose distances are `moves`."""
        sections: list[Section] = []
        for number, group in enumerate(self._state.schema.groups):
            first, last = np.searchsorted(indices, (group.start, group.stop))
            mine = slice(int(first), int(last))
            if first == last:
                continue
            if group.dtype == "F32" and self._values == "steps":
                own = self._state.arrays[number][indices[mine] - group.start]
                kept, scale, levels = even_step(moves[mine], own)
                if len(kept):
                    sections.append(Steps(indices[mine][kept], moves[mine][kept] < 0, scale, told_levels(levels)))
            else:
                sections.append(Values(indices[mine], as_numpy(masters_at(pairs, indices[mine])), group.dtype))
        return written(self._state, sections)


class Aim:
    """From where on the next pass over the weights collects: what was not sent piles up just under the last threshold,
    and the pass starts below that by a margin, which narrows while there are more than enough candidates, and widens
    when there were too few.

    Attributes:
        threshold: elements whose score is above it are candidates; 0: all that have moved.
    """

    def __init__(self) -> None:
        self.threshold, self._margin = 0.0, 0.1

    def learn(self, seen: int, k: int) -> None:
        """Takes note of how many candidates a pass from the threshold on has seen."""
        if seen < k:
            self._margin = min(_MOST_MARGIN, 2 * self._margin)
        elif 2 * seen > 3 * k:
            self._margin = max(_LEAST_MARGIN, 0.85 * self._margin)

    def reach(self, least: float) -> None:
        """Takes note of the smallest score among the best k; 0: there were fewer than k."""
        self.threshold = self.below(least)

    def below(self, score: float) -> float:
        """What lies under `score` by the margin."""
        return (1 - self._margin) * score


def move_best(
    state: State,
    group: int,
    positions: Indices,
    moves: npt.NDArray[np.float32],
    olds: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    count: int,
    k: int,
) -> tuple[Moved | None, float]:
    """Moves one float32 group of `state` by an even step at the best k of all candidates, by compiled code.

    Args:
        positions, moves, olds, scores: the candidates' places in the group, ascending, distances, deployed values and
            scores; the first `count` count.

    Returns:
        What moved, None where nothing did; and the smallest score among the best k, 0 where there were fewer.
    """
    from evergrad.pytorch import kernels

    first = state.schema.groups[group].start
    found = kernels.move(positions, moves, olds, scores, count, k, state.arrays[group], first)
    positions, old, new, negative, scale, levels, shift, least = found
    if not len(positions):
        return None, float(least)
    after = (state.digest + int(shift)) & _MASK
    change = Change((GroupChange(group, positions, old, new),), state.digest, after)
    state.digest = after
    steps = Steps(positions + first, negative, float(scale), told_levels(levels))
    return Moved((steps,), change), float(least)


class CompiledMover:
    """By numba: one pass over float32 tensors where they lie (see `kernels`).

    Args:
        selector: `GlobalTopK` or `Saliency`.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        state: State,
        check_finite: Callable[[], None],
        reference: ReferenceMover,
        values: ValuesAs,
        tables: Sequence[Table],
        selector: Selector,
    ) -> None:
        from evergrad.pytorch import kernels

        self._kernels, self._pairs, self._state = kernels, pairs, state
        self._check_finite, self._reference, self._values = check_finite, reference, values
        self._group, group = next((n, g) for n, g in enumerate(state.schema.groups) if g.dtype == "F32")
        self._first, self._deployed = group.start, state.arrays[self._group]
        self._staged: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._moments = Moments(pairs, selector, walks)
        self._aim, self._seen = Aim(), 0
        self.tables = tables
        by_name = {table.pair.name: table for table in tables}
        self._parts: list[npt.NDArray[np.int64] | Table] = [
            by_name.get(pair.name) or self._units(pair) for pair in pairs
        ]
        # Without tables every step scans the same.
        self._all = np.empty((0, self._kernels.COLUMNS), np.int64) if tables else self._units_due()
        self._make_room(0)

    def _units(self, pair: Pair) -> npt.NDArray[np.int64]:
        """Runs of elements as the kernel scans them: see `kernels.scan`."""
        master, shape = pair.master, transposed_shape(pair.master)
        if shape is None and not master.is_contiguous():
            master = torch.empty(master.shape, dtype=torch.float32, device="cpu")
            self._staged.append((master, pair.master))
        address, position, size = master.data_ptr(), pair.offset - self._first, pair.master.numel()
        if shape is None:
            starts = np.arange(0, size, self._kernels.UNIT, dtype=np.int64)
            units = np.zeros((len(starts), self._kernels.COLUMNS), np.int64)
            units[:, 0], units[:, 1] = address + 4 * starts, position + starts
            units[:, 2] = np.minimum(self._kernels.UNIT, size - starts)
            return units
        outer, channels, inner = shape
        rows = max(1, self._kernels.UNIT // inner)
        firsts = np.arange(0, channels, rows, dtype=np.int64)
        units = np.zeros((outer, len(firsts), self._kernels.COLUMNS), np.int64)
        blocks = np.arange(outer, dtype=np.int64)[:, None] * (channels * inner)
        units[:, :, 0], units[:, :, 1] = address + 4 * blocks, position + blocks + firsts * inner
        units[:, :, 2] = np.minimum(rows, channels - firsts) * inner
        units[:, :, 3], units[:, :, 4], units[:, :, 5] = channels, inner, firsts
        return units.reshape(-1, self._kernels.COLUMNS)

    def _units_due(self) -> npt.NDArray[np.int64]:
        return np.concatenate([self._rows(part) if isinstance(part, Table) else part for part in self._parts])

    def _rows(self, table: Table) -> npt.NDArray[np.int64]:
        """The rows of a table that are due, each run of them a unit."""
        (starts, stops), width = table.due(), table.pair.master.shape[1]
        units = np.zeros((len(starts), self._kernels.COLUMNS), np.int64)
        units[:, 0] = table.pair.master.data_ptr() + 4 * width * starts
        units[:, 1] = table.pair.offset - self._first + width * starts
        units[:, 2] = width * (stops - starts)
        self._point_at_squares(units, table.pair)
        return units

    def _point_at_squares(self, units: npt.NDArray[np.int64], pair: Pair) -> None:
        squares = self._moments.addresses[pair.name]
        units[:, 6] = units[:, 0] - pair.master.data_ptr() + squares if squares else 0

    def _point(self) -> None:
        for pair, part in zip(self._pairs, self._parts, strict=True):
            if not isinstance(part, Table):
                self._point_at_squares(part, pair)
        if not self.tables:
            self._all = self._units_due()

    def move(self, k: int) -> Moved | None:
        """As `ReferenceMover.move`."""
        if not self._moments.look(self._point):
            say_that_torch_selects(MOMENTS_LIE_OTHERWISE)
            return self._reference.move(k)
        for straight, master in self._staged:
            straight.copy_(master)
        if self.tables:
            self._all = self._units_due()
        threshold = self._aim.threshold
        count = self._scan(k, threshold)
        if count >= 0 and threshold:
            count = self._enough(count, k)
        if count < 0:  # the kernel saw NaN, an infinity, or a difference that is one
            self._check_finite()
            return self._reference.move(k)
        if self._values == "exact":
            best, moves, _, least = self._kernels.best(*self._candidates, count, k)
            moved = self._reference.write(self._pairs, best + self._first, moves)
        else:
            moved, least = move_best(self._state, self._group, *self._candidates, count, k)
        self._aim.reach(float(least))
        return moved

    def _enough(self, count: int, k: int) -> int:
        """How many candidates there are, or are after another pass where they were fewer than k."""
        self._aim.learn(self._seen if count >= k else count, k)
        if count >= k:
            return count
        again = self._scan(k, self._aim.below(self._aim.threshold))
        return self._scan(k, 0.0) if 0 <= again < k else again

    def _make_room(self, room: int) -> None:
        moves, olds, scores = (np.empty(room, np.float32) for _ in range(3))
        self._candidates = np.empty(room, np.int64), moves, olds, scores

    def _scan(self, k: int, threshold: float) -> int:
        """How many candidates are in the buffers; -1 where something is not finite."""
        room = k + k // 2 + _SPARE
        if len(self._candidates[0]) < room:
            self._make_room(room)
        count, self._seen, bad = self._kernels.scan(self._all, self._deployed, threshold, k, *self._candidates)
        return -1 if bad >= 0 else int(count)


def walks(tensor: torch.Tensor) -> bool:
    """Whether the scan reads a tensor where it lies."""
    return tensor.is_contiguous() or transposed_shape(tensor) is not None


def transposed_shape(tensor: torch.Tensor) -> tuple[int, int, int] | None:
    """Where a tensor lies in memory as [outer, inner, channels] and reads as [outer, channels, inner]: that shape.

    channels_last weights do, and transposed matrices, with an outer side of 1. None: any other order.

    >>> transposed_shape(torch.empty(8, 3, 2, 2).to(memory_format=torch.channels_last))
    (8, 3, 4)
    >>> transposed_shape(torch.empty(5, 7).t()), transposed_shape(torch.empty(5, 7))
    ((1, 7, 5), None)
    """
    if tensor.is_contiguous() or tensor.ndim < 2:
        return None
    straight = tensor.movedim(1, -1) if tensor.ndim > 2 else tensor.t()
    if not straight.is_contiguous():
        return None
    if tensor.ndim == 2:
        return 1, tensor.shape[0], tensor.shape[1]
    return tensor.shape[0], tensor.shape[1], tensor[0, 0].numel()


def make_mover(
    pairs: Callable[[], Sequence[Pair]],
    state: State,
    check_finite: Callable[[], None],
    selector: Selector,
    values: ValuesAs,
    model: nn.Module,
) -> Mover:
    """The fastest mover that can do what is asked.

    Args:
        model: whose embedding tables are scanned by the rows that are due, where code is compiled.
    """
    reference = ReferenceMover(pairs, state, check_finite, selector, values)
    found = pairs()
    if type(selector) not in COMPILABLE or not found or any(pair.master.dtype != torch.float32 for pair in found):
        return reference
    if not COMPILED:
        say_that_torch_selects("numba is not installed: pip install numba")
        return reference
    return CompiledMover(found, state, check_finite, reference, values, find_tables(model, found), selector)


@functools.cache
def say_that_torch_selects(why: str) -> None:
    """Once in a process: every publisher in it does the same."""
    logger.warning("torch selects, which is slower: %s", why)
