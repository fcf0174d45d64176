from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from evergrad import Batch, EveryN, EverySeconds, History, Publisher, Replica, Trainer, Uniform, lineage
from evergrad.errors import ConfigError, HistoryMismatch, NonFiniteLoss
from evergrad.trigger import AnyOf, OnLoss
from tests.pipeline.tasks import make_examples, seeded_model


def make_trainer(
    folder: Path, *, trigger=None, batch_size: int = 32, publisher=None, model=None, optimizer=None, sampler=None
) -> Trainer:
    model = model or seeded_model()
    return Trainer(
        model=model,
        loss=cross_entropy,
        optimizer=optimizer or torch.optim.SGD(model.parameters(), 0.1),
        history=History(folder / "history"),
        sampler=sampler or Uniform(seed=1),
        trigger=trigger or EveryN(8),
        batch_size=batch_size,
        publisher=publisher,
    )


def make_publishing(folder: Path, **settings: Any) -> tuple[Trainer, Publisher]:
    """A trainer with a publisher of these settings, whose log is in the folder `log`."""
    model = seeded_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    publisher = Publisher(model, optimizer, f"file:{folder / 'log'}", **settings)
    return make_trainer(folder, model=model, optimizer=optimizer, publisher=publisher), publisher


def batch(count: int, seed: int, arrived_s: float = 1.0) -> Batch:
    return Batch(*make_examples(count, seed), arrived_s)


def test_a_step_joins_all_new_examples_with_sampled_history(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    first = trainer.learn(batch(8, seed=1))
    assert first is not None
    assert (first.number, first.new, first.old) == (1, 8, 0)
    for seed in (2, 3):
        trainer.learn(batch(8, seed))
    fourth = trainer.learn(batch(16, seed=4))
    assert fourth is not None
    assert (fourth.number, fourth.new, fourth.old) == (4, 16, 16)


def test_examples_wait_for_the_trigger_and_then_all_join(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, trigger=EverySeconds(10))
    assert trainer.learn(batch(4, seed=1, arrived_s=100.0)) is None
    assert trainer.learn(batch(4, seed=2, arrived_s=109.0)) is None
    step = trainer.learn(batch(4, seed=3, arrived_s=110.0))
    assert step is not None
    assert (step.new, step.old) == (12, 0)


def test_new_examples_all_join_even_where_they_exceed_the_batch_size(tmp_path: Path) -> None:
    step = make_trainer(tmp_path, batch_size=4).learn(batch(20, seed=1))
    assert step is not None
    assert (step.new, step.old) == (20, 0)


def test_history_of_an_earlier_run_is_sampled_but_is_not_new(tmp_path: Path) -> None:
    x, y = make_examples(100)
    History(tmp_path / "history").append({"x": x, "y": y})
    step = make_trainer(tmp_path).learn(batch(8, seed=1))
    assert step is not None
    assert (step.new, step.old) == (8, 24)


def test_a_non_finite_loss_takes_no_step_and_publishes_nothing(tmp_path: Path) -> None:
    model = seeded_model()
    optimizer = torch.optim.Adam(model.parameters())
    publisher = Publisher(model, optimizer, f"file:{tmp_path / 'log'}")
    trainer = make_trainer(tmp_path, model=model, optimizer=optimizer, publisher=publisher)
    trainer.learn(batch(8, seed=1))
    before = publisher.version, publisher.digest
    poison = batch(8, seed=2)
    poison.x[3, 5] = np.nan
    with pytest.raises(NonFiniteLoss, match="step 2 is nan"):
        trainer.learn(poison)
    assert (publisher.version, publisher.digest) == before
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    replica = Replica(f"file:{tmp_path / 'log'}")
    assert (replica.sync(), replica.digest) == before


def test_a_batch_that_does_not_fit_the_history_changes_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.learn(batch(8, seed=1))
    x, y = make_examples(8, seed=2)
    with pytest.raises(HistoryMismatch, match="column 'x'"):
        trainer.learn(Batch(x.astype(np.float64), y, 1.0))
    step = trainer.learn(batch(8, seed=3))
    assert step is not None
    assert (step.new, step.old) == (8, 8)


def test_predictions_come_from_the_deployed_copy(tmp_path: Path) -> None:
    trainer, _ = make_publishing(tmp_path, density=0.01, forward="master")
    for seed in range(5):
        trainer.learn(batch(8, seed))
    replica = Replica(f"file:{tmp_path / 'log'}")
    replica.sync()
    x, _ = make_examples(8, seed=9)
    fresh = seeded_model(seed=5).eval()
    fresh.load_state_dict({name: torch.tensor(value) for name, value in replica.weights.items()})
    with torch.no_grad():
        expected = fresh(torch.from_numpy(x)).numpy()
        trained = trainer.learner.model.eval()(torch.from_numpy(x)).numpy()
    assert np.array_equal(trainer.predict(x), expected)
    assert not np.array_equal(trained, expected)


def test_both_copies_are_scored_on_new_examples_before_they_are_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, publisher = make_publishing(tmp_path, density=0.01)
    told: list[tuple[float, float]] = []
    monkeypatch.setattr(publisher, "score", lambda *losses: told.append(losses))
    for seed in range(4):
        new = batch(20, seed)
        x, y = torch.from_numpy(new.x[-8:]), torch.from_numpy(new.y[-8:])  # so many are enough
        expected = []
        for copy in (publisher.deployed(), publisher.master()):
            with copy, torch.no_grad():
                expected.append(float(cross_entropy(trainer.learner.model.eval()(x), y)))
        trainer.learn(new)
        assert told[-1] == pytest.approx(expected)
    assert len(told) == 4
    assert told[-1][0] != told[-1][1]


def test_what_was_predicted_is_not_predicted_again_to_be_scored_but_where_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, publisher = make_publishing(tmp_path, density=0.01)
    asked: list[int] = []
    plain = trainer.learner.predict
    monkeypatch.setattr(trainer.learner, "predict", lambda x: asked.append(len(x)) or plain(x))
    told: list[tuple[float, float]] = []
    monkeypatch.setattr(publisher, "score", lambda *losses: told.append(losses))

    new = batch(20, seed=0)
    outputs = trainer.predict(new.x)
    expected = float(trainer.losses_of(outputs[-8:], new.y[-8:]).mean())
    outputs[:] = 0  # they are the caller's
    trainer.learn(new)
    assert asked == [20, 8]  # the master alone
    assert told[-1][0] == pytest.approx(expected)

    trainer.learn(new)  # another version is deployed
    assert asked == [20, 8, 8, 8]
    again = batch(20, seed=1)
    trainer.predict(again.x)
    again.x[-1] += 1  # what was predicted is not what is learned
    trainer.learn(again)
    assert asked[4:] == [20, 8, 8]


def test_statistics_are_taken_at_the_deployed_weights_now_and_then(tmp_path: Path) -> None:
    trainer, publisher = make_publishing(tmp_path, density=0.01, forward="master")
    model = trainer.learner.model
    asked: list[tuple[int, bool]] = []
    model[0].register_forward_hook(lambda *_: asked.append((trainer.steps, model[1].training != model.training)))
    for seed in range(18):
        trainer.learn(batch(8, seed))
    assert [step for step, alone in asked if alone] == [1, 17]
    replica = Replica(f"file:{tmp_path / 'log'}")
    replica.sync()
    assert replica.digest == publisher.digest
    told = torch.tensor(replica.weights["1.running_mean"])
    assert not torch.allclose(told, model[1].running_mean, rtol=0.03)


def test_an_update_that_was_held_back_goes_out_with_the_next(tmp_path: Path) -> None:
    trainer, publisher = make_publishing(tmp_path, density=0.05)
    held = trainer.learn(batch(8, seed=1), publish=False)
    assert held is not None
    assert held.published is None
    assert publisher.version == 0
    step = trainer.learn(batch(8, seed=2))
    assert step is not None
    assert step.published is not None
    assert step.published.elements > 2 * 10
    replica = Replica(f"file:{tmp_path / 'log'}")
    assert (replica.sync(), replica.digest) == (1, publisher.digest)
    trainer.learn(batch(8, seed=3))
    assert [lineage.blame(publisher.log, version).examples for version in (1, 2)] == [range(16), range(16, 24)]


def test_a_batch_size_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        make_trainer(tmp_path, batch_size=0)


class Learning(Uniform):
    """A sampler that remembers what it is told."""

    def learned(self, ids, losses) -> None:
        self.told = ids, losses


def test_a_sampler_that_learns_is_told_each_examples_loss_before_the_step(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sampler = Learning()
    trainer = make_trainer(tmp_path, model=model, sampler=sampler, batch_size=12)
    trainer.learn(batch(8, seed=1))
    after = {name: value.clone() for name, value in model.state_dict().items()}
    step = trainer.learn(batch(8, seed=2))
    assert step is not None
    ids, losses = sampler.told
    assert ids[:8].tolist() == list(range(8, 16))
    assert set(ids[8:].tolist()) < set(range(8))
    x, y = (np.concatenate(both) for both in zip(make_examples(8, 1), make_examples(8, 2), strict=True))
    model.load_state_dict(after)
    with torch.no_grad():
        expected = cross_entropy(model(torch.from_numpy(x[ids])), torch.from_numpy(y[ids]), reduction="none")
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert step.loss == pytest.approx(losses.mean(), rel=1e-5)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_step_is_due_by_the_loss_that_is_told_and_restarts_all_counts(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, trigger=AnyOf(EveryN(24), OnLoss(above=2.0)))
    taken = [trainer.learn(batch(8, seed), loss=loss) for seed, loss in enumerate((0.5, 3.9, 0.1, 0.1, 0.1))]
    assert [step.new if step else None for step in taken] == [None, 16, None, None, 24]
