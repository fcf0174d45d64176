"""What a publisher refuses, by which error, and that nothing is lost by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import evergrad
from evergrad.errors import ConfigError, NonFiniteWeights, OptimizerAttached, SchemaMismatch, WeightsChanged
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.settings import Forward
from tests.pytorch.models import (
    FORWARDS,
    assert_equal,
    batch_norm,
    batches,
    deployed_bits,
    linear,
    loss_of,
    sgd,
    state_bits,
    train,
)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("density", value) for value in (0.0, -0.1, 1.01, float("nan"), float("inf"))),
        *(("forward", value) for value in ("closed", "", None)),
        *(("buffer_tolerance", value) for value in (-0.01, 1.0, float("nan"))),
        *(("snapshot_every", value) for value in (0, -5)),
        *(("snapshot_every_bytes", value) for value in (0, -1)),
        ("keep_versions", -1),
    ],
)
def test_settings_out_of_range(setting: str, value: Any, url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    with pytest.raises(ConfigError) as caught:
        Publisher(model, optimizer, url, **{setting: value})
    assert caught.value.key == setting
    assert str(value) in caught.value.problem
    with Publisher(model, optimizer, url) as publisher:
        assert publisher.version == 0


@pytest.mark.parametrize("bad", ["nowhere:updates", "s3a://bucket", "s3://", "file:", ""])
def test_a_log_of_no_known_kind(bad: str) -> None:
    model = linear()
    with pytest.raises(ConfigError):
        Publisher(model, sgd(model), bad)


def test_an_optimizer_of_another_model(url: str) -> None:
    """It would train, and never publish."""
    with pytest.raises(ConfigError) as caught:
        Publisher(linear(), sgd(linear()), url)
    assert caught.value.key == "optimizer"
    assert not evergrad.open_log(url, create=True).begun()


def test_a_second_optimizer_steps_the_weights_of_a_closed_loop(url: str) -> None:
    model = linear()
    optimizer, other = sgd(model), sgd(model)
    publisher = Publisher(model, optimizer, url, forward="deployed")
    loss_of(model, *next(batches())).backward()
    other.step()
    with pytest.raises(WeightsChanged):
        optimizer.step()
    with pytest.raises(WeightsChanged):
        publisher.publish()


def test_a_second_publisher_on_one_optimizer(url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    first = Publisher(model, optimizer, url)
    with pytest.raises(OptimizerAttached) as caught:
        Publisher(model, optimizer, url + "-other")
    assert caught.value.url == url
    first.close()
    Publisher(model, optimizer, url + "-other").close()


@pytest.mark.parametrize(
    ("other", "tensor", "expected", "found"),
    [
        (lambda: linear(5), "1.weight", "F32 [4, 48]", "F32 [5, 48]"),
        (lambda: linear().double(), "1.weight", "F32 [4, 48]", "F64 [4, 48]"),
        (lambda: linear()[:2], "3.weight", "F32 [2, 4]", "no such tensor"),
        (lambda: nn.Sequential(*linear(), nn.Linear(2, 2)), "4.weight", "no such tensor", "F32 [2, 2]"),
    ],
    ids=["shape", "dtype", "missing", "more"],
)
def test_a_log_of_another_model(other: Any, tensor: str, expected: str, found: str, url: str) -> None:
    model = linear()
    Publisher(model, sgd(model), url).close()
    stranger = other()
    optimizer = sgd(stranger)
    before = state_bits(stranger)
    with pytest.raises(SchemaMismatch) as caught:
        Publisher(stranger, optimizer, url)
    assert (caught.value.tensor, caught.value.expected, caught.value.found) == (tensor, expected, found)
    assert state_bits(stranger) == before
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite(value: float, forward: Forward, url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, url, density=0.05, forward=forward), evergrad.Replica(url)
    for _ in train(model, optimizer, 3):
        publisher.publish()
    before = deployed_bits(publisher)
    loss_of(model, *next(batches())).backward()
    model[3].weight.grad[1, 2] = value
    for step in (4, 5):
        with pytest.raises(NonFiniteWeights) as caught:
            optimizer.step()
        assert (caught.value.tensor, caught.value.step) == ("3.weight", step)
    assert deployed_bits(publisher) == before
    assert publisher.publish() is None
    assert publisher.log.updates() == [1, 2, 3]

    replica.sync()
    with publisher.master(), torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(replica.weights[name].tolist()))
    for _ in train(model, optimizer, 3):
        publisher.publish()
        assert_equal(publisher, replica)
    assert publisher.version == 6


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_statistic_that_is_not_finite(forward: Forward, url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, url, density=0.05, forward=forward), evergrad.Replica(url)
    for _ in train(model, optimizer, 2):
        publisher.publish()
    before = deployed_bits(publisher)
    good = model[1].running_mean.clone()
    model[1].running_mean[2] = float("nan")
    with pytest.raises(NonFiniteWeights) as caught:
        publisher.publish()
    assert (caught.value.tensor, caught.value.step) == ("1.running_mean", 2)
    assert deployed_bits(publisher) == before
    assert publisher.log.updates() == [1, 2]
    model[1].running_mean.copy_(good)
    for _ in train(model, optimizer, 2):
        publisher.publish()
        assert_equal(publisher, replica)


def _add(model: nn.Module) -> None:
    with torch.no_grad():
        model[3].bias.add_(1.0)


def _load(model: nn.Module) -> None:
    model.load_state_dict(model.state_dict())


@pytest.mark.parametrize(("change", "tensor"), [(_add, "3.bias"), (_load, "1.weight")], ids=["add_", "load_state_dict"])
def test_a_change_outside_the_step_is_told_where_deployed_weights_lie(change: Any, tensor: str, url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, density=0.05, forward="deployed")
    for _ in train(model, optimizer, 2):
        publisher.publish()
    change(model)
    calls = (optimizer.step, publisher.publish, publisher.master().__enter__, publisher.deployed().__enter__)
    for call in calls:
        with pytest.raises(WeightsChanged) as caught:
            call()
        assert caught.value.tensor == tensor
    assert publisher.log.updates() == [1, 2]
    publisher.detach()
    replica = evergrad.Replica(url)
    new = Publisher(model, optimizer, url, density=0.05)
    for _ in train(model, optimizer, 2):
        new.publish()
        assert_equal(new, replica)


def test_a_change_outside_the_step_is_training_in_an_open_loop(url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, url, density=0.05, forward="master"), evergrad.Replica(url)
    for _ in train(model, optimizer, 2):
        _add(model)
        publisher.publish()
        assert_equal(publisher, replica)


def test_a_change_that_no_counter_sees_is_found_at_the_next_snapshot(url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, density=0.001, forward="deployed", snapshot_every=4)
    replica = evergrad.Replica(url)
    for _ in train(model, optimizer, 2):
        publisher.publish()
    model[3].bias.data.mul_(2.0)
    for _ in train(model, optimizer, 1):
        publisher.publish()
    for _ in train(model, optimizer, 1):
        with pytest.raises(WeightsChanged):
            publisher.publish()
    assert publisher.log.snapshots() == [0]
    publisher.detach()
    with Publisher(model, optimizer, url, density=0.001) as new:
        assert_equal(new, replica)
        for _ in train(model, optimizer, 2):
            new.publish()
            assert_equal(new, replica)
