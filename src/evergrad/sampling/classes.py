"""Every class alike, however rare it is in the history."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import ConfigError
from evergrad.sampling.base import Examples, Ids, choose, restore, save

_CHUNK = 1 << 16


@dataclass
class ClassBalanced:
    """Every class in the history gives equally many examples, to within one; uniform in a class, without replacement.

    Where a class has too few, all of them are drawn and the others share the rest; which classes give one more is
    random. The classes are the values of the column y: one integer, boolean or string an example. Each label is read
    once, when its example is first among those that may be drawn; after `load_state_dict` all are read once more.

    Args:
        seed: equal seeds draw equal examples.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._begin()

    def _begin(self) -> None:
        self._of: dict[Any, _Ascending] = {}
        self._first = self._end = 0

    def draw(self, examples: Examples, before: int, count: int) -> Ids:
        self._retire(examples.first)
        while self._end < before:
            self._take_in(examples, min(before, self._end + _CHUNK))
        labels = sorted(self._of)  # an order that does not depend on what came first, or is gone
        shares = self._shares(np.array([len(self._of[label]) for label in labels], dtype=np.int64), count)
        drawn = [self._of[labels[k]].draw(self._rng, int(shares[k])) for k in np.flatnonzero(shares).tolist()]
        return np.concatenate(drawn) if drawn else np.empty(0, dtype=np.int64)

    def state_dict(self) -> dict[str, Any]:
        return save("class_balanced", self._rng)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restore("class_balanced", self._rng, state)
        self._begin()

    def _retire(self, first: int) -> None:
        if first <= self._first:
            return
        self._first, self._end = first, max(first, self._end)
        for ids in self._of.values():
            ids.retire(first)
        self._of = {label: ids for label, ids in self._of.items() if len(ids)}

    def _take_in(self, examples: Examples, end: int) -> None:
        labels = _labels(examples.gather(np.arange(self._end, end), columns=["y"])["y"])
        values, which = np.unique(labels, return_inverse=True)
        order = np.argsort(which, kind="stable")
        bounds = np.searchsorted(which[order], np.arange(len(values) + 1))
        for number, label in enumerate(values.tolist()):
            ids = order[bounds[number] : bounds[number + 1]] + self._end
            self._of.setdefault(label, _Ascending()).extend(ids)
        self._end = end

    def _shares(self, sizes: Ids, count: int) -> Ids:
        shares = np.zeros_like(sizes)
        left = min(count, int(sizes.sum()))
        while left > 0:
            open_classes = np.flatnonzero(shares < sizes)
            each = left // len(open_classes)
            if each == 0:
                open_classes = open_classes[choose(self._rng, 0, len(open_classes), left)]
            given = np.minimum(max(1, each), (sizes - shares)[open_classes])
            shares[open_classes] += given
            left -= int(given.sum())
        return shares


class _Ascending:
    """Ascending ids that grow at one end and are retired at the other, both in amortised constant time."""

    def __init__(self) -> None:
        self._ids, self._start = array("q"), 0

    def __len__(self) -> int:
        return len(self._ids) - self._start

    def extend(self, ids: Ids) -> None:
        self._ids.frombytes(np.ascontiguousarray(ids, dtype=np.int64).tobytes())

    def retire(self, first: int) -> None:
        self._start = int(np.searchsorted(np.frombuffer(self._ids, dtype=np.int64), first)) if self._ids else 0
        if 2 * self._start > len(self._ids):
            del self._ids[: self._start]
            self._start = 0

    def draw(self, rng: np.random.Generator, count: int) -> Ids:
        return np.frombuffer(self._ids, dtype=np.int64)[choose(rng, self._start, len(self._ids), count)]


def _labels(y: Any) -> npt.NDArray[Any]:
    labels = np.asarray(y)
    if labels.dtype.kind not in "iubUS" or labels.size != len(labels):
        found = f"{labels.dtype} {list(labels.shape)}"
        raise ConfigError("sampler", f"class_balanced needs one class per example in the column y, not {found}")
    return labels.reshape(-1)
