"""Labels that come back to a server, joined with what it answered, on disk where a trainer follows them.

    answers ──> DIR/served (every worker its own) ──┐
    POST .../feedback, to any worker ───────────────┴─ Join ──> DIR/joined ──> `FeedbackStream`, in `evergrad run`

Every worker reads what all have answered and joined, and joins the labels that come to it: the kernel sends them to
whom it likes, and a worker that dies takes nothing along. Who joins holds the lock on DIR/turn, so an example is
written once, and the order in which a trainer sees them is that of DIR/joined, for ever. A worker's memory holds the
ids and places of at most `limit` requests; inputs and outputs stay on disk.

What the death of a worker leaves, at any point: an answer that was given is in DIR/served; feedback that was
acknowledged is in DIR/joined, whole; feedback that was not is there whole, or not at all, and may be sent again: what
was joined already is a duplicate, and counted as that. A loss of power takes what the kernel had not written out yet,
of the newest. A full disk refuses feedback, and answers are given without being noted.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evergrad.errors import ConfigError, HistoryError, HistoryMismatch, HistoryUnavailable, RequestNotHeld
from evergrad.history import History, Ragged
from evergrad.serve.spool import SERVED, Answered, Spool, Spools
from evergrad.serve.tensors import Array
from evergrad.stream.feedback import JOINED
from evergrad.stream.late import Join, JoinStats

logger = logging.getLogger(__name__)
_COLUMNS = ("x", "y", "outputs")
_TURN_S = 5.0
_TOGETHER_US = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """Where labels go, and how long a request waits for them.

    Attributes:
        path: a folder, of this server alone.
        timeout_s: how long an answered request waits for its labels, in seconds, and a second more at most; they are of
            no known request then.
        limit: how many wait at most, and how many rows each worker keeps; the oldest makes room for the newest.

    Raises:
        ConfigError: a value out of range.
    """

    path: Path
    timeout_s: float = 3600.0
    limit: int = 100_000

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < 1e9:
            raise ConfigError("feedback.timeout_s", f"must be above 0 and finite, not {self.timeout_s}")
        if self.limit < 1:
            raise ConfigError("feedback.limit", f"must be 1 or more, not {self.limit}")


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one piece of feedback.

    Attributes:
        joined: requests whose labels these are, or examples; each is one or more rows.
        duplicates: requests that had their labels already.
        batch: the batch's number in the stream; None where nothing was new.
    """

    joined: int
    duplicates: int
    batch: int | None


class Labelling:
    """One worker's part of it; any thread may use it.

    Raises:
        HistoryUnavailable: the folder cannot be written. HistoryDamaged: what is in it cannot be read.
    """

    def __init__(self, feedback: Feedback, worker: int = 0, clock: Callable[[], float] = time.time) -> None:
        root, kept = feedback.path, {"timeout_s": feedback.timeout_s, "limit": feedback.limit}
        self._root, self._clock = root, clock
        try:
            (root / SERVED).mkdir(parents=True, exist_ok=True)
            self._turn = os.open(root / "turn", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise HistoryUnavailable(str(root), str(error)) from error
        self._spool = Spool(root / SERVED, worker, **kept, clock=clock)  # type: ignore[arg-type]
        self._spools, self._lock = Spools(root / SERVED), threading.Lock()
        self._join = Join(**kept)  # type: ignore[arg-type]
        self._joined = History(root / JOINED, read_only=True)
        self._seen = 0
        self._closed = False

    def served(self, request_id: str, x: Array, outputs: Array) -> bool:
        """Notes an answer; see `Spool.add`. Called before the answer is given."""
        return self._spool.add(request_id, x, outputs)

    def label(self, labels: Sequence[tuple[str, Array]]) -> Taken:
        """Joins labels with what was served, all or none of them.

        Args:
            labels: of each request its id and its labels, [rows, ...]: one for each row of its input.

        Raises:
            RequestNotHeld: one is of no request that waits.
            HistoryMismatch: labels of another length than the input, or of another dtype or shape than those before.
            HistoryUnavailable: the disk refused; nothing was taken in, and it may be sent again.
        """
        with self._lock, self._my_turn():
            self._catch_up()
            now, found, duplicates = self._clock(), dict[str, tuple[Array, Array, Array]](), 0
            unknown = []
            for name, y in labels:
                if name in found or self._join.was_joined(name):
                    duplicates += 1
                    continue
                place = self._join.waiting(name, now)
                rows = None if place is None else self._spools.rows(place)
                if rows is None:
                    unknown.append(name)
                    continue
                if y.ndim < 1 or len(y) != len(rows[0]):
                    raise HistoryMismatch("y", f"{len(rows[0])} rows, as the input of {name!r}", f"shape {y.shape}")
                found[name] = (rows[0], y, rows[1])
            if unknown:
                raise RequestNotHeld(unknown[0][:80], len(unknown), len(labels))
            if not found:
                return Taken(0, duplicates, None)
            names = [name for name, rows in found.items() for _ in range(len(rows[0]))]
            x, y, outputs = (_together(part, [rows[at] for rows in found.values()]) for at, part in enumerate(_COLUMNS))
            batch = self._append(names, x, y, outputs)
            self._join.labelled(list(found), np.zeros(len(found)), now)
            return Taken(len(found), duplicates, batch)

    def example(self, x: Array, y: Array, outputs: Array) -> Taken:
        """Takes in examples with their labels, and the outputs that would have been served for them.

        Args:
            x, y, outputs: [examples, ...].

        Raises:
            HistoryMismatch, HistoryUnavailable: as for `label`.
        """
        count = len(x) if x.ndim else 0
        for part, array in (("x", x), ("y", y), ("outputs", outputs)):
            if not count or array.ndim < 1 or len(array) != count:
                raise HistoryMismatch(part, f"{count or 'one or more'} rows", f"shape {array.shape}")
        with self._lock, self._my_turn():
            self._catch_up()
            return Taken(count, 0, self._append([""] * count, x, y, outputs))

    def stats(self) -> JoinStats:
        """Counts of all workers' answers, from the oldest that is still on disk on; see `JoinStats`."""
        with self._lock:
            if not self._closed:
                try:
                    self._catch_up()
                    self._join.waiting("", self._clock())  # what has timed out by now is gone
                except HistoryError as error:
                    logger.warning("feedback: %s", error)
            return self._join.stats()

    def close(self) -> None:
        """Closes its files; all that it took in is on disk."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._spool.close()
                self._spools.close()
                self._joined.close()
                os.close(self._turn)

    def _append(self, names: list[str], x: Array, y: Array, outputs: Array) -> int:
        with History(self._root / JOINED, clock=self._clock) as joined:
            joined.append({"id": Ragged.from_rows(names), "x": x, "y": y, "outputs": outputs})
            self._seen = joined.end
            return joined.batches - 1

    def _catch_up(self) -> None:
        """Takes in what all workers have answered and joined since, in the order of time."""
        answered = self._spools.new()
        events: list[tuple[int, bool, Answered | str]] = [(each.arrived_us, False, each) for each in answered]
        end = self._joined.refresh()
        if end > self._seen:
            rows = np.arange(self._seen, end)
            ids, arrived = self._joined.gather(rows, ["id"])["id"], self._joined.arrived_us(rows)
            events += [(int(arrived[at]), True, ids.row(at)) for at in range(len(rows)) if ids.row(at)]
            self._seen = end
        events.sort(key=lambda event: event[:2])
        waiting: list[Answered] = []
        for arrived_us, joined, what in events:
            if waiting and (joined or arrived_us - waiting[0].arrived_us > _TOGETHER_US):
                self._predicted(waiting)
                waiting = []
            if isinstance(what, Answered):
                waiting.append(what)
            else:
                self._join.labelled([what], np.zeros(1), arrived_us / 1e6)
        if waiting:
            self._predicted(waiting)

    def _predicted(self, answered: list[Answered]) -> None:
        places = np.array([each.place for each in answered], np.int64)
        none = np.zeros((len(answered), 0))
        self._join.predicted([each.id for each in answered], places, none, answered[-1].arrived_us / 1e6)

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        """The lock on joining, between processes."""
        import fcntl

        if self._closed:
            raise HistoryUnavailable(str(self._root), "it is closed")
        deadline = time.monotonic() + _TURN_S
        while True:
            try:
                fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise HistoryUnavailable(str(self._root), "another process does not let go of it") from error
                time.sleep(0.0005)
            except OSError as error:
                raise HistoryUnavailable(str(self._root), str(error)) from error
        try:
            yield
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)


def _together(part: str, arrays: list[Array]) -> Array:
    first = arrays[0]
    for array in arrays:
        if (array.dtype, array.shape[1:]) != (first.dtype, first.shape[1:]):
            raise HistoryMismatch(part, f"rows of {first.dtype} {first.shape[1:]}", f"{array.dtype} {array.shape[1:]}")
    return np.concatenate(arrays)
