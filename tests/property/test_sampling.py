"""Samplers stay in bounds, repeat nothing, and are fair."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergrad.sampling import Sampler, Uniform, Window
from evergrad.testing import check_sampler


@given(st.integers(0, 10**12), st.integers(0, 64), st.integers(0, 2**32))
def test_uniform_draws_as_many_different_rows_as_there_are(rows: int, count: int, seed: int) -> None:
    drawn = Uniform(seed=seed).draw(rows, count)
    assert len(set(drawn.tolist())) == len(drawn) == min(rows, count)
    assert all(0 <= row < rows for row in drawn.tolist())


@given(st.integers(1, 100), st.integers(0, 10**12), st.integers(0, 64), st.integers(0, 2**32))
def test_window_draws_the_newest_rows_only(size: int, rows: int, count: int, seed: int) -> None:
    drawn = Window(size=size, seed=seed).draw(rows, count)
    assert len(set(drawn.tolist())) == len(drawn) == min(rows, count, size)
    assert all(max(0, rows - size) <= row < rows for row in drawn.tolist())


@pytest.mark.parametrize("make", [lambda: Uniform(seed=3), lambda: Window(size=50, seed=3)], ids=["uniform", "window"])
def test_sampler_keeps_the_public_promises(make: Callable[[], Sampler]) -> None:
    check_sampler(make)


def test_different_seeds_draw_different_rows() -> None:
    assert Uniform(seed=1).draw(10**6, 32).tolist() != Uniform(seed=2).draw(10**6, 32).tolist()


def test_every_row_is_drawn_about_equally_often() -> None:
    sampler = Uniform(seed=0)
    times = np.bincount(np.concatenate([sampler.draw(20, 5) for _ in range(4000)]), minlength=20)
    # 1000 expected each; the standard deviation is sqrt(4000 * 1/4 * 3/4) = 27.
    assert np.abs(times - 1000).max() < 5 * 27
