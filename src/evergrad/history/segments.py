"""Which segments there are: one folder each, named by its number and the id of its first example."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evergrad.errors import HistoryDamaged
from evergrad.history.commits import Commit

_NAME = re.compile(r"(\d{8,})-(\d{16,})")
_REMOVED = ".removed-"


@dataclass(frozen=True, eq=False, slots=True)
class Segments:
    """Consecutive segments; never changed, only replaced.

    Attributes:
        number: of the first one.
        starts: id of the first example of each: int64, ascending.
    """

    number: int
    starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def first(self) -> int:
        """The id of the oldest example; 0 where there is none."""
        return int(self.starts[0]) if len(self.starts) else 0

    def locate(self, ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Position of each id's segment, and its row in there."""
        which = np.searchsorted(self.starts, ids, side="right") - 1
        return which, ids - self.starts[which]

    def name(self, position: int) -> str:
        return segment_name(self.number + position, int(self.starts[position]))

    def since(self, position: int) -> Segments:
        """Without those before `position`."""
        return Segments(self.number + position, self.starts[position:])

    def with_one_at(self, start: int) -> Segments:
        """With one more, which begins with that id."""
        return Segments(self.number, np.append(self.starts, np.int64(start)))


NO_SEGMENTS = Segments(0, np.empty(0, np.int64))


def segment_name(number: int, start: int) -> str:
    return f"{number:08d}-{start:016d}"


def find_segments(folder: Path, last: Commit, rows_per_segment: int) -> Segments:
    """The segments that hold what was committed.

    Raises:
        HistoryDamaged: one is missing, or they cannot hold so many examples.
    """
    if not last.segments:
        return NO_SEGMENTS
    found = [(number, start) for number, start in listed_segments(folder) if number < last.segments]
    numbers, starts = [number for number, _ in found], [start for _, start in found]
    first = numbers[0] if numbers else last.segments - 1
    if numbers != list(range(first, last.segments)):
        missing = sorted(set(range(first, last.segments)) - set(numbers))
        raise HistoryDamaged(
            str(folder), f"of segments {first} to {last.segments - 1}, {missing or 'none'} are missing"
        )
    rows = np.diff([*starts, last.end])
    if rows.min() < 1 or rows.max() > rows_per_segment:
        raise HistoryDamaged(str(folder), f"its segments cannot hold the {last.end} examples of the commit record")
    return Segments(numbers[0], np.array(starts, np.int64))


def remove_uncommitted(folder: Path, segments: int) -> None:
    """Removes the segments whose number is `segments` or higher: a batch began them that was never committed."""
    for number, start in listed_segments(folder):
        if number >= segments:
            hide_segment(folder, segment_name(number, start))
    remove_hidden(folder)


def hide_segment(folder: Path, name: str) -> None:
    """Takes a segment out of the history at once; its files are still there."""
    os.rename(folder / name, folder / f"{_REMOVED}{name}")


def remove_hidden(folder: Path) -> None:
    """Removes the files of segments that were taken out, now or before a crash."""
    for name in os.listdir(folder):
        if name.startswith(_REMOVED):
            shutil.rmtree(folder / name)


def listed_segments(folder: Path) -> list[tuple[int, int]]:
    """Number and first id of all segments in the folder, committed or not, ascending."""
    names = (_NAME.fullmatch(name) for name in os.listdir(folder))
    return sorted((int(name[1]), int(name[2])) for name in names if name)
