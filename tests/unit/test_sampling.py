"""Exact cases of the samplers; their properties are in tests/property."""

from __future__ import annotations

import numpy as np
import pytest

from evergrad.errors import ConfigError
from evergrad.sampling import Uniform, Window
from evergrad.testing import check_sampler


def test_all_rows_are_drawn_where_as_many_are_asked_for() -> None:
    assert sorted(Uniform().draw(5, 9).tolist()) == [0, 1, 2, 3, 4]
    assert sorted(Window(size=3).draw(10, 9).tolist()) == [7, 8, 9]


def test_window_moves_with_the_history() -> None:
    window = Window(size=2)
    assert [sorted(window.draw(rows, 2).tolist()) for rows in (0, 1, 2, 9)] == [[], [0], [0, 1], [7, 8]]


@pytest.mark.parametrize("size", [0, -1])
def test_window_of_nothing_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=r"sampler\.size"):
        Window(size=size)


def test_draws_differ_from_one_to_the_next() -> None:
    sampler = Uniform(seed=1)
    assert sampler.draw(10**6, 16).tolist() != sampler.draw(10**6, 16).tolist()


class Repeating(Uniform):
    def draw(self, rows: int, count: int) -> np.ndarray:
        return np.zeros(min(rows, count), dtype=np.int64)


class OutOfBounds(Uniform):
    def draw(self, rows: int, count: int) -> np.ndarray:
        return super().draw(rows, count) + 1


class Unseeded(Uniform):
    def __post_init__(self) -> None:
        self._rng = np.random.default_rng()


@pytest.mark.parametrize("kind", [Repeating, OutOfBounds, Unseeded])
def test_check_finds_a_sampler_that_breaks_a_promise(kind: type[Uniform]) -> None:
    with pytest.raises(AssertionError, match="broken promise"):
        check_sampler(kind)
