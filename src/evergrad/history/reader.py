"""Copies rows out of segments, column by column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import HistoryDamaged, NotInHistory
from evergrad.history.layout import ARRIVED, Arrays, Column, Layout
from evergrad.history.maps import SegmentFile
from evergrad.history.ragged import Ragged, offsets_of
from evergrad.history.segments import Segments


class Reader:
    """The columns of a history's segments, mapped into memory."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder, self._layout = folder, layout
        self._number = {column.name: number for number, column in enumerate(layout.columns)}
        sizes = layout.sizes()
        self._files = {name: SegmentFile(folder, name, size, len(sizes)) for name, size in sizes.items()}

    def gather(self, segments: Segments, ids: npt.NDArray[np.int64], names: Sequence[str] | None) -> Arrays:
        """Copies of rows, in the order of `ids`, all of which `segments` hold.

        Raises:
            FileNotFoundError: a segment was removed.
            NotInHistory: there is no column of such a name.
            HistoryDamaged: a file is shorter than it must be.
        """
        which, within = segments.locate(ids)
        found: Arrays = {}
        for name in self._number if names is None else names:
            number = self._number.get(name)
            if number is None:
                raise NotInHistory(f"column {name!r}", f"columns {', '.join(self._number)}")
            column = self._layout.columns[number]
            take = self._fixed if column.kind == "fixed" else self._ragged
            found[name] = take(number, column, segments, which, within)
        return found

    def arrived_us(self, segments: Segments, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """When the examples arrived; raises as `gather` does."""
        which, within = segments.locate(ids)
        return self._files[ARRIVED].rows(segments, which, within, 8, 8).view(np.int64)

    def drop(self) -> None:
        """Unmaps everything; what is asked for later is mapped again."""
        for file in self._files.values():
            file.drop()

    def _fixed(
        self,
        number: int,
        column: Column,
        segments: Segments,
        which: npt.NDArray[np.int64],
        within: npt.NDArray[np.int64],
    ) -> npt.NDArray[Any]:
        size = column.row_bytes
        rows = self._files[f"{number}.bin"].rows(segments, which, within, size, size)
        return rows.view(column.dtype).reshape(len(which), *column.shape)

    def _ragged(
        self,
        number: int,
        column: Column,
        segments: Segments,
        which: npt.NDArray[np.int64],
        within: npt.NDArray[np.int64],
    ) -> Ragged:
        # A row's entry is where it ends; the entry before is where it begins, so both are one window of 16 bytes.
        pairs = self._files[f"{number}.offsets"].rows(segments, which, within, 8, 16).view(np.int64).reshape(-1, 2)
        begins, ends = pairs[:, 0], pairs[:, 1]
        size = column.row_bytes
        lengths, rest = np.divmod(ends - begins, size)
        if bool((lengths < 0).any() or rest.any() or (begins < 0).any()):
            raise HistoryDamaged(str(self._folder), f"the offsets of column {column.name!r} are damaged")
        data = self._files[f"{number}.data"].spans(segments, which, begins, ends)
        return Ragged(np.frombuffer(data, column.dtype), offsets_of(lengths), column.kind)  # type: ignore[arg-type]
