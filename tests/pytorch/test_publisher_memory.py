"""What was not sent is kept, and arrives: the memory of the two loops, and the tolerance of statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import evergrad
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.settings import Forward
from tests.pytorch.models import (
    FORWARDS,
    OPTIMIZERS,
    Everything,
    assert_equal,
    batch_norm,
    batches,
    distance,
    idle,
    linear,
    load_into,
    loss_of,
    sgd,
    state_bits,
    train,
    trainable,
)


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("density", [0.005, 0.05, 0.3, 1.0])
def test_without_new_gradients_the_deployed_weights_reach_the_master(
    density: float, forward: Forward, url: str
) -> None:
    model = linear(16)
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, url, density=density, forward=forward), evergrad.Replica(url)
    for _ in train(model, optimizer, 20):
        publisher.publish()
    before = distance(publisher)
    assert before > 1e-4
    with publisher.master():
        master = state_bits(model)
    for step in idle(optimizer, 1000):
        if publisher.publish() is None:
            break
        if step % 50 == 0:
            assert_equal(publisher, replica)
            assert distance(publisher) < before
            before = distance(publisher)
    assert_equal(publisher, replica)
    with publisher.master():
        assert state_bits(model) == master
    assert distance(publisher) <= 2e-7, "an ulp of weights below 2"
    for _ in idle(optimizer, 2):
        assert publisher.publish() is None, "rounding is not sent again and again"


@pytest.mark.parametrize("forward", FORWARDS)
def test_weights_of_very_different_sizes_come_to_rest(forward: Forward, url: str) -> None:
    """One scale for all steps of an update is below half an ulp of the large ones."""
    model = nn.Embedding(64, 8)
    with torch.no_grad():
        model.weight[::2] *= 1e6
        model.weight[1::4] *= 1e-6
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, density=0.5, forward=forward)
    with publisher.master(), torch.no_grad():
        model.weight.mul_(1.0 + 3e-7)
        model.weight[0, 0] += 5.0
    published = [publisher.publish() for _ in idle(optimizer, 500)]
    assert published[-1] is None
    with publisher.master():
        master = model.weight.detach().clone()
    with publisher.deployed():
        rest = (model.weight.detach() - master).abs() / master.abs()
    assert float(rest.max()) <= 2**-22


@pytest.mark.parametrize("forward", FORWARDS)
def test_every_kind_of_tensor_reaches_the_master(forward: Forward, url: str) -> None:
    model = Everything()
    optimizer = OPTIMIZERS["sgd_groups"](trainable(model))
    publisher, replica = Publisher(model, optimizer, url, density=0.05, forward=forward), evergrad.Replica(url)
    for _ in train(model, optimizer, 10):
        publisher.publish()
    with publisher.master(), torch.no_grad():
        model.frozen.add_(0.5)
        model.unused.sub_(0.5)
    for group in optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
    for _ in idle(optimizer, 400):
        publisher.publish()
    assert_equal(publisher, replica)
    assert distance(publisher) <= 1e-6
    assert replica.weights["frozen"].tolist() == pytest.approx([1.5, 1.5])
    assert replica.weights["unused"].tolist() == pytest.approx([0.5, 0.5, 0.5])


def test_one_step_moves_the_largest_differences_by_their_mean(url: str) -> None:
    weight = nn.Embedding(1, 6)
    with torch.no_grad():
        weight.weight.zero_()
    optimizer = torch.optim.SGD(weight.parameters(), lr=1.0)
    publisher, replica = Publisher(weight, optimizer, url, density=0.5, forward="master"), evergrad.Replica(url)
    weight.weight.grad = torch.tensor([[0.5, -3.0, 2.0, 1.0, -2.0, 2.0]])
    optimizer.step()
    publisher.publish()
    replica.sync()
    scale = np.float32(7 / 3)
    assert replica.weights["weight"].tolist() == [[0.0, scale, -scale, 0.0, scale, 0.0]]


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_step_moves_at_most_its_density(forward: Forward, url: str) -> None:
    model = linear(16)
    optimizer = OPTIMIZERS["adam_amsgrad"](trainable(model))
    publisher = Publisher(model, optimizer, url, density=0.03, forward=forward)
    most = round(0.03 * sum(p.numel() for p in model.parameters()))
    for _ in train(model, optimizer, 5):
        published = publisher.publish()
        assert published is not None
        assert 0 < published.elements <= most


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.2])
def test_deployed_statistics_stay_within_the_tolerance(tolerance: float, forward: Forward, url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, density=0.05, forward=forward, buffer_tolerance=tolerance)
    replica = evergrad.Replica(url)
    held_back = 0
    for _ in train(model, optimizer, 40):
        publisher.publish()
        assert_equal(publisher, replica)
        deviation = model[1].running_var.double().sqrt().numpy()
        for name, allowed in (("running_mean", tolerance), ("running_var", 2 * tolerance)):
            live = model.state_dict()[f"1.{name}"].double().numpy()
            deployed = replica.weights[f"1.{name}"].astype(np.float64)
            yardstick = np.maximum(np.abs(live), deviation) if name == "running_mean" else np.abs(live)
            assert (np.abs(deployed - live) <= allowed * yardstick).all()
            held_back += int((deployed != live).sum())
        assert int(replica.weights["1.num_batches_tracked"]) == int(model[1].num_batches_tracked)
    assert (held_back > 0) == (tolerance > 0), "a statistic that is nearly right costs nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_mean_is_off_by_counts_in_deviations_and_a_variance_may_be_off_by_twice_the_tolerance(
    dtype: torch.dtype, url: str
) -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)
    optimizer = sgd(model)
    norm = model[0]
    norm.running_mean.copy_(torch.tensor([0.0, 0.0, 1000.0, 1000.0]))
    norm.running_var.copy_(torch.tensor([100.0, 100.0, 1.0, 1.0]))
    with Publisher(model, optimizer, url, density=0.5, buffer_tolerance=0.02) as publisher:
        replica = evergrad.Replica(url)
        norm.running_mean.copy_(torch.tensor([0.19, 0.21, 1019.0, 1021.0]))
        norm.running_var.copy_(torch.tensor([103.0, 105.0, 1.03, 1.05]))
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        publisher.publish()
        assert_equal(publisher, replica)
    told = [abs(replica.weights["0.running_mean"] - np.array([0, 0, 1000, 1000])) > 0,
            abs(replica.weights["0.running_var"] - np.array([100, 100, 1, 1])) > 0]  # fmt: skip
    assert np.array(told).tolist() == [[False, True, False, True], [False, True, False, True]]


@pytest.mark.parametrize("forward", FORWARDS)
def test_evaluating_the_deployed_model_is_evaluating_a_replicas_weights(forward: Forward, url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, url, density=0.02, forward=forward), evergrad.Replica(url)
    x, _ = next(batches(11))
    for _ in train(model, optimizer, 5):
        publisher.publish()
        replica.sync()
        with publisher.deployed() as deployed, torch.no_grad():
            mine = deployed.eval()(x)
            deployed.train()
        with torch.no_grad():
            theirs = load_into(batch_norm(), replica.weights)(x)
        assert torch.equal(mine, theirs)


def test_a_sparse_closed_loop_learns(url: str) -> None:
    model = batch_norm()
    optimizer = OPTIMIZERS["adam_amsgrad"](trainable(model))
    publisher = Publisher(model, optimizer, url, density=0.02)
    x, y = next(batches(11))
    with publisher.deployed() as deployed, torch.no_grad():
        before = float(loss_of(deployed, x, y))
    for _ in train(model, optimizer, 150):
        publisher.publish()
    with publisher.deployed() as deployed, torch.no_grad():
        after = float(loss_of(deployed.eval(), x, y))
    assert after < before / 2
