"""Rolling back trainer and replicas in one call, and training again without some examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import evergrad
from evergrad.errors import ConfigError, VersionNotInLog
from evergrad.maintain import state_at
from evergrad.pipeline import retrain, roll_back
from tests.pipeline.tasks import make_examples, seeded_model


class Parts:
    """A trainer and what it stands on."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.url = f"file:{folder / 'log'}"
        self.model = seeded_model()
        optimizer = torch.optim.SGD(self.model.parameters(), 0.05)
        self.publisher = evergrad.Publisher(self.model, optimizer, self.url, density=0.3, **settings)
        self.history = evergrad.History(folder / "history")
        self.trainer = evergrad.Trainer(
            model=self.model, loss=cross_entropy, optimizer=optimizer, history=self.history,
            sampler=evergrad.Uniform(seed=1), trigger=evergrad.EveryN(8), batch_size=32, publisher=self.publisher,
        )  # fmt: skip

    def learn(self, first: int, last: int, poison: range = range(0)) -> None:
        x, y = make_examples(8 * last)
        for number in range(first, last):
            part = slice(8 * number, 8 * number + 8)
            labels = (y[part] + 1) % 4 if number in poison else y[part]
            self.trainer.learn(evergrad.Batch(x[part], labels, 1000.0 + number))

    def accuracy(self) -> float:
        x, y = make_examples(500, seed=50)
        return float((self.trainer.predict(x).argmax(1) == y).mean())


@pytest.mark.parametrize("forward", ["deployed", "master"])
def test_trainer_and_replicas_go_back_in_one_call(forward: str, tmp_path: Path) -> None:
    parts = Parts(tmp_path, forward=forward)
    replica = evergrad.Replica(parts.url)
    parts.learn(0, 30)
    replica.sync()
    published = roll_back(parts.publisher, 12)
    assert published is not None
    assert (published.version, replica.sync()) == (31, 31)
    assert replica.digest == parts.publisher.digest == state_at(parts.publisher.log, 12).state.digest
    with parts.publisher.master() as model:
        for name, tensor in model.state_dict().items():
            assert np.array_equal(tensor.numpy(), replica.weights[name])
    parts.learn(30, 40)
    assert (replica.sync(), replica.digest) == (41, parts.publisher.digest)


def test_going_back_to_a_version_that_nobody_wrote_changes_nothing(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.learn(0, 5)
    digest = parts.publisher.digest
    with pytest.raises(VersionNotInLog):
        roll_back(parts.publisher, 99)
    assert (parts.publisher.version, parts.publisher.digest) == (5, digest)


def test_training_again_without_poisoned_examples_undoes_them(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    poison = range(60, 100)
    parts.learn(0, 110, poison)
    harmed = parts.accuracy()
    last_good = 60
    published = retrain(
        parts.trainer, parts.publisher, parts.history, version=last_good, without=[(8 * poison.start, 8 * poison.stop)]
    )
    assert published is not None
    assert published.version == 111
    assert parts.accuracy() > harmed + 0.02
    replica = evergrad.Replica(parts.url)
    assert (replica.sync(), replica.digest) == (111, parts.publisher.digest)
    assert parts.history.excluded_ranges == ((480, 800),)
    assert evergrad.open_log(parts.url).read(111)[0].examples == range(480, 880)
    parts.learn(110, 115)
    assert (replica.sync(), replica.digest) == (116, parts.publisher.digest)


def test_training_again_from_the_first_version_takes_all(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.learn(0, 10)
    published = retrain(parts.trainer, parts.publisher, parts.history, version=0, without=[])
    assert published is not None
    assert evergrad.open_log(parts.url).read(11)[0].examples == range(80)


def test_a_version_that_does_not_say_what_it_learned_from_is_refused(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.learn(0, 5)
    roll_back(parts.publisher, 3)
    with pytest.raises(ConfigError, match="does not say which examples"):
        retrain(parts.trainer, parts.publisher, parts.history, version=6, without=[])
