"""Means over a stream: of all, of a window, fading."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from evergrad.errors import ConfigError
from evergrad.metrics import Fading, Running, Windowed

MEANS = {"running": Running, "windowed": lambda: Windowed(1000), "fading": lambda: Fading(1e12)}


@pytest.mark.parametrize("kind", MEANS)
def test_mean_is_nan_before_the_first_value_and_the_mean_after(kind: str) -> None:
    mean = MEANS[kind]()
    assert math.isnan(mean.value)
    mean.add([])
    assert math.isnan(mean.value)
    for values in (2.0, [1.0, 3.0], np.array([[6.0], [8.0]])):
        mean.add(values)
    assert mean.value == pytest.approx(4.0)


def test_window_forgets_all_but_the_last() -> None:
    mean = Windowed(3)
    mean.add([100.0, 1.0, 2.0])
    mean.add([3.0])
    assert mean.value == 2.0
    mean.add(range(50))
    assert mean.value == 48.0


def test_fading_value_counts_half_after_its_half_life() -> None:
    mean = Fading(half_life=3)
    mean.add([8.0, 0.0, 0.0, 0.0])
    decay = 0.5 ** (1 / 3)
    assert mean.value == pytest.approx(8 * 0.5 / (0.5 + decay**2 + decay + 1))


def test_fading_is_the_same_in_one_batch_or_in_many() -> None:
    one, many = Fading(5), Fading(5)
    values = np.random.default_rng(0).random(40)
    one.add(values)
    for value in values:
        many.add(value)
    assert one.value == many.value


def test_fading_follows_a_change_and_settles() -> None:
    mean = Fading(10)
    mean.add(np.zeros(1000))
    mean.add(np.ones(10))
    assert mean.value == pytest.approx(0.5, abs=1e-6)
    mean.add(np.ones(1000))
    assert mean.value == pytest.approx(1.0)


@pytest.mark.parametrize("kind", MEANS)
def test_mean_goes_on_from_its_state_bit_for_bit(kind: str) -> None:
    values = np.random.default_rng(0).random(50)
    whole, again = MEANS[kind](), MEANS[kind]()
    whole.add(values[:20])
    again.add([5.0])
    again.load_state_dict(whole.state_dict())
    for mean in (whole, again):
        mean.add(values[20:])
    assert again.value == whole.value


def test_state_of_a_mean_is_not_live() -> None:
    for kind, make in MEANS.items():
        mean, other = make(), make()
        mean.add([1.0, 2.0])
        state = mean.state_dict()
        mean.add([30.0])
        other.load_state_dict(state)
        assert other.value == pytest.approx(1.5), kind


def test_smaller_window_takes_the_newest_of_a_state() -> None:
    large, small = Windowed(5), Windowed(2)
    large.add([1, 2, 3, 4])
    small.load_state_dict(large.state_dict())
    assert small.value == 3.5


def test_nan_leaves_a_window_and_stays_elsewhere() -> None:
    for mean, found in ((Running(), math.nan), (Windowed(2), 1.0), (Fading(2), math.nan)):
        mean.add([math.nan, 1.0, 1.0])
        assert mean.value == pytest.approx(found, nan_ok=True)


@pytest.mark.parametrize("size", [0, -1, 2.0, None, math.nan])
def test_window_that_holds_nothing_is_refused(size: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Windowed(size)
    assert (caught.value.key, str(size) in caught.value.problem) == ("window", True)


@pytest.mark.parametrize("half_life", [0, -1.0, math.nan])
def test_half_life_that_is_none_is_refused(half_life: float) -> None:
    with pytest.raises(ConfigError) as caught:
        Fading(half_life)
    assert (caught.value.key, str(half_life) in caught.value.problem) == ("half_life", True)
