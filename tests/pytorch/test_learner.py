"""The learner alone: what it is fed with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn, optim

from evergrad import Batch, EveryN, History, Publisher, Trainer, Uniform
from evergrad.pytorch.learner import Learner
from evergrad.pytorch.settings import Forward


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


@pytest.mark.parametrize("forward", ["master", "deployed"])
@pytest.mark.parametrize("last", [True, False])
def test_batches_lie_as_the_model_does_whichever_copy_it_shows(forward: Forward, last: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers)
    if last:
        model = model.to(memory_format=torch.channels_last)
    seen: list[bool] = []
    model[1].register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    optimizer = optim.Adam(model.parameters())
    x = np.random.default_rng(0).random((12, 3, 5, 5), dtype=np.float32)
    y = np.arange(12) % 8
    with (
        History(tmp_path / "history") as history,
        Publisher(model, optimizer, f"memory:layout-{forward}-{last}", density=0.1, forward=forward) as publisher,
        Trainer(
            model=model, loss=nn.functional.cross_entropy, optimizer=optimizer, history=history,
            sampler=Uniform(seed=0), trigger=EveryN(4), batch_size=8, publisher=publisher,
        ) as trainer,
    ):  # fmt: skip
        list(trainer.resume())
        trainer.predict(x[:4])
        for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
            trainer.learn(Batch(x[part], y[part], 1.0))
    assert len(seen) >= 4
    assert set(seen) == {last}
