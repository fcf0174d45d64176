"""Labels that come later than the predictions that they judge, joined by request id.

predicted(ids, x, outputs) ──> waiting ──┬─ labelled(ids, y) ──> Batch(x, y, outputs): joined
                                         ├─ time-out ──────────> expired
                                         └─ limit ─────────────> dropped, the oldest first
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import ConfigError, JoinMismatch
from evergrad.stream import Batch

Id = str | int
Ids = Iterable[Id] | npt.NDArray[Any]


@dataclass(slots=True, kw_only=True)
class JoinStats:
    """What became of predictions and labels. `predicted` = `joined` + `expired` + `dropped` + `waiting`.

    Attributes:
        predicted: predictions taken in.
        joined: those whose label came, each once.
        expired: those whose label did not come in time.
        dropped: those that made room for newer ones before their label came.
        waiting: those that wait now.
        unknown: labels of ids that were not predicted before, or expired, or were dropped.
        duplicate_predictions: passed over, for their id waits, or was joined of late.
        duplicate_labels: passed over, for their id was joined of late.
    """

    predicted: int = 0
    joined: int = 0
    expired: int = 0
    dropped: int = 0
    waiting: int = 0
    unknown: int = 0
    duplicate_predictions: int = 0
    duplicate_labels: int = 0


class Join:
    """Holds predictions until their labels come, for `timeout_s` at most, and no more than `limit` of them.

    An id that comes again changes nothing and is counted: the first prediction stays, with its time, and the first
    label counts, so both may be delivered more than once. An id is known as joined for `timeout_s` after that (and
    while fewer than `limit` were joined later), and is a new one then. A label that comes before its prediction is
    unknown.

    Time may come from several clocks. One that is behind the latest time so far counts as that, which lets a prediction
    wait longer by as much, at most by `timeout_s`; one that is further back was set, and waiting goes on from there.

    Every id costs O(1); memory is bounded by `limit` rows of inputs and outputs, which are copied, and twice as many
    ids. One thread at a time may use it.

    >>> join = Join(timeout_s=60)
    >>> join.predicted(["a", "b"], x=np.array([[1.0], [2.0]]), outputs=np.array([0.5, 0.6]), now_s=0.0)
    >>> batch = join.labelled(["b"], np.array([1]), now_s=10.0)
    >>> batch.x, batch.y, batch.outputs
    (array([[2.]]), array([1]), array([0.6]))

    Args:
        timeout_s: how long a prediction waits; a label that comes then exactly is in time. Infinite: for ever.
        limit: how many wait at most; the oldest makes room for the newest.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(self, *, timeout_s: float, limit: int = 100_000) -> None:
        if not timeout_s > 0:
            raise ConfigError("join.timeout_s", f"must be above 0, not {timeout_s}")
        if not (isinstance(limit, int) and limit >= 1):
            raise ConfigError("join.limit", f"must be a whole number, 1 or more, not {limit}")
        self.timeout_s, self.limit = timeout_s, limit
        self._waiting: OrderedDict[Id, tuple[int, float]] = OrderedDict()  # slot, and since when; the oldest first
        self._joined: OrderedDict[Id, float] = OrderedDict()  # since when; the oldest first
        self._rows: dict[str, npt.NDArray[Any]] = {}  # by part; a slot is a row of each
        self._free: list[int] = []
        self._latest_s: float | None = None
        self._ahead_s = 0.0  # of the clock that is told: as much as it was set back
        self._counts = JoinStats()

    def stats(self) -> JoinStats:
        """The counts now; what has timed out since the last call is still among those that wait."""
        return JoinStats(**{**asdict(self._counts), "waiting": len(self._waiting)})

    def predicted(self, ids: Ids, x: npt.NDArray[Any], outputs: npt.NDArray[Any], now_s: float) -> None:
        """Notes what was served.

        Args:
            ids: of the requests; text or whole numbers, [examples].
            x, outputs: [examples, ...]; dtypes and shapes of one row as in the first call.
            now_s: seconds.

        Raises:
            JoinMismatch: lengths differ, rows are unlike those before, or ids or time are none; nothing has changed.
        """
        names, arrays = _ids(ids), {"x": np.asarray(x), "outputs": np.asarray(outputs)}
        for part, array in arrays.items():
            _check_rows(part, array, len(names), self._rows.get(part))
        now = self._advance(now_s)
        for row, name in enumerate(names):
            if name in self._waiting or name in self._joined:
                self._counts.duplicate_predictions += 1
            else:
                self._wait(name, now, {part: array[row] for part, array in arrays.items()})
                self._counts.predicted += 1

    def labelled(self, ids: Ids, y: npt.NDArray[Any], now_s: float) -> Batch | None:
        """The examples whose labels these are, with the outputs that were served, in the order of the labels.

        Args:
            ids: of the requests; text or whole numbers, [labels].
            y: [labels, ...].
            now_s: seconds; becomes the batch's `arrived_s`.

        Returns:
            A batch whose arrays belong to the caller; None where no id was waiting.

        Raises:
            JoinMismatch: lengths differ, or ids or time are none; nothing has changed.
        """
        names, labels = _ids(ids), np.asarray(y)
        _check_rows("y", labels, len(names), None)
        now = self._advance(now_s)
        slots, rows = [], []
        for row, name in enumerate(names):
            found = self._waiting.pop(name, None)
            if found:
                slots.append(found[0])
                rows.append(row)
                self._remember(name, now)
            elif name in self._joined:
                self._counts.duplicate_labels += 1
            else:
                self._counts.unknown += 1
        if not slots:
            return None
        self._free += slots
        self._counts.joined += len(slots)
        return Batch(self._rows["x"][slots], labels[rows], now_s, self._rows["outputs"][slots])

    def waiting(self, name: Id, now_s: float) -> npt.NDArray[Any] | None:
        """A copy of the input of the prediction that waits for its label then; None: none of that id does.

        Raises:
            JoinMismatch: the time is none.
        """
        self._advance(now_s)
        found = self._waiting.get(name)
        return None if found is None else np.array(self._rows["x"][found[0]])

    def was_joined(self, name: Id) -> bool:
        """Whether an id was joined of late, as the class says."""
        return name in self._joined

    def state_dict(self) -> dict[str, Any]:
        """Numbers, text, lists, dicts and arrays, for a checkpoint; none of them is live."""
        slots = [slot for slot, _ in self._waiting.values()]
        return {
            "ids": list(self._waiting),
            "since_s": [since for _, since in self._waiting.values()],
            "rows": {part: rows[slots] for part, rows in self._rows.items()},
            "joined": list(self._joined),
            "joined_s": list(self._joined.values()),
            "latest_s": self._latest_s,
            "ahead_s": self._ahead_s,
            "counts": asdict(self._counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `state_dict` gave: all later calls give the same.

        Time-out and limit stay those of this join; what is beyond the limit is dropped and counted, the oldest first.

        Raises:
            ConfigError: its parts differ in length; nothing has changed.
        """
        rows = {part: np.asarray(array) for part, array in state["rows"].items()}
        lengths = [len(state["ids"]), len(state["since_s"]), *map(len, rows.values())]
        if len(set(lengths)) != 1 or len(state["joined"]) != len(state["joined_s"]):
            raise ConfigError("join.state", f"must hold as many rows as ids, not {lengths}; load a whole state")
        self._waiting.clear()
        self._joined.clear()
        self._rows, self._free = {part: array[:0].copy() for part, array in rows.items()}, []
        self._latest_s, self._ahead_s = state["latest_s"], float(state["ahead_s"])
        self._counts = JoinStats(**state["counts"])
        for row, (name, since) in enumerate(zip(state["ids"], state["since_s"], strict=True)):
            self._wait(name, since, {part: array[row] for part, array in rows.items()})
        for name, since in zip(state["joined"], state["joined_s"], strict=True):
            self._remember(name, since)

    def _wait(self, name: Id, since: float, parts: Mapping[str, npt.NDArray[Any]]) -> None:
        if len(self._waiting) == self.limit:
            self._free.append(self._waiting.popitem(last=False)[1][0])
            self._counts.dropped += 1
        slot = self._free.pop() if self._free else len(self._waiting)
        for part, row in parts.items():
            held = self._rows.get(part)
            if held is None or slot >= len(held):
                larger = np.empty((min(self.limit, 2 * slot + 1), *row.shape), row.dtype)
                larger[:slot] = held if held is not None else larger[:slot]
                held = self._rows[part] = larger
            held[slot] = row
        self._waiting[name] = slot, since

    def _remember(self, name: Id, since: float) -> None:
        self._joined[name] = since
        if len(self._joined) > self.limit:
            self._joined.popitem(last=False)

    def _advance(self, now_s: float) -> float:
        """The time by which all waits; what has timed out by then is gone."""
        if not math.isfinite(now_s):
            raise JoinMismatch("now_s", "a time in seconds", str(now_s))
        now, latest = now_s + self._ahead_s, self._latest_s
        if latest is not None and now < latest - self.timeout_s:
            self._ahead_s = latest - now_s
        self._latest_s = now = now if latest is None else max(now, latest)
        while self._waiting and now - next(iter(self._waiting.values()))[1] > self.timeout_s:
            self._free.append(self._waiting.popitem(last=False)[1][0])
            self._counts.expired += 1
        while self._joined and now - next(iter(self._joined.values())) > self.timeout_s:
            self._joined.popitem(last=False)
        return now


def _ids(ids: Ids) -> list[Id]:
    one_each = isinstance(ids, Iterable) and not isinstance(ids, (str, bytes)) and getattr(ids, "ndim", 1) == 1
    names = [name.item() if isinstance(name, np.generic) else name for name in ids] if one_each else []
    if not one_each or not all(isinstance(name, (str, int)) for name in names):
        raise JoinMismatch("ids", "text or whole numbers, one per example", repr(ids)[:80])
    return names


def _check_rows(part: str, array: npt.NDArray[Any], count: int, held: npt.NDArray[Any] | None) -> None:
    if array.ndim < 1 or len(array) != count:
        raise JoinMismatch(part, f"{count} rows, one per id", f"shape {array.shape}")
    if array.dtype.hasobject:
        raise JoinMismatch(part, "numbers", str(array.dtype))
    if count and held is not None and (array.dtype, array.shape[1:]) != (held.dtype, held.shape[1:]):
        raise JoinMismatch(part, f"rows of {held.dtype} {held.shape[1:]} as before", f"{array.dtype} {array.shape[1:]}")
