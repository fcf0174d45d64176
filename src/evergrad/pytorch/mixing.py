"""Forms training batches: new examples, and old ones that a sampler draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evergrad.errors import ConfigError
from evergrad.history import History
from evergrad.pytorch.bridge import batch_tensors
from evergrad.sampling import Sampler
from evergrad.stateful import Stateful, load_all, states_of

Ids = npt.NDArray[np.int64]
Columns = dict[str, Any]
Transform = Callable[[Columns], Mapping[str, Any]]
"""Makes the columns x and y of a batch from those of the history: augmentation, or features computed anew.

What it remembers, such as a random generator of its own, is kept in checkpoints where it is `Stateful`.
"""
_TRIES = 8


class Mixer:
    """Draws, gathers and transforms.

    Args:
        history: where examples are.
        sampler: which old ones join.
        batch_size: new and old examples together; new ones all join, even where they are more.
        join_new: False: new examples take their chance among all others.
        transform_new, transform_old: applied to the gathered columns of new and of old examples; None: as they are.
        prefetch: the old examples of the next batch are drawn with this one (from all but those that will be new), and
            gathered and transformed on a thread meanwhile. A `transform_old` that draws from the same generators as the
            model (torch's or numpy's global one) makes runs that cannot be repeated.
    """

    def __init__(
        self,
        history: History,
        sampler: Sampler,
        batch_size: int,
        *,
        join_new: bool = True,
        transform_new: Transform | None = None,
        transform_old: Transform | None = None,
        prefetch: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ConfigError("batch_size", f"must be 1 or more, not {batch_size}")
        self._history, self.sampler, self._batch_size, self._join_new = history, sampler, batch_size, join_new
        self._transform_new, self._transform_old = transform_new, transform_old
        self._thread = ThreadPoolExecutor(1, "evergrad-prefetch") if prefetch else None
        self._ahead: tuple[Ids, Future[Columns]] | None = None
        self._excluded = history.excluded_ranges

    def batch(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor, Ids]:
        """x, y and the ids of a batch whose new examples have the ids [first, last); new ones come first."""
        new = np.arange(first, last, dtype=np.int64) if self._join_new else np.empty(0, np.int64)
        new = self._without_excluded(new)
        wanted = max(0, self._batch_size - len(new))
        before = first if self._join_new else last
        if self._thread is None:
            old = self._draw(before, wanted, last)
            x, y = batch_tensors(self._columns(new, old))
        else:
            old, columns = self._prefetched(before, wanted, last)
            x, y = batch_tensors(_joined(self._columns(new, old[:0]), columns))
            self._fetch(self._draw(last, wanted, last))
        return x, y, np.concatenate((new, old))

    def _draw(self, before: int, count: int, end: int) -> Ids:
        """Up to `count` different ids below `before`, none of them excluded; `end`: the next id at that time."""
        then = _Then(self._history, self._history.first_at(end))
        found = self._without_excluded(self.sampler.draw(then, before, count))
        for _ in range(_TRIES if self._excluded else 0):
            if len(found) >= count:
                break
            more = self._without_excluded(self.sampler.draw(then, before, count))
            found = np.concatenate((found, more[~np.isin(more, found)]))
        return found[:count]

    def _without_excluded(self, ids: Ids) -> Ids:
        if not self._excluded:
            return ids
        edges = np.array(self._excluded, dtype=np.int64).reshape(-1)
        kept: Ids = ids[np.searchsorted(edges, ids, side="right") % 2 == 0]
        return kept

    def exclude(self, first: int, last: int) -> None:
        """Draws the ids [first, last) no more; what was drawn ahead is let go."""
        self._history.exclude(first, last)
        self._excluded, self._ahead = self._history.excluded_ranges, None

    def settle(self) -> None:
        """Before the history grows: what is being fetched is fetched, and all that is excluded by now counts."""
        if self._ahead is not None:
            wait([self._ahead[1]])
        self._excluded = self._history.excluded_ranges

    def _columns(self, new: Ids, old: Ids) -> Columns:
        if self._transform_new is None and self._transform_old is None:
            return self._history.gather(np.concatenate((new, old)))
        return _joined(
            _transformed(self._history.gather(new), self._transform_new, len(new)),
            _transformed(self._history.gather(old), self._transform_old, len(old)),
        )

    def _prefetched(self, before: int, wanted: int, end: int) -> tuple[Ids, Columns]:
        if self._ahead is None or len(self._ahead[0]) != wanted:
            self._fetch(self._draw(before, wanted, end))
        if self._ahead is None:
            raise RuntimeError("nothing was fetched")
        ids, columns = self._ahead
        self._ahead = None
        return ids, columns.result()

    def _fetch(self, ids: Ids) -> None:
        if self._thread is not None:
            self._ahead = ids, self._thread.submit(self._columns, ids[:0], ids)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state and the transforms', what was fetched ahead, and what is excluded.

        While batches are learned from again, those count that were excluded then.
        """
        ahead = None if self._ahead is None else (self._ahead[0], self._ahead[1].result())
        return {
            "sampler": self.sampler.state_dict(),
            "transforms": states_of(self._stateful()),
            "ahead": ahead,
            "excluded": self._excluded,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Draws on from there."""
        self.sampler.load_state_dict(state["sampler"])
        load_all(self._stateful(), state["transforms"])
        self._excluded, self._ahead = tuple(tuple(span) for span in state["excluded"]), None
        if state["ahead"] is not None:
            fetched: Future[Columns] = Future()
            fetched.set_result(state["ahead"][1])
            self._ahead = state["ahead"][0], fetched

    def _stateful(self) -> dict[str, Stateful]:
        named: dict[str, object] = {"new": self._transform_new, "old": self._transform_old}
        return {name: each for name, each in named.items() if isinstance(each, Stateful)}

    def close(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)


class _Then:
    """A history as a sampler saw it: with what was within its limits."""

    def __init__(self, history: History, first: int) -> None:
        self._history, self.first = history, first

    def gather(self, ids: Ids, columns: Sequence[str] | None = None) -> Columns:
        return self._history.gather(ids, columns)

    def since(self, arrived_us: int) -> int:
        return max(self.first, self._history.since(arrived_us))

    def arrived_us(self, ids: Ids) -> Ids:
        return self._history.arrived_us(ids)


def _transformed(columns: Columns, transform: Transform | None, count: int) -> Columns:
    if transform is None or not count:
        return columns
    return dict(transform(columns))


def _joined(new: Columns, old: Columns) -> Columns:
    parts = [part for part in (new, old) if len(part.get("x", ()))] or [new]
    return {name: np.concatenate([part[name] for part in parts]) for name in ("x", "y")}
