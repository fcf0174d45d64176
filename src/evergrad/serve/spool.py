"""The inputs and outputs of answered requests, on disk until their labels come or their time is over.

    DIR/served/1-01763990000000000000/     a `History` of worker 1, begun then: id, row in the request, x, outputs
    DIR/served/1-01763990450000000000/     the next one, begun after an eighth of the limit or of the time-out
    DIR/served/2-...                      worker 2's

A worker writes its own folders alone, and reads everybody's. A folder goes as a whole, when all in it is beyond the
limit or the time-out: a part more than either stays there, and no file grows for ever.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from evergrad.errors import HistoryError
from evergrad.history import History, Ragged
from evergrad.serve.tensors import Array

logger = logging.getLogger(__name__)
SERVED = "served"
_PARTS = 8
_MOST_ID = 256


class Spool:
    """Where one worker notes what it has answered; any thread may use it.

    Args:
        root: the folder of all workers' folders.
        worker: its number.
        timeout_s, limit: for how long, and how many rows of this worker, at least.
        clock: seconds since 1970.
    """

    def __init__(self, root: Path, worker: int, *, timeout_s: float, limit: int, clock: Callable[[], float]) -> None:
        self._root, self._worker, self._clock = root, worker, clock
        self._part_s, self._part_rows, self._timeout_s = timeout_s / _PARTS, max(1, limit // _PARTS), timeout_s
        self._lock = threading.Lock()
        self._history: History | None = None
        self._until_s = 0.0
        self._told = ""

    def add(self, request_id: str, x: Array, outputs: Array) -> bool:
        """Notes an answer before it is given; False where it cannot be: its labels will then be of no known request.

        That is so where the outputs have no row for each of the input's, where shapes or dtypes are not those of the
        requests before, where an id is longer than 256 characters, and where the disk refuses. It outlives the death of
        this process.
        """
        if not (x.ndim and outputs.ndim and len(x) == len(outputs) > 0 and len(request_id) <= _MOST_ID):
            return False
        with self._lock:
            try:
                self._open().append(
                    {
                        "id": Ragged.from_rows([request_id] * len(x)),
                        "row": np.arange(len(x)),
                        "x": x,
                        "outputs": outputs,
                    },
                    self._clock(),
                )
            except (HistoryError, OSError) as error:
                self._tell(error)
                return False
            self._told = ""
            return True

    def _open(self) -> History:
        now = self._clock()
        if self._history is None or now >= self._until_s or self._history.end >= self._part_rows:
            self.close()
            self._prune(now)
            begun_ns = round(now * 1e9)
            while (path := self._root / f"{self._worker}-{begun_ns:020d}").exists():
                begun_ns += 1
            self._history = History(path, clock=self._clock)
            self._until_s = now + self._part_s
        return self._history

    def _prune(self, now: float) -> None:
        """Removes anybody's folders whose rows are all too old, and this worker's that are beyond the limit."""
        rows = 0
        for path in reversed(folders(self._root)):
            worker, _, begun_ns = path.name.partition("-")
            old = now - int(begun_ns) / 1e9 > self._timeout_s + self._part_s
            mine = worker == str(self._worker)
            if old or (mine and rows >= self._part_rows * _PARTS):
                shutil.rmtree(path, ignore_errors=True)
            elif mine:
                with contextlib.suppress(HistoryError), History(path, read_only=True) as held:
                    rows += held.end

    def _tell(self, error: Exception) -> None:
        if str(error) != self._told:
            self._told = str(error)
            logger.warning("answers are not kept for their labels: %s", error)

    def close(self) -> None:
        """Closes its files."""
        if self._history is not None:
            self._history.close()
            self._history = None


class Answered(NamedTuple):
    """One request that was answered: when, its id, and where its rows are: part, first row, rows."""

    arrived_us: int
    id: str
    place: tuple[int, int, int]


class Spools:
    """What all workers have noted, as one of them reads it. One thread at a time may use it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers = itertools.count()
        self._parts: dict[Path, int] = {}
        self._open: dict[int, History] = {}
        self._seen: dict[int, int] = {}

    def new(self) -> list[Answered]:
        """What was noted since the last call, by part, in order."""
        there = folders(self._root)
        for path in set(self._parts) - set(there):
            self._drop(path)
        found: list[Answered] = []
        for path in there:
            try:
                found += self._look(path)
            except HistoryError as error:  # a part that is removed at this moment, or damaged
                logger.debug("%s: %s", path, error)
        return found

    def rows(self, place: npt.NDArray[np.int64]) -> tuple[Array, Array] | None:
        """Inputs and outputs of a request; None where its part is gone."""
        part, first, count = (int(each) for each in place)
        try:
            found = self._open[part].gather(np.arange(first, first + count), ["x", "outputs"])
            return found["x"], found["outputs"]
        except (KeyError, HistoryError):
            return None

    def close(self) -> None:
        """Closes all files."""
        for path in list(self._parts):
            self._drop(path)

    def _look(self, path: Path) -> list[Answered]:
        if path not in self._parts:
            opened = History(path, read_only=True)
            number = self._parts[path] = next(self._numbers)
            self._open[number], self._seen[number] = opened, 0
        part = self._parts[path]
        history, begin = self._open[part], self._seen[part]
        end = history.refresh()
        if end == begin:
            return []
        rows = np.arange(begin, end)
        found, arrived = history.gather(rows, ["id", "row"]), history.arrived_us(rows)
        starts = np.flatnonzero(found["row"] == 0)
        counts = np.diff(np.append(starts, end - begin))
        self._seen[part] = end
        return [
            Answered(int(arrived[at]), found["id"].row(at), (part, begin + int(at), int(count)))
            for at, count in zip(starts, counts, strict=True)
        ]

    def _drop(self, path: Path) -> None:
        number = self._parts.pop(path)
        self._seen.pop(number)
        self._open.pop(number).close()


def folders(root: Path) -> list[Path]:
    """The parts of all workers, the oldest first."""
    try:
        found = [path for path in root.iterdir() if path.name.partition("-")[2].isdecimal()]
        return sorted(found, key=lambda path: path.name.partition("-")[2])
    except FileNotFoundError:
        return []
