"""Round trips of index patterns that small models do not reach."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evergrad.codec import decode, encode
from evergrad.schema import MAX_ELEMENTS, Schema
from evergrad.update import Steps, Update

SCHEMA = Schema([("w", "F32", (MAX_ELEMENTS,))])
FAR = st.sets(st.integers(0, MAX_ELEMENTS - 1), min_size=1, max_size=40)
GAPS = st.lists(st.integers(0, 3) | st.integers(0, 1 << 30), min_size=1, max_size=500)


def round_trip(indices: np.ndarray) -> np.ndarray:
    signs = indices % 3 == 0
    update = Update(
        base_version=0, version=1, run=0, schema=0, digest_before=0, digest_after=0, newest_us=0,
        sections=(Steps(indices, signs, 0.5),),
    )  # fmt: skip
    data = encode(update)
    (found,) = decode(data, SCHEMA).sections
    assert isinstance(found, Steps)
    assert np.array_equal(found.negative, signs)
    assert len(data) < 64 + 16 + 6 * len(indices) + 16, "never above 48 bits a place"
    return found.indices


@given(FAR)
def test_any_places_survive(places: set[int]) -> None:
    indices = np.array(sorted(places), dtype=np.int64)
    assert np.array_equal(round_trip(indices), indices)


@given(GAPS)
def test_clusters_and_jumps_survive(gaps: list[int]) -> None:
    indices = np.cumsum(np.array(gaps, dtype=np.int64) + 1) - 1
    assert np.array_equal(round_trip(indices), indices)
