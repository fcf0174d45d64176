"""Evidence keeps its promise at the edge of the null hypothesis, and grows fast beyond it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evergrad.gate.evidence import Evidence, gain_evidence, gain_factors, share_factors
from evergrad.gate.reference import SHARES, Reference, Rise


def first_alarms(tolerance: float, chance: float, level: float, runs: int, steps: int) -> np.ndarray:
    """The step at which each of many `Rise`s passes `level`, `steps` where none does.

    One uniform number an example, in `steps` batches of 8; it is beyond share q with a chance of `chance` x q.
    """
    rng = np.random.default_rng(0)
    found = np.full(runs, steps)
    for run in range(runs):
        rise = Rise(tolerance)
        for step in range(steps):
            if rise.add(rng.uniform(size=(8, 1)) < np.minimum(1, chance * SHARES), step) >= level:
                found[run] = step
                break
    return found * 8


def test_false_alarms_are_as_rare_as_promised_at_the_edge_of_what_is_tolerated() -> None:
    alarms = first_alarms(tolerance=2.0, chance=2.0, level=math.log(1000), runs=100, steps=100)
    assert (alarms < 800).mean() <= 0.8, "in 800 examples, at 1 in 1000"
    assert (alarms < 80).mean() <= 0.08
    assert (alarms < 800).mean() > 0.01, "it can alarm at all"


def test_usual_losses_give_no_alarm_where_the_edge_gives_some() -> None:
    alarms = first_alarms(tolerance=2.0, chance=1.0, level=math.log(1000), runs=50, steps=100)
    assert (alarms == 800).all()


@pytest.mark.parametrize("restarts", [True, False])
def test_batches_may_be_cut_anywhere(restarts: bool) -> None:
    factors = np.random.default_rng(0).normal(-0.05, 0.3, size=(60, 4))
    whole, parts = Evidence(4, restarts=restarts), Evidence(4, restarts=restarts)
    highest = whole.add(factors, 0)
    peaks = [parts.add(factors[i : i + step], i) for i, step in [(0, 1), (1, 7), (8, 30), (38, 22)]]
    np.testing.assert_allclose(parts.levels, whole.levels, rtol=1e-12)
    assert max(peaks) == pytest.approx(highest)
    assert parts.value == pytest.approx(whole.value)


def test_restarts_are_those_of_the_recursion_and_marks_say_where_the_last_was() -> None:
    factors = np.random.default_rng(1).normal(0.0, 1.0, size=(200, 3))
    evidence = Evidence(3, restarts=True)
    levels, marks = np.zeros(3), np.zeros(3)
    for i, row in enumerate(factors):
        marks = np.where(levels <= 0, i, marks)
        levels = np.maximum(levels, 0) + row
        evidence.add(row[None], i)
        np.testing.assert_allclose(evidence.levels, levels)
        np.testing.assert_array_equal(evidence.marks, marks)
    assert evidence.mark == marks[levels.argmax()]


@pytest.mark.parametrize("happened", [True, False])
def test_a_likelihood_ratio_has_a_mean_of_one_at_its_null_hypothesis(happened: bool) -> None:
    null, alternative = np.array([0.3, 0.6]), np.array([0.9, 0.2])
    won, lost = (np.exp(share_factors(np.array([[x, x]]), null, alternative)) for x in (True, False))
    np.testing.assert_allclose(null * won + (1 - null) * lost, 1)
    assert ((won > lost) == (alternative > null)).all()


def test_gains_without_a_mean_seldom_convince() -> None:
    rng = np.random.default_rng(0)
    convinced = 0
    for _ in range(400):
        evidence = gain_evidence(restarts=False)
        convinced += evidence.add(gain_factors(rng.choice([-1.0, 0.0, 1.0], 500)), 0) >= math.log(20)
    assert 0 < convinced <= 0.05 * 400


def test_gains_with_a_mean_convince() -> None:
    gains = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 300, p=[0.05, 0.65, 0.3])
    assert gain_evidence(restarts=False).add(gain_factors(gains), 0) > math.log(1e4)


def test_reference_calls_the_stated_shares_large_and_equal_losses_not() -> None:
    rng = np.random.default_rng(0)
    reference = Reference(1000)
    reference.add(rng.normal(size=1250), 0)
    found = reference.above(rng.normal(size=20_000)).mean(axis=0)
    np.testing.assert_allclose(found, SHARES, rtol=0.35)
    reference.add(np.full(1250, 3.0), 1)
    assert not reference.above(np.full(5, 3.0)).any()
    assert reference.above(np.array([3.1, np.nan, np.inf, -np.inf])).all()


def test_newest_losses_wait_and_those_of_a_rise_are_taken_out_again() -> None:
    reference = Reference(400)
    for i in range(50):
        reference.add(np.ones(8), i)
    reference.add(np.full(96, 5.0), 50)
    assert reference.limit == 1.0
    reference.add(np.full(96, 5.0), 51)
    assert reference.limit == 5.0
    dropped = reference.drop_from(50)
    assert dropped.tolist() == [5.0] * 192
    assert (reference.losses == 1.0).all()


def test_limits_are_infinite_until_half_of_the_reference_is_there() -> None:
    reference = Reference(400)
    reference.add(np.ones(199), 0)
    assert reference.limit == math.inf
    assert not reference.above(np.array([1e300])).any()
    reference.add(np.ones(1), 1)
    assert reference.limit == 1.0
