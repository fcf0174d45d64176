"""TimeBiased: by time and not by number, exact in the newest and in all older ones, at any span of times."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evergrad.errors import ConfigError
from evergrad.sampling import TimeBiased
from evergrad.testing import FakeExamples
from tests.unit.sampling.fairness import Listed, chi_square, fits_successive

BURSTS = np.sort(np.concatenate((np.linspace(0, 60, 9), np.full(12, 40.0), np.linspace(70, 71, 8), [90.0, 99.0])))


def weights(times_s: np.ndarray, half_life_s: float) -> np.ndarray:
    return np.exp2((times_s - times_s[-1]) / half_life_s)


@pytest.mark.parametrize("half_life_s", [8.0, 30.0, 1000.0])
def test_older_examples_halve_with_each_half_life_whatever_the_rate_of_arrival(half_life_s: float) -> None:
    examples, sampler = Listed(BURSTS), TimeBiased(half_life_s, seed=3)
    expected = weights(BURSTS, half_life_s)
    likely = expected > 1e-3 * expected.max()  # the others together are one cell
    drawn = np.array([sampler.draw(examples, len(BURSTS), 1)[0] for _ in range(8000)])
    cells = np.append(np.bincount(drawn, minlength=len(BURSTS))[likely], np.sum(~likely[drawn]))
    shares = np.append(expected[likely], expected[~likely].sum()) / expected.sum()
    keep = shares * 8000 >= 5
    assert chi_square(cells[keep], shares[keep] / shares[keep].sum()) < 5
    assert cells[~keep].sum() <= 20


ONE_HALF_LIFE_OLDER = np.repeat([0.0, 59.0], [30, 5])


@pytest.mark.parametrize("times_s", [BURSTS, ONE_HALF_LIFE_OLDER])
def test_second_draw_is_in_proportion_to_the_rest(times_s: np.ndarray) -> None:
    examples, sampler = Listed(times_s), TimeBiased(60.0, seed=5)
    fits_successive(lambda: sampler.draw(examples, len(times_s), 2), weights(times_s, 60.0), 8000)


def test_many_at_once_are_drawn_as_numpy_would() -> None:
    examples, sampler, rng = Listed(BURSTS), TimeBiased(15.0, seed=6), np.random.default_rng(7)
    shares = weights(BURSTS, 15.0) / weights(BURSTS, 15.0).sum()
    mine = np.bincount(np.concatenate([sampler.draw(examples, 31, 10) for _ in range(6000)]), minlength=31)
    theirs = np.bincount(np.concatenate([rng.choice(31, 10, False, shares) for _ in range(6000)]), minlength=31)
    deviation = np.sqrt(2 * 6000 * np.maximum(theirs / 6000 * (1 - theirs / 6000), 1e-3))
    assert (np.abs(mine - theirs) < 5 * deviation).all()


def test_after_a_long_pause_the_new_come_first_and_the_batch_is_filled_from_before_it() -> None:
    examples = Listed(np.concatenate((np.arange(1000.0), 1e7 + np.arange(10.0))))
    sampler = TimeBiased(50.0, seed=1)
    for _ in range(50):
        drawn = sampler.draw(examples, 1010, 40)
        assert len(np.unique(drawn)) == 40
        assert set(drawn.tolist()) >= set(range(1000, 1010))
        rest = drawn[drawn < 1000]
        assert rest.mean() > 850  # of those before the pause, again the newer ones


def test_times_far_apart_are_drawn_newest_first_and_a_clock_set_back_ends_no_draw() -> None:
    apart = Listed(np.arange(500) * 1e5)
    assert sorted(TimeBiased(1e-6).draw(apart, 500, 64).tolist()) == list(range(436, 500))
    back = Listed(np.concatenate((np.arange(900.0) + 1e6, np.arange(100.0))))
    back.since = lambda arrived_us: 0 if arrived_us < 1e12 else 1000  # type: ignore[method-assign]
    for count in (1, 20, 60, 400):
        assert len(np.unique(TimeBiased(1.0).draw(back, 1000, count))) == count


def test_draw_reads_no_more_of_a_long_history_than_a_few_batches() -> None:
    class Counting(FakeExamples):
        read, asked = 0, 0

        def arrived_us(self, ids):
            self.read += len(ids)
            return super().arrived_us(ids)

        def since(self, arrived_us):
            self.asked += 1
            return super().since(arrived_us)

    for half_life_s in (1.0, 1e4, 1e12):
        examples, sampler = Counting(), TimeBiased(half_life_s)
        for _ in range(10):
            sampler.draw(examples, 10**7, 128)
        assert examples.read < 10 * 8 * 128
        assert examples.asked <= 10 * 25


@pytest.mark.parametrize("half_life_s", [0.0, -1.0, 1e-9, math.inf, math.nan])
def test_half_life_of_nothing_or_for_ever_is_refused(half_life_s: float) -> None:
    with pytest.raises(ConfigError, match=r"sampler\.half_life_s"):
        TimeBiased(half_life_s)
