"""The learner alone: what it is fed with."""

from __future__ import annotations

import numpy as np
from torch import nn, optim

from evergrad.pytorch.learner import Learner


def test_arrays_that_are_read_only_are_taken_without_a_warning_and_stay_as_they_are() -> None:
    model = nn.Linear(3, 2)
    learner = Learner(model, nn.functional.cross_entropy, optim.SGD(model.parameters(), 0.1))
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    y = np.array([0, 1, 0, 1])
    expected, losses = learner.predict(x), learner.losses_of(learner.predict(x), y)
    for array in (x, y, expected):
        array.setflags(write=False)
    assert np.array_equal(learner.predict(x), expected)
    assert np.array_equal(learner.losses_of(expected, y), losses)
    assert np.array_equal(learner.predict(x[::2]), learner.predict(np.ascontiguousarray(x[::2])))
