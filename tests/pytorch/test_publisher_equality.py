"""At every version, every tensor of a replica is the trainer's deployed one, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import evergrad
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.settings import Forward
from evergrad.update import Differences, Steps
from tests.pytorch.models import (
    FORWARDS,
    MODELS,
    OPTIMIZERS,
    Everything,
    assert_equal,
    batch_norm,
    batches,
    deployed_bits,
    linear,
    loss_of,
    replica_bits,
    sgd,
    state_bits,
    train,
    trainable,
)


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("model_name", MODELS)
def test_every_version_is_equal(model_name: str, optimizer_name: str, forward: Forward, url: str) -> None:
    model = MODELS[model_name]()
    optimizer = OPTIMIZERS[optimizer_name](trainable(model))
    with Publisher(model, optimizer, url, density=0.05, forward=forward, snapshot_every=7) as publisher:
        replica = evergrad.Replica(url)
        assert_equal(publisher, replica)
        for step in train(model, optimizer, 10):
            published = publisher.publish()
            assert published is not None
            assert published.version == step + 1
            assert_equal(publisher, replica)
    late = evergrad.Replica(url)
    assert late.sync() == 10
    assert late.stats().updates == 3, "joined from the snapshot of version 7"
    assert replica_bits(late) == replica_bits(replica)


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("density", [1e-3, 0.3, 1.0])
def test_the_readme_loop(density: float, forward: Forward, any_url: str) -> None:
    model = linear()
    optimizer = torch.optim.Adam(model.parameters())
    publisher = evergrad.Publisher(model, optimizer, log=any_url, density=density, forward=forward)
    for _, (x, y) in zip(range(5), batches(), strict=False):
        loss = loss_of(model, x, y)
        loss.backward()
        optimizer.step()
        publisher.publish()
        optimizer.zero_grad()
    replica = evergrad.Replica(any_url)
    replica.sync()
    w = replica.weights
    assert_equal(publisher, replica)
    assert {name: array.shape for name, array in w.items()} == {
        n: tuple(t.shape) for n, t in model.state_dict().items()
    }
    publisher.close()


def test_the_readme_loop_in_a_folder_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = linear()
    optimizer = sgd(model)
    publisher = evergrad.Publisher(model, optimizer, log="file:updates", density=1e-3)
    for _ in train(model, optimizer, 3):
        publisher.publish()
    replica = evergrad.Replica("file:updates")
    assert replica.sync() == 3
    assert_equal(publisher, replica)
    assert (tmp_path / "updates" / "evergrad.json").is_file()


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize(("density", "steps", "kinds"), [(0.05, 4, [Steps] * 4), (1.0, 60, [Differences])])
def test_several_steps_between_two_versions(
    density: float, steps: int, kinds: list[type], forward: Forward, url: str
) -> None:
    """A bundle of steps where few moved; one section of differences where most moved again and again."""
    model = linear(64)
    optimizer = OPTIMIZERS["adam_amsgrad"](trainable(model))
    publisher, replica = Publisher(model, optimizer, url, density=density, forward=forward), evergrad.Replica(url)
    for version in (1, 2):
        for _ in train(model, optimizer, steps):
            pass
        publisher.publish()
        assert_equal(publisher, replica)
        found = publisher.log.read(version)
        assert found is not None
        assert [type(section) for section in found[0].sections] == kinds


@pytest.mark.parametrize("forward", FORWARDS)
def test_hundreds_of_steps_between_two_versions(forward: Forward, url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, url, density=0.005, forward=forward), evergrad.Replica(url)
    for steps in (255, 256, 520):
        for _ in train(model, optimizer, steps):
            pass
        assert publisher.publish() is not None
        assert_equal(publisher, replica)


@pytest.mark.parametrize("forward", FORWARDS)
def test_lbfgs_with_a_closure(forward: Forward, url: str) -> None:
    model = linear()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    publisher, replica = Publisher(model, optimizer, url, density=0.05, forward=forward), evergrad.Replica(url)
    x, y = next(batches())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        return loss

    for _ in range(6):
        optimizer.step(closure)
        publisher.publish()
        assert_equal(publisher, replica)
    assert publisher.version == 6


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_gradient_scaler_skips(fused: bool, forward: Forward, url: str) -> None:
    model = linear()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    publisher, replica = Publisher(model, optimizer, url, density=0.05, forward=forward), evergrad.Replica(url)
    for step, (x, y) in zip(range(8), batches(), strict=False):
        optimizer.zero_grad()
        scaled = scaler.scale(loss_of(model, x, y))
        (scaled * float("inf") if step % 4 == 2 else scaled).backward()
        scaler.step(optimizer)
        scaler.update()
        publisher.publish()
        assert_equal(publisher, replica)
    assert scaler.get_scale() == 2.0**8, "two steps overflowed"
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("forward", FORWARDS)
def test_accumulated_gradients(forward: Forward, url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, url, density=0.05, forward=forward), evergrad.Replica(url)
    for number, (x, y) in zip(range(12), batches(), strict=False):
        loss_of(model, x, y).backward()
        if number % 4 == 3:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        publisher.publish()
        assert_equal(publisher, replica)


@pytest.mark.parametrize("forward", FORWARDS)
def test_sparse_gradients(forward: Forward, url: str) -> None:
    table = nn.Embedding(50, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.1)
    publisher, replica = Publisher(table, optimizer, url, density=0.05, forward=forward), evergrad.Replica(url)
    for step in range(6):
        optimizer.zero_grad()
        table(torch.tensor([step, 2 * step, 49])).square().sum().backward()
        optimizer.step()
        publisher.publish()
        assert_equal(publisher, replica)


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_compiled_model(forward: Forward, url: str) -> None:
    model = batch_norm()
    model.compile(backend="eager")
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, url, density=0.05, forward=forward), evergrad.Replica(url)
    for _ in train(model, optimizer, 4):
        publisher.publish()
        assert_equal(publisher, replica)
    x, _ = next(batches())
    with publisher.deployed() as shown, torch.no_grad():
        plain = batch_norm().eval()
        plain.load_state_dict(shown.state_dict())
        assert torch.equal(shown.eval()(x), plain(x))


def test_a_compiled_wrapper_publishes_under_the_modules_own_names(url: str) -> None:
    model = batch_norm()
    wrapper = torch.compile(model, backend="eager")
    optimizer = sgd(model)
    publisher, replica = Publisher(wrapper, optimizer, url, density=0.05), evergrad.Replica(url)
    for _ in train(wrapper, optimizer, 4):
        publisher.publish()
        assert (replica.sync(), replica.digest) == (publisher.version, publisher.digest)
    with publisher.deployed():
        state = model.state_dict()
        assert set(replica.weights) == set(state)
        assert all(np.array_equal(replica.weights[name], tensor.numpy()) for name, tensor in state.items())


@pytest.mark.parametrize("forward", FORWARDS)
def test_same_run_publishes_the_same_weights(forward: Forward, url: str) -> None:
    found = []
    for run in ("a", "b"):
        torch.manual_seed(3)
        model = Everything()
        optimizer = OPTIMIZERS["adamw_fused"](trainable(model))
        publisher = Publisher(model, optimizer, url + run, density=0.02, forward=forward)
        for _ in train(model, optimizer, 6):
            publisher.publish()
        found.append((publisher.digest, deployed_bits(publisher), state_bits(model)))
    assert found[0] == found[1]
