"""Which segments are beyond the limits, told by numbers alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evergrad.history.limits import Limits
from evergrad.history.segments import Segments

SEGMENTS = Segments(7, np.array([100, 110, 120, 130]))  # the end is 140; 10 bytes a row, a second a row


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({}, 0),
        ({"rows": 41}, 0),
        ({"rows": 31}, 0),
        ({"rows": 30}, 1),
        ({"rows": 11}, 2),
        ({"rows": 10}, 3),
        ({"rows": 1}, 3),
        ({"bytes": 301}, 0),
        ({"bytes": 300}, 1),
        ({"bytes": 100}, 3),
        ({"bytes": 1}, 3),
        ({"age_s": 30.0}, 0),
        ({"age_s": 29.5}, 1),
        ({"age_s": 9.5}, 3),
        ({"age_s": 0.1}, 3),
        ({"rows": 30, "bytes": 1000, "age_s": 1000.0}, 1),
        ({"rows": 30, "bytes": 200, "age_s": 1000.0}, 2),
        ({"rows": 30, "bytes": 200, "age_s": 9.5}, 3),
    ],
)
def test_segments_are_beyond_when_all_their_rows_are(limits: dict[str, Any], count: int) -> None:
    found = Limits(**limits).beyond(
        SEGMENTS,
        140,
        now_us=139_000_000,
        bytes_of=lambda _: 100,
        newest_us_of=lambda position: (109 + 10 * position) * 1_000_000,
    )
    assert found == count


def test_segments_hold_an_eighth_of_each_limit() -> None:
    limits = Limits(rows=80, bytes=801, age_s=8.0)
    assert (limits.segment_rows, limits.segment_bytes, limits.segment_us) == (10, 100, 1_000_000)
    assert (Limits(rows=3).segment_rows, Limits(bytes=3).segment_bytes) == (1, 1)
    assert (Limits().segment_rows, Limits().segment_bytes, Limits().segment_us) == (None, None, None)
