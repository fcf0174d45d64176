"""Strategies side by side, scored by what they served at each moment."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from evergrad import Batch, EveryN, History, Publisher, Trainer, Uniform
from evergrad.errors import ConfigError
from evergrad.metrics import accuracy, log_loss
from evergrad.pytorch.learner import Learned, Learner
from evergrad.pytorch.strategies import NeverUpdated, Retrained, compare, finished_s
from tests.pipeline.tasks import make_examples, seeded_model


def learner(seed: int = 0) -> Learner:
    model = seeded_model(seed)
    return Learner(model, cross_entropy, torch.optim.Adam(model.parameters(), 1e-2))


class Counting(Learner):
    """Tells how long its batches are."""

    def __init__(self, sizes: list[int]) -> None:
        model = nn.Linear(make_examples(1)[0].shape[1], 4)
        super().__init__(model, cross_entropy, torch.optim.SGD(model.parameters(), 0.1))
        self.sizes = sizes

    def learn(self, x: torch.Tensor, y: torch.Tensor) -> Learned:
        self.sizes.append(len(x))
        return super().learn(x, y)


def stream(batches: int, every_s: float = 1.0) -> Iterator[Batch]:
    """The labels mean something else in the second half."""
    x, y = make_examples(8 * batches)
    for number in range(batches):
        part = slice(8 * number, 8 * number + 8)
        labels = (y[part] + (number >= batches // 2)) % 4
        yield Batch(x[part], labels, 1000.0 + every_s * number)


def trained(folder: Path, *, batch_size: int = 32, log: str | None = None) -> Trainer:
    own = learner()
    publisher = Publisher(own.model, own.optimizer, log, density=0.2) if log else None
    return Trainer(
        model=own.model, loss=cross_entropy, optimizer=own.optimizer, history=History(folder), trigger=EveryN(8),
        sampler=Uniform(seed=1), batch_size=batch_size, publisher=publisher,
    )  # fmt: skip


def test_all_see_the_same_stream_and_each_is_scored_by_what_it_served(tmp_path: Path) -> None:
    strategies = {
        "never": NeverUpdated(learner()),
        "online": trained(tmp_path / "online", batch_size=1),
        "proactive": trained(tmp_path / "dense"),
        "sparse": trained(tmp_path / "sparse", log=f"file:{tmp_path / 'log'}"),
        "retrained": Retrained(learner, learner(), every=400, epochs=2, batch_size=32, took_s=lambda _: 0.0),
    }
    *_, last = compare(strategies, stream(200), {"accuracy": accuracy, "log_loss": log_loss}, window=100)
    assert {standing.examples for standing in last.values()} == {1600}
    scores = {name: standing.scores["accuracy"] for name, standing in last.items()}
    assert scores["never"] < 0.4
    assert scores["proactive"] > scores["never"] + 0.2
    assert scores["sparse"] > scores["never"] + 0.2
    assert scores["online"] > scores["never"] + 0.2
    assert all(standing.learn_s > 0 for standing in last.values())
    assert "accuracy_windowed" in last["never"].scores


@pytest.mark.parametrize("took_s", [0.0, 25.0])
def test_a_retraining_serves_from_when_it_would_have_been_done(took_s: float) -> None:
    strategy = Retrained(learner, learner(9), every=160, epochs=3, batch_size=32, took_s=lambda _: took_s)
    first = strategy.predict(make_examples(4)[0])
    changed_at = []
    for number, batch in enumerate(stream(100)):
        strategy.learn(batch)
        now = strategy.predict(make_examples(4)[0])
        if not np.array_equal(now, first):
            changed_at.append(number)
            first = now
    begun = [19, 39, 59, 79, 99]
    assert changed_at == [number + int(took_s) for number in begun if number + took_s < 100]
    assert strategy.trainings == 5


def test_cold_begins_from_scratch_and_warm_from_the_newest(tmp_path: Path) -> None:
    made: list[Learner] = []

    class Watched(Learner):
        def learn(self, x: Any, y: Any) -> Any:
            if self.steps == 0:
                self.begun = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            return super().learn(x, y)

    def make() -> Learner:
        model = seeded_model(1)
        made.append(Watched(model, cross_entropy, torch.optim.SGD(model.parameters(), 0.1)))
        return made[-1]

    for warm in (False, True):
        made.clear()
        strategy = Retrained(make, learner(), every=80, epochs=1, batch_size=32, warm=warm, took_s=lambda _: 0.0)
        for batch in stream(20):
            strategy.learn(batch)
        assert strategy.trainings == 2
        fresh = seeded_model(1).state_dict()
        newest = made[0].model.state_dict()
        begun = made[1].begun  # type: ignore[attr-defined]
        expected = newest if warm else fresh
        assert all(torch.equal(begun[name], expected[name]) for name in expected)


def test_each_retraining_goes_through_all_examples_so_far() -> None:
    seen: list[int] = []
    before = make_examples(40, seed=5)
    strategy = Retrained(lambda: Counting(seen), learner(), every=80, epochs=2, batch_size=50, seen=before)
    for batch in stream(20):
        strategy.learn(batch)
    assert seen == [50, 50, 20] * 2 + [50, 50, 50, 50] * 2


@pytest.mark.parametrize(
    ("examples", "size", "expected"), [(33, 16, [16, 17]), (34, 16, [16, 16, 2]), (3, 1, [1, 1, 1]), (1, 16, [1])]
)
def test_an_example_that_is_left_over_joins_the_last_batch(examples: int, size: int, expected: list[int]) -> None:
    seen: list[int] = []
    x, y = make_examples(examples)
    Retrained(lambda: Counting(seen), learner(), every=examples, epochs=1, batch_size=size).learn(Batch(x, y, 1.0))
    assert seen == expected


def test_batchnorm_can_be_retrained_whatever_the_number_of_examples() -> None:
    def make() -> Learner:
        model = nn.Sequential(nn.Linear(make_examples(1)[0].shape[1], 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        return Learner(model, cross_entropy, torch.optim.SGD(model.parameters(), 0.1))

    strategy = Retrained(make, learner(), every=33, epochs=2, batch_size=32)
    x, y = make_examples(33)
    strategy.learn(Batch(x, y, 1.0))
    assert strategy.trainings == 1


def test_from_a_history_it_learns_what_it_learns_from_memory(tmp_path: Path) -> None:
    def options() -> dict[str, Any]:
        return {"every": 80, "epochs": 2, "batch_size": 32, "took_s": lambda _: 0.0}

    seen = make_examples(40, seed=5)
    with History(tmp_path) as history:
        history.append({"x": seen[0], "y": seen[1]}, arrived_s=1.0)
        pair = (
            Retrained(learner, learner(), seen=seen, **options()),
            Retrained(learner, learner(), history=history, **options()),
        )
        for batch in stream(20):
            for each in pair:
                each.learn(batch)
        assert len(history) == 200
        assert [each.trainings for each in pair] == [2, 2]
        x, _ = make_examples(16)
        assert np.array_equal(pair[0].predict(x), pair[1].predict(x))


def test_what_a_history_excludes_is_not_trained_on(tmp_path: Path) -> None:
    seen: list[int] = []
    with History(tmp_path) as history:
        x, y = make_examples(20)
        history.append({"x": x, "y": y}, arrived_s=1.0)
        history.exclude(0, 15)
        strategy = Retrained(lambda: Counting(seen), learner(), every=20, epochs=1, batch_size=64, history=history)
        strategy.learn(Batch(x, y, 2.0))
    assert seen == [25]


def test_what_was_seen_belongs_in_the_history_where_there_is_one(tmp_path: Path) -> None:
    with History(tmp_path) as history, pytest.raises(ConfigError, match="append what was seen"):
        Retrained(learner, learner(), every=8, epochs=1, batch_size=8, seen=make_examples(4), history=history)


def test_never_updated_never_changes() -> None:
    strategy = NeverUpdated(learner())
    x, _ = make_examples(8)
    before = strategy.predict(x)
    for batch in stream(5):
        strategy.learn(batch)
    assert np.array_equal(strategy.predict(x), before)


@pytest.mark.parametrize("setting", ["every", "epochs", "batch_size"])
def test_settings_out_of_range_are_refused(setting: str) -> None:
    settings: dict[str, Any] = {"every": 8, "epochs": 1, "batch_size": 8, setting: 0}
    with pytest.raises(ConfigError, match=setting):
        Retrained(learner, learner(), **settings)


def test_time_is_taken_by_the_clock_that_is_given() -> None:
    now_s = 0.0

    class Slow:
        def predict(self, x: Any) -> Any:
            nonlocal now_s
            now_s += 2.0
            return np.zeros((len(x), 4), np.float32)

        def learn(self, batch: Batch) -> None:
            nonlocal now_s
            now_s += 5.0

    *_, last = compare({"slow": Slow()}, stream(3), {"accuracy": accuracy}, clock=lambda: now_s)
    assert (last["slow"].predict_s, last["slow"].learn_s) == (6.0, 15.0)


@pytest.mark.parametrize("used", [True, False])
def test_the_clock_waits_for_a_gpu_that_is_used(used: bool) -> None:
    class Gpu:
        waited = 0

        def is_initialized(self) -> bool:
            return used

        def synchronize(self) -> None:
            self.waited += 1

    gpu = Gpu()
    assert 0 < finished_s(gpu) <= finished_s(gpu)
    assert gpu.waited == 2 * used


def test_strategies_are_timed_by_that_clock_unless_another_is_given() -> None:
    assert inspect.signature(compare).parameters["clock"].default is finished_s
