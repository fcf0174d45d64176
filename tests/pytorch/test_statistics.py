"""Statistics are told within the tolerance, in few bits, and exactly where there is no coarser grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergrad.codec import encoded_bytes
from evergrad.pytorch.statistics import tell_within
from evergrad.schema import STORAGE, widen_bf16
from evergrad.update import Differences, Section, Values
from evergrad.update.digest import Array

TINY = np.finfo(np.float32).smallest_subnormal
EDGES = np.float32([0.0, -0.0, TINY, -TINY, 1e-38, 3.4028235e38, -3.4028235e38, 1.7e38, 1.0, -1.0])


def told(sections: list[Section], old: Array) -> Array:
    new = old.copy()
    for section in sections:
        new[section.indices] = section.moved(old[section.indices])
    return new


def values(new: Array, dtype: str = "F32") -> Values:
    return Values(np.arange(len(new)), new, dtype)


def numbers(array: Array, dtype: str) -> Array:
    return widen_bf16(array) if dtype == "BF16" else array


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=200),
    st.sampled_from([0.001, 0.01, 0.015625, 0.02, 0.3, 0.5, np.nextafter(0.5, 0), 0.99]),
)
def test_told_values_are_within_the_tolerance(new: list[float], tolerance: float) -> None:
    live = np.concatenate((np.float32(new), EDGES))
    old = np.random.default_rng(0).standard_normal(len(live)).astype("f4")
    after = told(tell_within(values(live), old, tolerance), old)
    off = np.abs(after.astype("f8") - live.astype("f8"))
    assert (off <= tolerance * np.abs(live.astype("f8"))).all()
    assert (np.signbit(after) == np.signbit(live)).all()


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_every_floating_dtype_is_rounded_within_the_tolerance(dtype: str) -> None:
    rng = np.random.default_rng(1)
    if dtype == "BF16":
        live, old = ((rng.standard_normal(500).astype("f4").view("u4") >> 16).astype("u2") for _ in range(2))
    else:
        live, old = (rng.standard_normal(500).astype(STORAGE[dtype]) for _ in range(2))
    after = numbers(told(tell_within(values(live, dtype), old, 0.02), old), dtype).astype("f8")
    exact = numbers(live, dtype).astype("f8")
    assert (np.abs(after - exact) <= 0.02 * np.abs(exact)).all()


@pytest.mark.parametrize(("tolerance", "dtype"), [(0.0, "F32"), (0.02, "I64"), (0.02, "BOOL"), (1e-9, "F32")])
def test_without_tolerance_and_for_integers_everything_is_told_exactly(tolerance: float, dtype: str) -> None:
    rng = np.random.default_rng(2)
    live, old = ((10 * rng.random(50)).astype(STORAGE[dtype]) % (2 if dtype == "BOOL" else 100) for _ in range(2))
    after = told(tell_within(values(live, dtype), old, tolerance), old)
    assert after.tobytes() == live.tobytes()


def test_a_drift_of_a_few_percent_costs_four_bits_an_element() -> None:
    rng = np.random.default_rng(3)
    old = rng.random(2000).astype("f4") + np.float32(0.5)
    live = (old * (1 + 0.04 * rng.standard_normal(2000))).astype("f4")
    sections = tell_within(values(live), old, 0.02)
    assert [type(section) for section in sections] == [Differences]
    assert encoded_bytes(sections) < 1000 < encoded_bytes([values(live)])


def test_a_counter_that_moves_by_one_costs_next_to_nothing() -> None:
    old = np.full(20, 123_456, dtype="i8")
    assert encoded_bytes(tell_within(values(old + 1, "I64"), old, 0.02)) < 20
