"""Reservoir: at any time a uniform sample of what is held, with and without retention."""

from __future__ import annotations

import numpy as np
import pytest

from evergrad.errors import ConfigError
from evergrad.sampling import Reservoir
from evergrad.testing import FakeExamples
from tests.unit.sampling.fairness import chi_square


def members(steps: list[tuple[int, int]], capacity: int, seed: int) -> list[int]:
    sampler, examples = Reservoir(capacity, seed=seed), FakeExamples()
    for first, before in steps:
        examples.first = first
        drawn = sampler.draw(examples, before, capacity)
    return drawn.tolist()


@pytest.mark.parametrize(
    ("steps", "low", "high"),
    [
        ([(0, 40)], 0, 40),
        ([(0, 3), (0, 9), (0, 10), (0, 31), (0, 40)], 0, 40),
        ([(0, 40), (20, 40)], 20, 40),
        ([(0, 40), (15, 40), (20, 60)], 20, 60),
        ([(0, 20), (1, 25), (2, 30), (3, 45), (20, 60)], 20, 60),
        ([(0, 90), (5, 90), (10, 90)], 10, 90),
        ([(0, 30), (50, 60), (50, 90)], 50, 90),
    ],
)
def test_every_example_held_is_as_likely_to_be_in_it(steps: list[tuple[int, int]], low: int, high: int) -> None:
    kept = [members(steps, 8, seed) for seed in range(3000)]
    assert {len(set(each)) for each in kept} == {8}
    expected = np.where(np.arange(high) >= low, 1 / (high - low), 0)
    seen = np.bincount(np.concatenate(kept), minlength=high)
    assert chi_square(seen, expected) < 5
    # Eight different ones of so few scatter less than independent ones: far less would be no chance either.
    assert chi_square(seen, expected) > -5


def test_pairs_are_as_likely_as_each_other_after_retention() -> None:
    pairs = np.sort([members([(0, 20), (10, 20), (12, 18 + 2)], 2, seed) for seed in range(6000)], axis=1) - 12
    possible = np.triu(np.ones((8, 8)), 1).reshape(-1)
    assert chi_square(np.bincount(pairs[:, 0] * 8 + pairs[:, 1], minlength=64), possible / 28) < 5


def test_draws_come_from_the_reservoir_alone_until_something_arrives() -> None:
    sampler, examples = Reservoir(10), FakeExamples()
    held = set(sampler.draw(examples, 10_000, 10).tolist())
    drawn = [sampler.draw(examples, 10_000, 4) for _ in range(2000)]
    seen = np.bincount(np.concatenate(drawn), minlength=10_000)[sorted(held)]
    assert seen.sum() == 8000
    assert chi_square(seen, np.full(10, 0.1)) < 5
    assert len(sampler.draw(examples, 10_000, 64)) == 10


def test_history_longer_than_it_reads_at_once_is_taken_in_whole() -> None:
    drawn = np.concatenate([Reservoir(200, seed=seed).draw(FakeExamples(), 200_000, 200) for seed in range(20)])
    assert chi_square(np.histogram(drawn, bins=10, range=(0, 200_000))[0], np.full(10, 0.1)) < 5


def test_another_capacity_cannot_go_on_from_its_state() -> None:
    sampler = Reservoir(10)
    sampler.draw(FakeExamples(), 100, 4)
    with pytest.raises(ConfigError, match=r"sampler\.capacity: is 11, and 10 in the saved state"):
        Reservoir(11).load_state_dict(sampler.state_dict())


@pytest.mark.parametrize("capacity", [0, -1])
def test_capacity_of_nothing_is_refused(capacity: int) -> None:
    with pytest.raises(ConfigError, match=r"sampler\.capacity"):
        Reservoir(capacity)
