"""Checkpoints of a publisher, and models that change under it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import evergrad
from evergrad.errors import NonFiniteWeights, SchemaMismatch
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.settings import Forward
from tests.pytorch.models import FORWARDS, assert_equal, batch_norm, deployed_bits, linear, loss_of, sgd, train

Checkpoint = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def steps_of(publisher: Publisher, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> list[Any]:
    found = []
    for _ in train(model, optimizer, 6, seed=seed):
        publisher.publish()
        found.append(deployed_bits(publisher))
    return found


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("same_log", [False, True])
def test_training_goes_on_from_a_checkpoint_bit_for_bit(forward: Forward, same_log: bool, url: str) -> None:
    model = batch_norm()
    optimizer = momentum(model)
    publisher = Publisher(model, optimizer, url, density=0.05, forward=forward, buffer_tolerance=0.0)
    steps_of(publisher, model, optimizer, seed=1)
    saved: Checkpoint = copy.deepcopy((model.state_dict(), optimizer.state_dict(), publisher.state_dict()))
    expected = steps_of(publisher, model, optimizer, seed=2)
    publisher.detach()

    again = batch_norm()
    anew = momentum(again)
    other = url if same_log else f"{url}-other"
    with Publisher(again, anew, other, density=0.05, forward=forward, buffer_tolerance=0.0) as resumed:
        again.load_state_dict(saved[0]) if forward == "master" else load_buffers(again, saved[0])
        anew.load_state_dict(saved[1])
        resumed.load_state_dict(saved[2])
        resumed.publish()
        replica = evergrad.Replica(other)
        assert_equal(resumed, replica)
        assert steps_of(resumed, again, anew, seed=2) == expected
        assert_equal(resumed, replica)


def load_buffers(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for name, buffer in model.named_buffers():
        buffer.copy_(state[name])


def test_a_checkpoint_of_another_model_changes_nothing(url: str) -> None:
    model, other = linear(4), linear(5)
    with Publisher(other, sgd(other), f"{url}-other") as donor:
        state = donor.state_dict()
    publisher = Publisher(model, sgd(model), url)
    before = deployed_bits(publisher)
    with pytest.raises(SchemaMismatch, match=r"1\.weight"):
        publisher.load_state_dict(state)
    assert publisher.publish() is None
    assert deployed_bits(publisher) == before


@pytest.mark.parametrize("which", ["master", "deployed"])
def test_a_checkpoint_that_is_not_finite_changes_nothing(which: str, url: str) -> None:
    model = linear()
    publisher = Publisher(model, sgd(model), url)
    state = copy.deepcopy(publisher.state_dict())
    state[which]["1.weight"][0, 0] = float("nan")
    before, master = deployed_bits(publisher), copy.deepcopy(publisher.state_dict()["master"])
    with pytest.raises(NonFiniteWeights, match=r"1\.weight"):
        publisher.load_state_dict(state)
    assert publisher.publish() is None
    assert deployed_bits(publisher) == before
    assert all(torch.equal(master[name], tensor) for name, tensor in publisher.state_dict()["master"].items())


def test_a_tensor_added_later_that_cannot_be_deployed_is_named_and_the_log_stays(url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url)
    for _ in train(model, optimizer, 1):
        publisher.publish()
    model.late = nn.Linear(2, 2, dtype=torch.complex64)
    optimizer.add_param_group({"params": list(model.late.parameters())})
    with pytest.raises(SchemaMismatch, match=r"late\.weight"):
        optimizer.step()
    publisher.detach()
    assert (publisher.version, publisher.log.begins) == (1, 0)


def test_a_parameter_of_the_model_may_join_the_optimizer_later(url: str) -> None:
    model = linear()
    optimizer = torch.optim.SGD([model[1].weight], lr=0.1)
    replica = evergrad.Replica(url)
    with Publisher(model, optimizer, url, density=1.0) as publisher:
        for number in range(4):
            if number == 2:
                optimizer.add_param_group({"params": [model[3].bias]})
            before = deployed_bits(publisher)["3.bias"]
            optimizer.zero_grad()
            loss_of(model, torch.randn(4, 3, 4, 4), torch.randn(4, 2)).backward()
            optimizer.step()
            publisher.publish()
            assert (deployed_bits(publisher)["3.bias"] != before) == (number >= 2)
            assert_equal(publisher, replica)
