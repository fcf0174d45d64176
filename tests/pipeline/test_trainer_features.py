"""What users of torch expect of a loop, in the trainer's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from evergrad import Batch, EveryN, History, LossPrioritised, Publisher, Replica, Trainer, Uniform
from evergrad.errors import ConfigError, LossRefused, NonFiniteLoss
from evergrad.pytorch.learner import Learner
from evergrad.pytorch.mixing import Mixer
from tests.pipeline.tasks import make_examples, seeded_model


def make(folder: Path, **changes: Any) -> Trainer:
    model = changes.pop("model", None) or seeded_model()
    settings: dict[str, Any] = {
        "loss": cross_entropy, "sampler": Uniform(seed=1), "trigger": EveryN(8), "batch_size": 32,
        "history": History(folder / "history"),
    }  # fmt: skip
    optimizer = changes.pop("optimizer", None) or torch.optim.SGD(model.parameters(), 0.1)
    return Trainer(model=model, optimizer=optimizer, **(settings | changes))


def batch(count: int, seed: int, arrived_s: float = 1.0) -> Batch:
    return Batch(*make_examples(count, seed), arrived_s)


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.learner.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_loss_per_example_is_minimised_as_its_mean(tmp_path: Path) -> None:
    trainers = [
        make(tmp_path / name, loss=loss)
        for name, loss in (("mean", cross_entropy), ("each", lambda o, y: cross_entropy(o, y, reduction="none")))
    ]
    for seed in range(4):
        steps = [trainer.learn(batch(8, seed)) for trainer in trainers]
        assert steps[0] is not None
        assert steps[1] is not None
        assert steps[0].loss == pytest.approx(steps[1].loss, rel=1e-6)
    for a, b in zip(state(trainers[0]).values(), state(trainers[1]).values(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_sampler_that_learns_is_told_each_examples_loss(reduction: str, tmp_path: Path) -> None:
    told = []

    class Listening(LossPrioritised):
        def learned(self, ids: Any, losses: Any) -> None:
            told.append((ids.copy(), losses.copy()))
            super().learned(ids, losses)

    trainer = make(tmp_path, sampler=Listening(seed=1), loss=lambda o, y: cross_entropy(o, y, reduction=reduction))
    trainer.learner.model.eval()
    for seed in range(3):
        step = trainer.learn(batch(8, seed))
        assert step is not None
        ids, losses = told[-1]
        assert (len(ids), len(losses)) == (step.new + step.old,) * 2
        assert losses.mean() == pytest.approx(step.loss, rel=1e-5)
        assert len(np.unique(losses)) > len(losses) // 2


def test_a_step_of_the_users_own_that_tells_no_losses_is_refused_by_such_a_sampler(tmp_path: Path) -> None:
    trainer = make(tmp_path, sampler=LossPrioritised(seed=1), step=lambda x, y: torch.tensor(0.5))
    with pytest.raises(ConfigError, match="reduction='none'"):
        trainer.learn(batch(8, 1))


def test_a_step_of_the_users_own_is_the_whole_step(tmp_path: Path) -> None:
    model = seeded_model()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    seen = []

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        seen.append(len(x))
        return optimizer.step(closure)

    trainer = make(tmp_path, model=model, optimizer=optimizer, step=step)
    steps = [trainer.learn(batch(8, seed)) for seed in range(4)]
    assert seen == [8, 16, 24, 32]
    assert steps[-1] is not None
    assert (steps[-1].number, steps[-1].new, steps[-1].old) == (4, 8, 24)


def test_autocast_runs_the_forward_pass_in_its_dtype_and_predicts_in_float32(tmp_path: Path) -> None:
    seen = []
    model = seeded_model()
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer = make(tmp_path, model=model, autocast=torch.bfloat16)
    trainer.learn(batch(8, 1))
    outputs = trainer.predict(batch(4, 2).x)
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert outputs.dtype == np.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_scaler_leaves_a_step_out_and_nothing_is_published(tmp_path: Path) -> None:
    model = seeded_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    publisher = Publisher(model, optimizer, f"file:{tmp_path / 'log'}", density=1.0)
    trainer = make(
        tmp_path, model=model, optimizer=optimizer, publisher=publisher, scaler=scaler, clip_norm=1.0,
        loss=lambda outputs, y: 1000 * cross_entropy(outputs, y),
    )  # fmt: skip
    versions = []
    for seed in range(80):
        before = publisher.digest
        trainer.learn(batch(8, seed))
        versions.append(publisher.digest != before)
    assert scaler.get_scale() < 2.0**120
    assert all(versions[-5:])
    replica = Replica(f"file:{tmp_path / 'log'}")
    assert (replica.sync(), replica.digest) == (publisher.version, publisher.digest)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_gradients_are_clipped_and_the_scheduler_follows_each_step(tmp_path: Path) -> None:
    model = seeded_model()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    trainer = make(tmp_path, model=model, optimizer=optimizer, scheduler=scheduler, clip_norm=1e-3)
    moved, rates = [], []
    for seed in range(4):
        before = state(trainer)
        rates.append(optimizer.param_groups[0]["lr"])
        trainer.learn(batch(8, seed))
        after = state(trainer)
        parameters = [name for name, _ in model.named_parameters()]
        moved.append(float(torch.sqrt(sum(((after[n] - before[n]) ** 2).sum() for n in parameters))))
    assert rates == [1.0, 1.0, 0.5, 0.5]
    assert moved == pytest.approx([1e-3 * rate for rate in rates], rel=1e-2)


def test_several_steps_a_trigger_draw_old_examples_of_their_own(tmp_path: Path) -> None:
    seen = []
    trainer = make(tmp_path, steps_per_trigger=3, transform_old=lambda columns: seen.append(columns["x"]) or columns)
    trainer.learn(batch(64, 1))
    step = trainer.learn(batch(8, 2))
    assert step is not None
    assert (step.number, step.new, step.old) == (6, 8, 24)
    assert len(seen) == 3
    assert not np.array_equal(seen[0], seen[1])


def test_new_and_old_examples_are_transformed_apart(tmp_path: Path) -> None:
    seen = []
    trainer = make(
        tmp_path,
        model=nn.Linear(4, 1),
        loss=mse_loss,
        transform_new=lambda c: {"x": c["x"][:, :4] * 0 + 1, "y": c["y"]},
        transform_old=lambda c: {"x": c["x"][:, :4] * 0 - 1, "y": c["y"]},
        step=lambda x, y: seen.append(x.clone()) or torch.tensor(0.0),
    )
    for seed in (1, 2):
        x, y = make_examples(8, seed)
        trainer.learn(Batch(x, y.astype(np.float32)[:, None], 1.0))
    assert seen[1][:, 0].tolist() == [1.0] * 8 + [-1.0] * 8


def test_new_examples_may_take_their_chance(tmp_path: Path) -> None:
    trainer = make(tmp_path, join_new=False, batch_size=16)
    trainer.learn(batch(400, 1))
    found = [trainer.learn(batch(8, seed)) for seed in range(2, 30)]
    counts = [(step.new, step.old) for step in found if step]
    assert all(new + old == 16 for new, old in counts)
    assert 0 < sum(new for new, _ in counts) < 28 * 4


def test_prefetching_draws_ahead_of_the_newest_and_forgets_what_does_not_fit(tmp_path: Path) -> None:
    trainer = make(tmp_path, prefetch=True)
    with trainer:
        trainer.learn(batch(64, 1))
        for seed, count in ((2, 8), (3, 8), (4, 24), (5, 8)):
            step = trainer.learn(batch(count, seed))
            assert step is not None
            assert (step.new, step.old) == (count, 32 - count)


def test_equal_runs_with_and_without_a_thread_of_their_own_are_each_repeatable(tmp_path: Path) -> None:
    ends = []
    for name in ("a", "b"):
        with make(tmp_path / name, prefetch=True) as trainer:
            for seed in range(12):
                trainer.learn(batch(8, seed))
            ends.append(state(trainer))
    assert same(*ends)


def test_labels_that_the_loss_refuses_are_named_and_can_be_left_out(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer.learn(batch(8, 1))
    x, y = make_examples(8, 2)
    y[3] = 9
    before = state(trainer)
    with pytest.raises(LossRefused, match="from 0 to 9"):
        trainer.learn(Batch(x, y, 2.0))
    parameters = [name for name, _ in trainer.learner.model.named_parameters()]
    assert all(torch.equal(before[name], state(trainer)[name]) for name in parameters)
    assert trainer.waiting == range(8, 16)
    trainer.exclude(8, 16)
    step = trainer.learn(batch(8, 3))
    assert step is not None
    assert (step.new, step.old) == (8, 8)


def test_excluded_examples_are_drawn_no_more(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append({"x": np.arange(100, dtype=np.int64), "y": np.arange(100)})
    mixer = Mixer(history, Uniform(seed=0), 40)
    mixer.exclude(10, 90)
    for _ in range(20):
        _, _, ids = mixer.batch(100, 100)
        assert 15 <= len(ids) == len(np.unique(ids)) <= 20
        assert not ((ids >= 10) & (ids < 90)).any()


def test_an_empty_batch_is_nothing(tmp_path: Path) -> None:
    trainer = make(tmp_path)
    x, y = make_examples(0)
    assert trainer.learn(Batch(x, y, 1.0)) is None
    assert trainer.end == 0


def test_a_step_for_the_curious_is_taken_now(tmp_path: Path) -> None:
    trainer = make(tmp_path, trigger=EveryN(100))
    assert trainer.learn(batch(8, 1)) is None
    step = trainer.step()
    assert (step.number, step.new, step.old) == (1, 8, 0)
    assert trainer.waiting == range(8, 8)
    again = trainer.step()
    assert (again.number, again.new, again.old) == (2, 0, 8)


def test_going_back_takes_model_optimizer_and_replicas(tmp_path: Path) -> None:
    import copy

    model = seeded_model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    publisher = Publisher(model, optimizer, f"file:{tmp_path / 'log'}", density=0.2)
    trainer = make(tmp_path, model=model, optimizer=optimizer, publisher=publisher)
    for seed in range(5):
        trainer.learn(batch(8, seed))
    saved, digest = copy.deepcopy(trainer.weights()), publisher.digest
    for seed in range(5, 9):
        trainer.learn(batch(8, seed))
    assert publisher.digest != digest
    trainer.go_back(copy.deepcopy(saved))
    publisher.publish()
    replica = Replica(f"file:{tmp_path / 'log'}")
    assert (replica.sync(), replica.digest) == (publisher.version, digest)
    now = trainer.weights()
    for name, tensor in saved["publisher"]["master"].items():
        assert torch.equal(tensor, now["publisher"]["master"][name])
    assert trainer.end == 72


@pytest.mark.parametrize(("setting", "value"), [("steps_per_trigger", 0), ("batch_size", 0), ("clip_norm", 0.0)])
def test_settings_out_of_range_are_refused(setting: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=setting):
        make(tmp_path, **{setting: value})


def test_a_learner_without_parameters_is_on_the_cpu() -> None:
    model = nn.ReLU()
    learner = Learner(model, mse_loss, torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1))
    assert learner.device == torch.device("cpu")


def test_non_finite_losses_leave_statistics_as_deployed(tmp_path: Path) -> None:
    model = seeded_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    publisher = Publisher(model, optimizer, f"file:{tmp_path / 'log'}")
    trainer = make(tmp_path, model=model, optimizer=optimizer, publisher=publisher)
    trainer.learn(batch(8, 1))
    bad = batch(8, 2)
    bad.x[0, 0] = np.inf
    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteLoss):
        trainer.learn(bad)
    assert bool(model[1].running_mean.isfinite().all())


def test_a_compiled_model_trains_publishes_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    from evergrad import Checkpoints

    def parts(resume: Any = None) -> tuple[Trainer, Publisher]:
        model = seeded_model()
        compiled = torch.compile(model, backend="eager")
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        publisher = Publisher(compiled, optimizer, f"file:{tmp_path / 'log'}", density=0.2, resume=resume)
        history = History(tmp_path / "history")
        checkpoints = Checkpoints(tmp_path / "checkpoints", every=1, background=False)
        found = make(
            tmp_path / f"unused-{id(history)}", model=compiled, optimizer=optimizer, publisher=publisher,
            history=history, checkpoints=checkpoints,
        )  # fmt: skip
        return found, publisher

    trainer, publisher = parts()
    assert list(trainer.resume()) == []
    for seed in range(4):
        trainer.learn(batch(8, seed))
    trainer.checkpoint()
    replica = Replica(f"file:{tmp_path / 'log'}")
    assert (replica.sync(), replica.digest) == (4, publisher.digest)
    trainer.learn(batch(8, 9))
    expected = publisher.digest
    publisher.detach()
    trainer._history.close()
    saved = Checkpoints(tmp_path / "checkpoints").newest()
    assert saved is not None
    trainer, publisher = parts(saved[1]["publisher"])
    again = list(trainer.resume())
    assert len(again) == 1
    trainer.learn(again[0])
    assert publisher.digest == expected


def test_a_part_that_is_kept_in_evaluation_mode_stays_so(tmp_path: Path) -> None:
    model = seeded_model()
    model.train()
    model[1].eval()
    trainer = make(tmp_path, model=model)
    statistics = model[1].running_mean.clone()
    for seed in range(3):
        trainer.predict(batch(4, seed).x)
        trainer.learn(batch(8, seed))
    assert (model.training, model[1].training) == (True, False)
    assert torch.equal(model[1].running_mean, statistics)
