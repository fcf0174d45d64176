"""A publisher of a model on a device: what its forward passes see, the state and every replica are equal, bit for bit.

Where there is no GPU, the model is on the CPU and its deployed weights are a copy apart from the state all the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import evergrad
from evergrad.errors import NonFiniteWeights, SchemaMismatch, WeightsChanged
from evergrad.pytorch.bridge import ModuleTensor, ReplicaModule, load_weights
from evergrad.pytorch.buffers import on_cpu
from evergrad.pytorch.cuda import DeviceMover, runs_on
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.select import LayerTopK
from evergrad.pytorch.settings import Forward
from evergrad.pytorch.weights import Weights
from tests.pytorch.models import (
    FORWARDS,
    MODELS,
    OPTIMIZERS,
    Everything,
    assert_equal,
    batch_norm,
    batches,
    bits,
    channels_last,
    deployed_bits,
    linear,
    loss_of,
    sgd,
    state_bits,
    train,
    trainable,
)

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
kernels = pytest.mark.skipif(not runs_on(DEVICE), reason="Triton has no wheel for this platform")


class Apart(Publisher):
    """Keeps the deployed weights apart from the state wherever the model is."""

    def _make_weights(self, *, closed_loop: bool) -> Weights:
        return Weights(self._model, self._state, closed_loop=closed_loop, apart=True)


def publish_each(publisher: Publisher, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Iterator[int]:
    for step in train(model, optimizer, steps):
        publisher.publish()
        yield step


def assert_all_equal(publisher: Publisher, replica: evergrad.Replica) -> None:
    """The replica, what the model shows as deployed, and the publisher's state."""
    assert_equal(publisher, replica)
    publisher._weights.check_copy()
    assert publisher._state.digest == publisher.digest


@kernels
@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("model_name", MODELS)
def test_every_version_is_equal_and_the_one_of_the_cpu(model_name: str, forward: Forward, url: str) -> None:
    model = MODELS[model_name]()
    twin = copy.deepcopy(model)
    model.to(DEVICE)
    optimizer = OPTIMIZERS["adam_amsgrad"](trainable(model))
    settings: dict[str, Any] = {"density": 0.05, "forward": forward, "snapshot_every": 4}
    publisher, replica = Apart(model, optimizer, url, **settings), evergrad.Replica(url)
    digests = [publisher.digest]
    assert isinstance(publisher._mover, DeviceMover) == (model_name != "everything")
    for _ in publish_each(publisher, model, optimizer, 5):
        assert_all_equal(publisher, replica)
        digests.append(publisher.digest)
    if DEVICE.type == "cpu":  # a GPU adds up in another order: its gradients are others
        other = OPTIMIZERS["adam_amsgrad"](trainable(twin))
        plain = Publisher(twin, other, f"{url}-plain", **settings)
        assert [plain.digest, *(plain.digest for _ in publish_each(plain, twin, other, 5))] == digests
        assert state_bits(twin) == state_bits(model)


@pytest.mark.parametrize(
    "settings",
    [
        {"values": "exact", "selector": LayerTopK()},
        {"quality": 0.01},
        {"buffer_tolerance": 0.0, "every_steps": 2, "background": True},
    ],
    ids=["exact", "quality", "background"],
)
@pytest.mark.parametrize("make", [channels_last, Everything])
def test_other_ways_to_publish(make: Callable[[], nn.Module], settings: dict[str, Any], url: str) -> None:
    model = make().to(DEVICE)
    optimizer = sgd(model)
    publisher, replica = Apart(model, optimizer, url, **settings), evergrad.Replica(url)
    for _ in train(model, optimizer, 4):
        publisher.flush()
        assert_all_equal(publisher, replica)
    assert publisher.version >= 4


@pytest.mark.parametrize("make", [channels_last, Everything])
def test_the_cast_is_taken_on_the_device(make: Callable[[], nn.Module], url: str) -> None:
    model = make().to(DEVICE)
    optimizer = OPTIMIZERS["adam_amsgrad"](trainable(model))
    publisher, replica = Apart(model, optimizer, url, values="bf16", forward="master"), evergrad.Replica(url)
    for _ in publish_each(publisher, model, optimizer, 4):
        replica.sync()
        publisher._weights.check_copy()
        for name, tensor in model.named_parameters():
            expected = tensor.bfloat16() if tensor.dtype == torch.float32 else tensor
            assert replica.weights[name].tobytes() == bits(expected)
    assert replica.version == 4


def test_an_average_is_published(url: str) -> None:
    model = batch_norm().to(DEVICE)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    publisher, replica = Apart(average, None, url, density=1.0, forward="master"), evergrad.Replica(url)
    optimizer = sgd(model)
    for _ in train(model, optimizer, 3):
        average.update_parameters(model)
        publisher.publish()
        assert_all_equal(publisher, replica)
    assert publisher.version == 3


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_log_and_a_checkpoint_are_continued(forward: Forward, url: str) -> None:
    model = batch_norm().to(DEVICE)
    optimizer = sgd(model)
    publisher = Apart(model, optimizer, url, density=0.05, forward=forward)
    for _ in publish_each(publisher, model, optimizer, 2):
        pass
    saved = copy.deepcopy(publisher.state_dict())
    expected = deployed_bits(publisher)
    for _ in publish_each(publisher, model, optimizer, 2):
        pass
    publisher.detach()
    with Apart(model, optimizer, url, density=0.05, forward=forward) as again:
        replica = evergrad.Replica(url)
        assert_all_equal(again, replica)
        again.load_state_dict(saved)
        again._weights.check_copy()
        again.publish()
        assert_all_equal(again, replica)
        parameters = dict(model.named_parameters())
        assert {n: b for n, b in deployed_bits(again).items() if n in parameters} == {
            n: b for n, b in expected.items() if n in parameters
        }


def test_it_resumes_bit_for_bit(url: str) -> None:
    model = linear().to(DEVICE)
    optimizer = sgd(model)
    publisher = Apart(model, optimizer, url, density=0.05, clock=lambda: 5.0)
    for _ in publish_each(publisher, model, optimizer, 2):
        pass
    saved = copy.deepcopy(publisher.state_dict())
    expected = [publisher.digest for _ in publish_each(publisher, model, optimizer, 3)]
    publisher.detach()
    again = linear().to(DEVICE)
    other = sgd(again)
    with Apart(again, other, url, density=0.05, clock=lambda: 5.0, resume=saved) as resumed:
        resumed._weights.check_copy()
        assert [resumed.digest for _ in publish_each(resumed, again, other, 3)] == expected
        assert_all_equal(resumed, evergrad.Replica(url))


def test_gradients_are_taken_at_the_deployed_weights_on_the_device(url: str) -> None:
    model = channels_last().to(DEVICE)
    optimizer = sgd(model)
    publisher = Apart(model, optimizer, url, density=0.02, forward="deployed")
    for _ in publish_each(publisher, model, optimizer, 3):
        pass
    x, y = next(batches(5))
    twin = batch_norm().to(DEVICE)
    with publisher.deployed():
        assert all(parameter.device == DEVICE for parameter in model.parameters())
        twin.load_state_dict(model.state_dict())
    loss_of(twin, x, y).backward()
    optimizer.zero_grad()
    loss_of(model, x, y).backward()
    for mine, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine.grad, expected.grad, rtol=1e-5)


def test_buffers_are_restored_from_the_state(url: str) -> None:
    model = Everything().to(DEVICE)
    publisher = Apart(model, sgd(model), url)
    before = deployed_bits(publisher)
    model(next(batches())[0].to(DEVICE))
    publisher.restore_buffers()
    names = {name for name, _ in model.named_buffers() if name in before}
    assert {name: found for name, found in state_bits(model).items() if name in names} == {
        name: before[name] for name in names
    }


def step_and_publish(publisher: Publisher, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    publisher.publish()


@pytest.mark.parametrize("name", ["1.running_mean", "0.weight"])
def test_what_is_not_finite_is_named(name: str, url: str) -> None:
    model = batch_norm().to(DEVICE)
    optimizer = sgd(model, lr=0.0)
    publisher = Apart(model, optimizer, url, forward="master")
    model.state_dict()[name].reshape(-1)[1] = float("nan")
    digest = publisher._state.digest
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(NonFiniteWeights, match=name):
        step_and_publish(publisher, optimizer)
    assert publisher._state.digest == digest
    publisher._weights.check_copy()


def test_a_write_that_no_counter_saw_is_found_before_a_snapshot(url: str) -> None:
    model = linear().to(DEVICE)
    optimizer = sgd(model)
    publisher = Apart(model, optimizer, url, density=0.1, forward="deployed", snapshot_every=3)
    for step in train(model, optimizer, 3):
        if step == 2:
            with pytest.raises(WeightsChanged):
                publisher.publish()
            break
        publisher.publish()
        model[1].weight.data.mul_(2)
    assert publisher.log.snapshots() == [0]


def test_tensors_cross_over_by_dtype_and_come_back_in_order() -> None:
    tensors = {
        "a": torch.randn(2, 3).t(),
        "b": torch.arange(3),
        "c": torch.randn(()),
        "d": torch.tensor([True, False]),
        "e": torch.empty(0, 2),
    }
    found = on_cpu([ModuleTensor(name, tensor.to(DEVICE), False) for name, tensor in tensors.items()])
    assert [each.name for each in found] == list(tensors)
    for each in found:
        assert each.tensor.shape == tensors[each.name].shape
        assert bits(each.tensor) == bits(tensors[each.name])
        assert each.tensor.is_contiguous()


@gpu
def test_a_plain_publisher_keeps_its_copy_on_the_gpu(url: str) -> None:
    model = batch_norm().to(DEVICE)
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, url, density=0.05), evergrad.Replica(url)
    for _ in publish_each(publisher, model, optimizer, 5):
        assert_all_equal(publisher, replica)
    served = batch_norm().to(DEVICE)
    assert load_weights(served, replica) == 5
    assert state_bits(served) == deployed_bits(publisher)


@gpu
def test_what_reads_a_replicas_memory_is_for_the_cpu(url: str) -> None:
    model = linear().to(DEVICE)
    with Publisher(model, sgd(model), url):
        replica = evergrad.Replica(url)
        for refused in (lambda: evergrad.attach(linear().to(DEVICE), replica), lambda: ReplicaModule(model, replica)):
            with pytest.raises(SchemaMismatch, match="a tensor on the CPU"):
                refused()


@gpu
def test_a_model_in_two_places_is_refused(url: str) -> None:
    model = linear()
    model[3].to(DEVICE)
    with pytest.raises(SchemaMismatch, match=r"3\.weight"):
        Publisher(model, sgd(model), url)


@pytest.mark.parametrize("kind", [Apart, Publisher])
@pytest.mark.parametrize("forward", FORWARDS)
def test_a_model_that_gains_and_loses_tensors_goes_on(forward: Forward, kind: type[Publisher], url: str) -> None:
    model = batch_norm().to(DEVICE)
    optimizer = sgd(model)
    publisher = kind(model, optimizer, url, density=0.05, forward=forward)
    for step in publish_each(publisher, model, optimizer, 9):
        assert_all_equal(publisher, evergrad.Replica(url))
        if step == 2:
            model.append(nn.Linear(2, 2).to(DEVICE))
            optimizer.add_param_group({"params": [*model[-1].parameters()]})
        if step == 5:
            optimizer.param_groups.pop()
            del model[-1]
    assert len(publisher.log.store.names("schema")) == 2
    assert publisher.log.begins > 6
    publisher.close()
