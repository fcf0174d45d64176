"""Segments in memory: few or many maps, the same rows; and the bound on maps holds."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from evergrad.errors import HistoryDamaged
from evergrad.history import maps
from evergrad.history.maps import SegmentFile
from evergrad.history.segments import Segments

ROWS, STRIDE = 5, 8
NAME = "0.bin"


def segments_in(folder: Path, count: int) -> Segments:
    """Segments of five int64 each, which count on through all of them."""
    segments = Segments(3, np.arange(count) * ROWS + 100)
    for position in range(count):
        (folder / segments.name(position)).mkdir()
        (folder / segments.name(position) / NAME).write_bytes((segments.starts[position] + np.arange(ROWS)).tobytes())
    return segments


def drawn(file: SegmentFile, segments: Segments, ids: list[int]) -> list[int]:
    which, within = segments.locate(np.array(ids))
    return file.rows(segments, which, within, STRIDE, STRIDE).view(np.int64).tolist()


def spanned(file: SegmentFile, segments: Segments, ids: list[int]) -> list[int]:
    which, within = segments.locate(np.array(ids))
    return np.frombuffer(file.spans(segments, which, within * STRIDE, (within + 1) * STRIDE), np.int64).tolist()


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_any_bound_on_maps_gives_the_same_rows(tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_MOST_MAPS", most)
    segments, rng = segments_in(tmp_path, 7), np.random.default_rng(0)
    file = SegmentFile(tmp_path, NAME, ROWS * STRIDE, 1)
    for take in (drawn, spanned):
        for count in (0, 1, 2, 35, 300):
            ids = rng.integers(100, 135, count).tolist()
            assert take(file, segments, ids) == ids
            assert file.mapped <= most
    file.drop()
    assert file.mapped == 0
    assert drawn(file, segments, [134, 100]) == [134, 100]


def test_the_longest_unused_map_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_MOST_MAPS", 2)
    segments = segments_in(tmp_path, 3)
    file = SegmentFile(tmp_path, NAME, ROWS * STRIDE, 1)
    for ids in ([100], [105], [101], [110]):  # the second segment's is unused for longest when the third comes
        drawn(file, segments, ids)
    for position in range(3):
        (tmp_path / segments.name(position) / NAME).unlink()
    assert drawn(file, segments, [100, 110]) == [100, 110]
    with pytest.raises(FileNotFoundError):
        drawn(file, segments, [105])


def test_maps_of_segments_that_stay_are_kept_when_others_come_and_go(tmp_path: Path) -> None:
    segments = segments_in(tmp_path, 4)
    file = SegmentFile(tmp_path, NAME, ROWS * STRIDE, 1)
    three = Segments(3, segments.starts[:3])
    assert drawn(file, three, [100, 106, 112]) == [100, 106, 112]
    for position in range(3):
        (tmp_path / segments.name(position) / NAME).unlink()
    later = segments.since(2)
    assert drawn(file, later, [111, 117]) == [111, 117]
    assert file.mapped == 2
    assert drawn(file, later, [110, 119]) == [110, 119]


def test_a_file_that_is_too_short_is_told(tmp_path: Path) -> None:
    segments = segments_in(tmp_path, 2)
    file = SegmentFile(tmp_path, NAME, ROWS * STRIDE + 1, 1)
    with pytest.raises(HistoryDamaged, match=f"{ROWS * STRIDE} bytes of {ROWS * STRIDE + 1}"):
        drawn(file, segments, [100])


def test_spans_beyond_the_file_are_told(tmp_path: Path) -> None:
    segments = segments_in(tmp_path, 1)
    file = SegmentFile(tmp_path, NAME, 1, 1)
    with pytest.raises(HistoryDamaged, match="shorter than its offsets"):
        file.spans(segments, np.array([0]), np.array([0]), np.array([ROWS * STRIDE + 1]))


def test_a_limit_on_address_space_bounds_maps_to_a_quarter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4 * 3 * ROWS * STRIDE, 0))
    segments = segments_in(tmp_path, 7)
    file = SegmentFile(tmp_path, NAME, ROWS * STRIDE, 1)
    assert drawn(file, segments, [100, 134, 105, 111, 121]) == [100, 134, 105, 111, 121]
    assert file.mapped == 3
