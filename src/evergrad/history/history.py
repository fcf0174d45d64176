"""The history that callers see."""

from __future__ import annotations

import bisect
import logging
import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from evergrad.errors import HistoryDamaged, HistoryMismatch, HistoryUnavailable, NotInHistory
from evergrad.history.batch import arrays_of, count_rows
from evergrad.history.commits import Commits
from evergrad.history.exclusions import Exclusions
from evergrad.history.handles import Handles, Locked, take_lock
from evergrad.history.layout import NAME, Arrays, Column, Layout, layout_of, read_layout, write_layout
from evergrad.history.limits import Limits
from evergrad.history.mark import Mark, boot_id, write_mark
from evergrad.history.reader import Reader
from evergrad.history.recovery import trusted_batches
from evergrad.history.segments import NO_SEGMENTS, Segments, find_segments, hide_segment, remove_hidden
from evergrad.history.writer import Writer

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_TRIES = 16
_MOST_US = 1 << 62


class _Held(NamedTuple):
    """What is in the history; replaced whole."""

    segments: Segments
    end: int
    batches: int


class History:
    """Opens the history in a folder, or begins one there with the first batch.

    Examples are numbered from 0 in order of arrival; an example keeps its number, its id, as long as it is held, and
    no id is used twice. One History at a time may write to a folder, in any process; any number may read it meanwhile.
    Any thread may use it.

    Limits are applied with each batch, to whole segments: one goes when all its examples are beyond any of the limits.
    As a segment holds an eighth of a limit at most, so much more than the limit may be there. The newest always stays.

    Args:
        path: the folder.
        keep_rows, keep_bytes: how much of the newest is kept; None: everything.
        keep_s: for how many seconds before the newest example's arrival examples are kept; None: for ever.
        read_only: nothing is written, and `refresh` shows what a writer has added or removed. There need not be a
            history yet.
        clock: seconds since 1970.

    Attributes:
        keep_from: examples from this id on are not removed, whatever the limits say; None: no such id.

    Raises:
        HistoryDamaged: there is one, and it cannot be read.
        HistoryLocked: somebody else writes to it.
        HistoryUnavailable: the disk refused.
        ConfigError: a limit is not above 0.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        keep_rows: int | None = None,
        keep_bytes: int | None = None,
        keep_s: float | None = None,
        read_only: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path, self._clock, self._read_only = Path(path), clock, read_only
        self._limits = Limits(rows=keep_rows, bytes=keep_bytes, age_s=keep_s)
        self._handles, self._is_open = Handles(), True
        self._locked = Locked(self.path)
        self._finalizer = weakref.finalize(self, self._handles.close_all)
        self._layout: Layout | None = None
        self._reader: Reader | None = None
        self._writer: Writer | None = None
        self._commits = Commits(self.path, self._handles, writable=not read_only)
        self._exclusions = Exclusions(self.path)
        self._held, self._newest_us = _Held(NO_SEGMENTS, 0, 0), -_MOST_US
        self._known: dict[tuple[str, int], int] = {}  # of closed segments, by what and number
        self._kept = 0
        self.keep_from: int | None = None
        try:
            if read_only:
                self.refresh()
            elif (self.path / NAME).exists():
                with self._locked:
                    self._take_over()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return self.end - self.first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def first(self) -> int:
        """The id of the oldest example held; 0 until retention has removed some."""
        return self._held.segments.first

    @property
    def end(self) -> int:
        """The id that the next example gets."""
        return self._held.end

    def first_at(self, end: int) -> int:
        """The oldest id within the limits at the time when `end` was the next id: what could be drawn then.

        It is a function of the examples alone, which a trainer that goes back and on again can rely on. `first` may be
        lower, where `keep_from` spares what is beyond the limits.
        """
        with self._locked:
            if end == self.end:
                return max(self._kept, self.first)
            segments = self._held.segments
            then = Segments(segments.number, segments.starts[: int(np.searchsorted(segments.starts, end))])
            if not len(then):
                return self.first
            now_us = int(self.arrived_us(np.array([end - 1]))[0])
            return int(then.starts[self._beyond(then, end, now_us)])

    @property
    def newest_us(self) -> int:
        """When the newest example arrived, microseconds since 1970. Raises NotInHistory where there is none."""
        if self._writer is None or not len(self):
            return int(self.arrived_us(np.array([self.end - 1]))[0])
        return self._newest_us

    @property
    def batches(self) -> int:
        """How many batches were ever appended."""
        return self._held.batches

    @property
    def columns(self) -> tuple[Column, ...]:
        """Name, kind, dtype and row shape of each column; none before the first batch."""
        return self._layout.columns if self._layout else ()

    @property
    def excluded_ranges(self) -> tuple[tuple[int, int], ...]:
        """What `exclude` has marked: (first, last) of each range, last not included; ascending and apart."""
        return self._exclusions.ranges

    def append(self, columns: Mapping[str, Any] | pa.Table, arrived_s: float | None = None) -> range:
        """Appends a batch, whole or not at all; gives its ids.

        It outlives the death of this process from the moment that this returns; for a loss of power, see `sync`.

        Args:
            columns: by name, of one length; each time the same names, dtypes and row shapes. Arrays and tensors [rows,
                ...]; lists of str, of bytes or of 1-D arrays, and `Ragged`, for rows of any length; or an Arrow table.
            arrived_s: when they arrived; None: now. Where the clock has gone backwards, the newest time so far counts.

        Raises:
            HistoryMismatch: it does not fit the history's columns; nothing was appended.
            HistoryUnavailable: the disk refused, or is full, or this is closed or read-only; nothing was appended.
            HistoryLocked: somebody else has begun the history.
        """
        with self._locked:
            self._require_writable()
            arrays = arrays_of(columns, self._layout)
            layout = self._layout or layout_of(arrays)
            count, arrived_us = count_rows(arrays, layout), self._arrival(arrived_s)
            if self._writer is None:
                self._begin(layout)
                count = count_rows(arrays, self._layout or layout)
            return self._write(arrays, count, arrived_us)

    def gather(self, ids: npt.NDArray[np.int64], columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Copies of the given examples, by column name, in the order of `ids`.

        Args:
            ids: int64 [rows], each in [first, end).
            columns: only these; None: all.

        Returns:
            Arrays [rows, ...], and `Ragged` for columns of that kind; nothing before the first batch.

        Raises:
            NotInHistory: an id or a column that is not there. (Of an open reader: a writer may have removed it since.)
            HistoryDamaged: a file is not as long as it must be.
        """
        with self._locked:
            held, ids = self._checked(ids)
            if self._reader is None:
                return {}
            return dict(self._read(ids, lambda reader: reader.gather(held.segments, ids, columns)))

    def arrived_us(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """When examples arrived, in microseconds since 1970: int64 [rows], never decreasing with the id.

        Raises:
            NotInHistory, HistoryDamaged: as for `gather`.
        """
        with self._locked:
            held, ids = self._checked(ids)
            if self._reader is None:
                return np.empty(0, np.int64)
            return self._read(ids, lambda reader: reader.arrived_us(held.segments, ids))

    def since(self, arrived_us: int) -> int:
        """The lowest id that arrived at that time or later; `end` where none did."""
        with self._locked:
            ids = range(self.first, self.end)
            return self.first + bisect.bisect_left(
                ids, arrived_us, key=lambda one: int(self.arrived_us(np.array([one]))[0])
            )

    def batch(self, number: int) -> range:
        """The ids of the batch of that number, from 0, as `append` gave them.

        Raises:
            NotInHistory: it is yet to come, or retention has removed some of it.
        """
        with self._locked:
            self._require_open()
            if not 0 <= number < self.batches:
                raise NotInHistory(f"batch {number}", f"{self.batches} batches")
            begin = self._commits[number - 1].end if number else 0
            if begin < self.first:
                raise NotInHistory(f"batch {number}, which began at id {begin},", self._holds())
            return range(begin, self._commits[number].end)

    def exclude(self, first: int, last: int) -> None:
        """Marks the ids [first, last) as never to be sampled again; on the disk when this returns.

        They stay in the history, and `gather` still gives them.

        Raises:
            NotInHistory: they reach beyond the ids ever given.
            HistoryUnavailable: the disk refused, or this is closed or read-only.
        """
        with self._locked:
            self._require_writable()
            if not 0 <= first <= last <= self.end:
                raise NotInHistory(f"the range {first} to {last}", self._holds())
            if first < last:
                self._exclusions.add(first, last)

    def excluded(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the ids are marked by `exclude`: bool [ids]."""
        return self._exclusions.mask(ids)

    def refresh(self) -> int:
        """Sees what a writer has committed, removed and excluded since; gives `end`.

        Raises:
            HistoryDamaged, HistoryUnavailable: as when it is opened.
        """
        with self._locked:
            self._require_open()
            if self._read_only and (self._layout is not None or (self.path / NAME).exists()):
                self._look()
            return self.end

    def sync(self) -> None:
        """Waits until everything appended so far is on the disk: from then on a loss of power does not take it.

        What was appended after the last `sync` is read through once when the history is opened to write after the
        machine was started anew: call it now and then, and before the end.

        Raises:
            HistoryUnavailable: the disk refused, or this is closed or read-only.
        """
        with self._locked:
            self._require_writable()
            if self._writer:
                self._writer.sync()
                write_mark(self.path, Mark(self._commits.count, boot_id()), durable=True)

    def close(self) -> None:
        """Lets go of the lock, the files and the memory; nothing can be asked of it afterwards."""
        with self._locked:
            self._is_open, self._writer = False, None
            self._handles.close_all()
            if self._reader:
                self._reader.drop()

    def _arrival(self, arrived_s: float | None) -> int:
        seconds = self._clock() if arrived_s is None else arrived_s
        if not (math.isfinite(seconds) and abs(seconds) * 1e6 < _MOST_US):
            raise HistoryMismatch("arrived_s", "seconds since 1970", str(seconds))
        return max(self._newest_us, round(seconds * 1e6))

    def _begin(self, layout: Layout) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        take_lock(self.path, self._handles)
        if not (self.path / NAME).exists():  # nobody else has begun one meanwhile
            begin_folder(self.path, layout)
        self._take_over()

    def _take_over(self) -> None:
        """Locks what is there, and goes on with it."""
        take_lock(self.path, self._handles)
        layout = read_layout(self.path)
        self._commits.catch_up()
        self._commits.cut(trusted_batches(self.path, layout, self._commits))
        self._look()
        self._writer = Writer(self.path, self._handles, layout, self._limits, self._commits, self._held.segments)
        if self.end > self.first:
            self._newest_us = int(self.arrived_us(np.array([self.end - 1]))[0])
        self._remove_strays()

    def _look(self) -> None:
        """Sees what is committed now."""
        if self._layout is None:
            self._layout = read_layout(self.path)
            self._reader = Reader(self.path, self._layout)
        self._exclusions.refresh()
        for tries_left in reversed(range(_TRIES)):
            self._commits.catch_up()
            last, segments = self._commits.last, self._held.segments
            try:
                if last.segments != segments.number + len(segments) or not self._has_first(segments):
                    segments = find_segments(self.path, last, self._layout.rows_per_segment)
                self._held = _Held(segments, last.end, self._commits.count)
                return
            except HistoryDamaged:
                # A writer may have removed segments between the look at its commits and the one at its folders.
                if not tries_left:
                    raise

    def _has_first(self, segments: Segments) -> bool:
        return not len(segments) or (self.path / segments.name(0)).exists()

    def _write(self, arrays: Arrays, count: int, arrived_us: int) -> range:
        writer = self._writer
        if writer is None:
            raise HistoryDamaged(str(self.path), f"{NAME} is gone")
        begin = self._commits.last.end
        try:
            writer.append(arrays, count, arrived_us)
        finally:  # an interrupt may come after the batch was committed
            if self._commits.last.end > begin:
                self._newest_us = arrived_us
        self._held = _Held(writer.segments, begin + count, self._commits.count)
        try:
            self._retain(writer)
        except OSError as error:
            logger.warning("the history at %s keeps more than it should: %s", self.path, error)
        return range(begin, begin + count)

    def _retain(self, writer: Writer) -> None:
        if self._limits.keep_all:
            return
        segments, spared = writer.segments, self.keep_from
        count = self._beyond(segments, self.end, self._newest_us)
        self._kept = int(segments.starts[count]) if len(segments) else 0
        if spared is not None:
            count = min(count, max(0, int(np.searchsorted(segments.starts, spared, side="right")) - 1))
        for _ in range(count):
            hide_segment(self.path, writer.segments.name(0))
            for what in ("bytes", "newest"):
                self._known.pop((what, writer.segments.number), None)
            writer.removed(1)
            self._held = self._held._replace(segments=writer.segments)
        if count:
            remove_hidden(self.path)

    def _remove_strays(self) -> None:
        try:
            remove_hidden(self.path)
        except OSError as error:
            logger.warning("the history at %s keeps more than it should: %s", self.path, error)

    def _beyond(self, segments: Segments, end: int, now_us: int) -> int:
        """How many of the segments are beyond the limits, where `end` is the next id."""
        return self._limits.beyond(
            segments, end, now_us=now_us,
            bytes_of=lambda position: self._bytes_of(position, end), newest_us_of=self._newest_us_of,
        )  # fmt: skip

    def _bytes_of(self, position: int, end: int) -> int:
        segments = self._held.segments
        is_closed = position < len(segments) - 1 and int(segments.starts[position + 1]) <= end
        stop = int(segments.starts[position + 1]) if is_closed else end
        key = ("bytes", segments.number + position)
        found = self._known.get(key) if is_closed else None
        if found is None and self._writer:
            found = self._writer.bytes_of(position, stop - int(segments.starts[position]))
            if is_closed:
                self._known[key] = found
        return found or 0

    def _newest_us_of(self, position: int) -> int:
        segments = self._held.segments
        key = ("newest", segments.number + position)
        if key not in self._known:
            self._known[key] = int(self.arrived_us(segments.starts[position + 1 : position + 2] - 1)[0])
        return self._known[key]

    def _checked(self, ids: npt.NDArray[np.int64]) -> tuple[_Held, npt.NDArray[np.int64]]:
        self._require_open()
        held = self._held
        ids = np.asarray(ids).astype(np.int64, casting="same_kind", copy=False)
        if len(ids) and not (held.segments.first <= int(ids.min()) and int(ids.max()) < held.end):
            outside = ids[(ids < held.segments.first) | (ids >= held.end)]
            raise NotInHistory(f"example {int(outside[0])}", self._holds())
        return held, ids

    def _read(self, ids: npt.NDArray[np.int64], read: Callable[[Reader], _T]) -> _T:
        if self._reader is None:
            raise HistoryDamaged(str(self.path), f"{NAME} is gone")
        try:
            return read(self._reader)
        except FileNotFoundError as error:
            if self._read_only:
                self._look()
                self._checked(ids)
            raise HistoryDamaged(str(self.path), f"a file is gone ({error})") from error

    def _holds(self) -> str:
        return f"examples {self.first} to {self.end - 1}" if len(self) else "no example"

    def _require_open(self) -> None:
        if not self._is_open:
            raise HistoryUnavailable(str(self.path), "it is closed")

    def _require_writable(self) -> None:
        self._require_open()
        if self._read_only:
            raise HistoryUnavailable(str(self.path), "it was opened with read_only=True")


def begin_folder(folder: Path, layout: Layout) -> None:
    """Begins a history in a locked folder; it is there from the moment that it has its history.json."""
    commits = folder / "commits"
    if commits.exists() and commits.stat().st_size:
        raise HistoryDamaged(str(folder), f"{NAME} is gone")
    commits.touch()
    write_mark(folder, Mark(0, boot_id()), durable=False)
    write_layout(folder, layout)
