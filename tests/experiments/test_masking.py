"""The paper's sparse gradients: nothing is lost, and the optimizer sees the largest elements of each tensor."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from benchmarks.overhead import Paper, Plain
from experiments.prapas2021.masking import GradientMemory, MaskedStep, Receiving, selected
from torch import nn

from evergrad.pytorch.learner import Learner

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        yield


def parameter(*shape: int, layout: torch.memory_format = torch.contiguous_format) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape).contiguous(memory_format=layout))


def backward(parameter: nn.Parameter, gradient: torch.Tensor) -> None:
    (parameter * gradient).sum().backward()


def gradient_of(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_stays_and_what_is_kept_are_the_gradient(layout: torch.memory_format) -> None:
    weight = parameter(8, 4, 3, 3, layout=layout)
    memory = GradientMemory([weight], density=0.1)
    kept = torch.zeros(8, 4, 3, 3)
    for _ in range(3):
        new = torch.randn(8, 4, 3, 3)
        memory.restore()
        backward(weight, new)
        whole = gradient_of(weight).clone()
        assert torch.equal(whole, kept + new)
        memory.sparsify()
        stays = gradient_of(weight).clone()
        memory.restore()
        kept = gradient_of(weight).clone()
        assert torch.equal(stays + kept, whole)
        assert torch.equal(stays * kept, torch.zeros_like(whole))
        assert torch.count_nonzero(stays) == 28
        assert stays[stays != 0].abs().min() >= kept.abs().max()


def test_every_tensor_sends_one_element_at_least() -> None:
    weights = [parameter(1000), parameter(3)]
    memory = GradientMemory(weights, density=2e-3)
    memory.restore()
    for weight in weights:
        backward(weight, torch.arange(1.0, 1 + weight.numel()))
    memory.sparsify()
    assert [gradient_of(weight).nonzero().flatten().tolist() for weight in weights] == [[998, 999], [2]]


def test_tensors_without_a_gradient_are_left_alone() -> None:
    weights = [parameter(4), nn.Parameter(torch.zeros(4), requires_grad=False)]
    memory = GradientMemory(weights, density=0.5)
    memory.restore()
    memory.sparsify()
    assert [weight.grad for weight in weights] == [None, None]


def test_at_density_1_it_is_plain_training() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    plain, paper = Plain(model), Paper(model, density=1.0)
    for _ in range(3):
        x, y = torch.randn(8, 3, 2, 2), torch.randint(10, (8,))
        plain.step(x, y)
        paper.step(x, y)
    for one, other in zip(plain.model.parameters(), paper.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(plain.model[1].weight, model[1].weight)  # type: ignore[index]


def test_random_elements_are_drawn_anew_each_step_and_nothing_is_lost() -> None:
    weight = parameter(1000)
    memory = GradientMemory([weight], density=0.1, random=torch.Generator().manual_seed(4))
    total, sent, chosen = torch.zeros(1000), torch.zeros(1000), []
    for _ in range(3):
        new = torch.rand(1000) + 0.5
        total += new
        memory.restore()
        backward(weight, new)
        memory.sparsify()
        sent += gradient_of(weight)
        chosen.append(gradient_of(weight).nonzero().flatten().tolist())
    memory.restore()
    torch.testing.assert_close(sent + gradient_of(weight), total)
    assert [len(each) for each in chosen] == [100, 100, 100]
    assert chosen[0] != chosen[1] != chosen[2]


def learner(model: nn.Module) -> Learner:
    return Learner(model, nn.functional.cross_entropy, torch.optim.Adam(model.parameters(), 0.01))


@pytest.mark.parametrize("statistics", [False, True], ids=["weights alone", "with statistics"])
def test_a_replica_gets_the_selected_weights_and_momentum_moves_others(statistics: bool) -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 4))
    copied = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    step = MaskedStep(model, nn.functional.cross_entropy, optimizer, GradientMemory(model.parameters(), 0.02))
    replica = Receiving(learner(copied), model, statistics=statistics)
    expected = [p.detach().clone() for p in model.parameters()]
    x = torch.randn(64, 20)
    for _ in range(4):
        step(x, torch.randint(4, (64,)))
        for own, trained in zip(expected, model.parameters(), strict=True):
            own[gradient_of(trained) != 0] = trained.detach()[gradient_of(trained) != 0]
        replica.predict(x.numpy())
    for own, received in zip(expected, copied.parameters(), strict=True):
        assert torch.equal(own, received)
    differing = sum(int((a != b).sum()) for a, b in zip(model.parameters(), copied.parameters(), strict=True))
    assert differing > 0
    assert selected(model) == sum(max(1, int(0.02 * p.numel())) for p in model.parameters())
    assert torch.equal(model[1].running_mean, copied[1].running_mean) == statistics  # type: ignore[arg-type]
