"""What users have becomes batches, in order, with the time of arrival."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evergrad.errors import ConfigError
from evergrad.stream import Batch, batches
from evergrad.testing import FakeClock


class Tensorlike:
    """Gives an array as tensors do."""

    def __init__(self, values: list[float]) -> None:
        self._values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._values, dtype=dtype)


def test_pairs_have_just_arrived_and_batches_keep_their_time() -> None:
    clock = FakeClock(10.0)
    given = Batch(np.zeros((1, 2)), np.zeros(1), 3.0)
    source = [(np.ones((2, 2)), np.ones(2)), [Tensorlike([1, 2]), [3, 4]], given]
    found = []
    for batch in batches(source, clock):
        found.append((len(batch), batch.arrived_s))
        clock.advance(1.0)
    assert found == [(2, 10.0), (2, 11.0), (1, 3.0)]


def test_batches_keep_what_was_served() -> None:
    given = Batch(np.zeros((2, 1)), np.zeros(2), 0.0, np.ones((2, 5)))
    (found,) = batches([given], FakeClock())
    assert found.outputs is given.outputs
    (found,) = batches([(np.zeros(2), np.zeros(2))], FakeClock())
    assert found.outputs is None


def test_source_is_read_one_item_at_a_time() -> None:
    read: list[int] = []

    def source() -> Any:
        for number in range(3):
            read.append(number)
            yield np.zeros(1), np.zeros(1)

    stream = batches(source(), FakeClock())
    next(stream)
    assert read == [0]


def test_empty_batches_are_passed_over() -> None:
    source = [(np.zeros((0, 3)), np.zeros(0)), (np.zeros((1, 3)), np.zeros(1))]
    assert [len(batch) for batch in batches(source, FakeClock())] == [1]


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (3, "item 1 is int"),
        ((np.zeros(2),), "item 1 is tuple"),
        ((np.zeros(2), np.zeros(2), np.zeros(2)), "item 1 is tuple"),
        ({"x": 1, "y": 2}, "item 1 is dict"),
        ("xy", "item 1 is str"),
        ((np.zeros(2), np.zeros(3)), "x of shape (2,) and y of shape (3,)"),
        ((np.float32(1), np.zeros(1)), "x of shape () and y of shape (1,)"),
        (Batch(np.zeros((2, 1)), np.zeros(1), 0.0), "x of shape (2, 1) and y of shape (1,)"),
        (Batch(np.zeros((2, 1)), np.zeros(2), 0.0, np.zeros(3)), "x of shape (2, 1) and outputs of (3,)"),
        (Batch(np.zeros((2, 1)), np.zeros(2), 0.0, np.zeros(())), "x of shape (2, 1) and outputs of ()"),
    ],
)
def test_item_that_is_no_batch_is_told_by_its_number(item: Any, problem: str) -> None:
    stream = batches([(np.zeros(1), np.zeros(1)), item], FakeClock())
    next(stream)
    with pytest.raises(ConfigError) as caught:
        next(stream)
    assert caught.value.key == "stream"
    assert problem in caught.value.problem
