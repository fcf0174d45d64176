"""Uniform and Window: exact cases and fairness."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evergrad.errors import ConfigError
from evergrad.sampling import Uniform, Window
from evergrad.testing import FakeExamples
from tests.unit.sampling.fairness import Listed, chi_square


def test_all_examples_are_drawn_where_as_many_are_asked_for() -> None:
    assert sorted(Uniform().draw(FakeExamples(), 5, 9).tolist()) == [0, 1, 2, 3, 4]
    assert sorted(Uniform().draw(FakeExamples(first=3), 5, 9).tolist()) == [3, 4]
    assert sorted(Window(size=3).draw(FakeExamples(), 10, 9).tolist()) == [7, 8, 9]


def test_window_moves_with_the_history_and_ends_where_it_does() -> None:
    window, examples = Window(size=2), FakeExamples()
    assert [sorted(window.draw(examples, rows, 2).tolist()) for rows in (0, 1, 2, 9)] == [[], [0], [0, 1], [7, 8]]
    examples.first = 8
    assert window.draw(examples, 9, 2).tolist() == [8]


def test_window_of_seconds_holds_what_arrived_within_them() -> None:
    examples = Listed(np.array([0.0, 0.0, 5.0, 9.0, 9.0, 20.0]))
    window = Window(seconds=9)
    held = [sorted(window.draw(examples, before, 9).tolist()) for before in (0, 2, 3, 5, 6)]
    assert held == [[], [0, 1], [0, 1, 2], [0, 1, 2, 3, 4], [5]]
    assert sorted(Window(seconds=0).draw(examples, 5, 9).tolist()) == [3, 4]
    assert len(Window(seconds=1e300).draw(examples, 6, 9)) == 6
    examples.first = 1
    assert sorted(window.draw(examples, 5, 9).tolist()) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("window", "key"),
    [
        ({"size": 0}, "size"), ({"size": -1}, "size"), ({}, "size"), ({"size": 3, "seconds": 3.0}, "size"),
        ({"seconds": -1.0}, "seconds"), ({"seconds": math.nan}, "seconds"), ({"seconds": math.inf}, "seconds"),
    ],
)  # fmt: skip
def test_window_of_nothing_or_of_two_kinds_is_refused(window: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"sampler\.{key}"):
        Window(**window)


def test_draws_differ_from_one_to_the_next_and_from_seed_to_seed() -> None:
    sampler, examples = Uniform(seed=1), FakeExamples()
    first = sampler.draw(examples, 10**6, 16).tolist()
    assert first != sampler.draw(examples, 10**6, 16).tolist()
    assert (
        first
        == Uniform(seed=1).draw(examples, 10**6, 16).tolist()
        != Uniform(seed=2).draw(examples, 10**6, 16).tolist()
    )


@pytest.mark.parametrize(("sampler", "low"), [(Uniform(), 10), (Window(size=30), 20), (Window(seconds=290), 20)])
def test_each_example_is_drawn_about_equally_often(sampler: Uniform | Window, low: int) -> None:
    examples = FakeExamples(first=10)
    seen = np.bincount(np.concatenate([sampler.draw(examples, 50, 5) for _ in range(4000)]), minlength=50)
    expected = np.where(np.arange(50) >= low, 1 / (50 - low), 0)
    # Draws of five different ones scatter a little less than independent ones.
    assert chi_square(seen, expected) < 5
    assert np.abs(seen[low:] - seen.sum() / (50 - low)).max() < 5 * math.sqrt(seen.sum() / (50 - low))


def test_pairs_are_drawn_about_equally_often() -> None:
    sampler, examples = Uniform(seed=4), FakeExamples()
    pairs = np.sort([sampler.draw(examples, 8, 2) for _ in range(6000)], axis=1)
    seen = np.bincount(pairs[:, 0] * 8 + pairs[:, 1], minlength=64)
    possible = np.triu(np.ones((8, 8)), 1).reshape(-1)
    assert chi_square(seen, possible / 28) < 5
