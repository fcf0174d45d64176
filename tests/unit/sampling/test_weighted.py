"""LeastUsed and LossPrioritised: their weights, and that draws follow them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evergrad.errors import ConfigError
from evergrad.sampling import Feedback, LeastUsed, LossPrioritised
from evergrad.testing import FakeExamples
from tests.unit.sampling.fairness import chi_square, fits_successive


def test_least_used_weighs_by_one_over_the_batches_an_example_was_in() -> None:
    examples, seen = FakeExamples(), np.zeros(6)
    for seed in range(3000):
        sampler = LeastUsed(seed=seed)
        sampler.draw(examples, 2, 2)
        sampler.draw(examples, 2, 2)
        sampler.draw(examples, 4, 4)  # now four batches, four, two, two; the next two are new
        seen[sampler.draw(examples, 6, 1)[0]] += 1
    weights = np.array([1 / 4, 1 / 4, 1 / 2, 1 / 2, 1, 1])
    assert chi_square(seen, weights / weights.sum()) < 5


def test_examples_from_before_the_first_draw_count_as_used_so_often() -> None:
    examples, seen = FakeExamples(), np.zeros(8)
    for seed in range(3000):
        sampler = LeastUsed(used_before=9, seed=seed)
        sampler.draw(examples, 4, 4)
        seen[sampler.draw(examples, 8, 1)[0]] += 1
    weights = np.repeat([1 / 10, 1], 4)
    assert chi_square(seen, weights / weights.sum()) < 5


def test_least_used_brings_all_into_play_equally_often() -> None:
    sampler, examples = LeastUsed(), FakeExamples()
    times = np.bincount(np.concatenate([sampler.draw(examples, 50, 5) for _ in range(2000)]), minlength=50)
    assert times.sum() == 10_000
    assert times.std() < 11  # of 200 each; uniform draws have 13.4


def test_use_is_counted_exactly_however_often() -> None:
    sampler, examples = LeastUsed(), FakeExamples()
    for _ in range(5000):
        sampler.draw(examples, 3, 3)
    assert np.rint(1 / sampler._tree.get(np.arange(3)).astype(float)).tolist() == [5001] * 3


def learned(losses: list[float], **options: float) -> LossPrioritised:
    sampler = LossPrioritised(**options)
    sampler.draw(FakeExamples(), 0, 0)
    sampler.learned(np.arange(len(losses)), np.array(losses))
    return sampler


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_priority_is_the_last_loss_to_the_power_of_alpha(alpha: float) -> None:
    losses = np.array([0.0, 0.1, 0.5, 1.0, 4.0])
    sampler = learned([9.0] * 5, alpha=alpha, epsilon=0.05)
    sampler.learned(np.array([3, 1, 2, 0, 4]), losses[[3, 1, 2, 0, 4]])
    fits_successive(lambda: sampler.draw(FakeExamples(), 5, 2), (losses + 0.05) ** alpha, 12_000)


def test_example_that_was_in_no_batch_has_the_highest_priority_so_far() -> None:
    fresh = LossPrioritised()
    fresh.draw(FakeExamples(), 3, 0)
    assert fresh._tree.get(np.arange(3)).tolist() == [1.0] * 3
    sampler = learned([0.1, 3.0], alpha=1.0, epsilon=0.5)
    sampler.learned(np.array([1]), np.array([0.1]))
    sampler.draw(FakeExamples(), 4, 0)
    assert sampler._tree.get(np.arange(4)).tolist() == pytest.approx([0.6, 0.6, 3.5, 3.5])


def test_losses_that_are_no_numbers_or_of_examples_gone_change_nothing() -> None:
    sampler, examples = learned([1.0] * 10, alpha=1.0, epsilon=1e-3), FakeExamples()
    sampler.learned(np.arange(3), np.array([math.nan, math.inf, -5.0]))
    assert sampler._tree.get(np.arange(3)).tolist() == pytest.approx([1.001, 1.001, 0.001])
    examples.first = 5
    sampler.draw(examples, 10, 1)
    before = sampler.state_dict()["tree"]["weights"]
    sampler.learned(np.arange(5), np.full(5, 7.0))
    assert np.array_equal(sampler.state_dict()["tree"]["weights"], before)
    sampler.learned(np.arange(5, 10), np.full(5, 1e300))
    assert sorted(sampler.draw(examples, 10, 9).tolist()) == list(range(5, 10))


def test_what_is_learned_before_the_first_draw_asks_for_no_memory() -> None:
    sampler = LossPrioritised()
    sampler.learned(np.array([10**15]), np.array([1.0]))
    assert sampler.draw(FakeExamples(first=10**15 - 3), 10**15, 9).tolist() != []


def test_only_the_sampler_that_learns_is_one() -> None:
    assert isinstance(LossPrioritised(), Feedback)
    assert not isinstance(LeastUsed(), Feedback)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: LeastUsed(used_before=0), "used_before"),
        (lambda: LossPrioritised(alpha=-0.1), "alpha"),
        (lambda: LossPrioritised(alpha=1.1), "alpha"),
        (lambda: LossPrioritised(alpha=math.nan), "alpha"),
        (lambda: LossPrioritised(epsilon=0.0), "epsilon"),
        (lambda: LossPrioritised(epsilon=math.inf), "epsilon"),
    ],
)
def test_settings_out_of_range_are_refused(make, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"sampler\.{key}"):
        make()
