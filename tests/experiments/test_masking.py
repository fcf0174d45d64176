"""The paper's sparse gradients: nothing is lost, and the optimizer sees the largest elements of each tensor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from benchmarks.overhead import Paper, Plain
from experiments.prapas2021.masking import GradientMemory
from torch import nn

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
