"""Means over a stream, and scores of a batch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evergrad.metrics import Fading, Running, Windowed, absolute_error, accuracy

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


def test_accuracy_is_one_where_the_largest_output_is_at_the_label() -> None:
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], "f4")
    found = accuracy(outputs, np.array([1, 1, 1]))
    assert (found.dtype, found.tolist()) == (np.float64, [1.0, 0.0, 1.0])


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1)])
def test_absolute_error_is_one_number_an_example_whatever_the_shape(shape: tuple[int, ...]) -> None:
    outputs, labels = np.array([1.0, -2.0], "f4"), np.array([3.0, -1.0], "f4")
    assert absolute_error(outputs.reshape(shape), labels).tolist() == [2.0, 1.0]
    assert absolute_error(outputs, labels.reshape(shape)).tolist() == [2.0, 1.0]


def test_absolute_error_is_the_mean_over_further_axes() -> None:
    assert absolute_error(np.ones((2, 2, 2)), np.zeros((2, 2, 2))).tolist() == [1.0, 1.0]
    assert absolute_error(np.array([[1.0, 3.0]]), np.array([[0.0, 0.0]])).tolist() == [2.0]
