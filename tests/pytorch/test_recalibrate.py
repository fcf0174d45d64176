"""In an open loop BatchNorm's statistics are those of the deployed weights, which training never sees."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from evergrad import Replica
from evergrad.pytorch.publisher import Publisher
from tests.pytorch.models import assert_equal, batch_norm, batches, linear, sgd, train

MEAN, VARIANCE = "1.running_mean", "1.running_var"
BEHIND, AHEAD = (2.0, 1.0), (1.0, 4.0)


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, publisher: Publisher, steps: int, seed: int = 7) -> Any:
    """Takes steps, recalibrates after each, and gives the last batch."""
    for _, (x, _) in zip(train(model, optimizer, steps, seed), batches(seed), strict=False):
        publisher.recalibrate(lambda x=x: model(x))
        publisher.publish()
    return x


def statistics(publisher: Publisher) -> dict[str, torch.Tensor]:
    published = publisher.published()
    return {name: published[name].clone() for name in (MEAN, VARIANCE)}


def test_they_are_those_of_a_forward_pass_at_the_deployed_weights(url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model, lr=0.5)
    with Publisher(model, optimizer, url, density=0.02, forward="master", buffer_tolerance=0.0) as publisher:
        expected = statistics(publisher)
        for step in range(3):
            x = stepped(model, optimizer, publisher, 1, seed=step)
            twin = batch_norm()
            twin.load_state_dict(publisher.published())
            seen = twin[0](x)
            expected[MEAN].lerp_(seen.mean((0, 2, 3)), 0.5)
            expected[VARIANCE].lerp_(seen.var((0, 2, 3)), 0.5)
            for name, found in statistics(publisher).items():
                torch.testing.assert_close(found, expected[name])
                assert not torch.allclose(found, model.state_dict()[name], rtol=1e-2, atol=1e-3)
        assert_equal(publisher, Replica(url))


def test_training_goes_on_as_if_nothing_had_been(url: str) -> None:
    results = []
    for recalibrates in (True, False):
        torch.manual_seed(3)
        model = nn.Sequential(batch_norm(), nn.Dropout(0.5))
        model[0][1].momentum = 0.2
        optimizer = sgd(model)
        with Publisher(model, optimizer, f"{url}-{recalibrates}", density=0.02, forward="master") as publisher:
            if recalibrates:
                stepped(model, optimizer, publisher, 4)
            for _ in train(model, optimizer, 0 if recalibrates else 4):
                publisher.publish()
            assert all(module.training for module in model.modules())
            assert model[0][1].momentum == 0.2
            results.append([copy.deepcopy(model.state_dict()), torch.get_rng_state()])
    (with_it, random), (without, other) = results
    assert all(torch.equal(with_it[name], without[name]) for name in without)
    assert torch.equal(random, other)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (batch_norm, {"forward": "deployed"}),
        (batch_norm, {"forward": "master", "values": "bf16"}),
        (linear, {"forward": "master"}),
        (lambda: _frozen(batch_norm()), {"forward": "master"}),
    ],
    ids=["closed loop", "every value is sent", "no BatchNorm", "BatchNorm in evaluation mode"],
)
def test_where_there_is_nothing_to_do_nothing_is_run(
    make: Callable[[], nn.Module], settings: dict[str, Any], url: str
) -> None:
    model = make()
    optimizer = sgd(model)
    with Publisher(model, optimizer, url, **settings) as publisher:
        for _ in train(model, optimizer, 2):
            publisher.recalibrate(lambda: pytest.fail("it was run"))
            publisher.publish()


def _frozen(model: nn.Module) -> nn.Module:
    model[1].eval()  # type: ignore[index]
    return model


def test_an_error_in_the_forward_pass_leaves_all_as_it_was(url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model)
    with Publisher(model, optimizer, url, density=0.02, forward="master") as publisher:
        stepped(model, optimizer, publisher, 2)
        before, told = copy.deepcopy(model.state_dict()), statistics(publisher)
        with pytest.raises(RuntimeError, match="size"):
            publisher.recalibrate(lambda: model(torch.zeros(8, 5, 5, 5)))
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
        assert all(module.training for module in model.modules())
        publisher.publish()
        assert all(torch.equal(statistics(publisher)[name], told[name]) for name in told)


def test_a_loop_that_closes_goes_on_from_them_and_one_that_opens_from_its_own(url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model, lr=0.5)
    with Publisher(model, optimizer, url, density=0.02, buffer_tolerance=0.0) as publisher:
        stepped(model, optimizer, publisher, 3)
        told, own = statistics(publisher), copy.deepcopy(model.state_dict())
        publisher.score(*BEHIND)
        assert publisher.closed
        for name in told:
            assert torch.equal(model.state_dict()[name], told[name])
            assert not torch.equal(own[name], told[name])
        stepped(model, optimizer, publisher, 3)
        closed = statistics(publisher)
        assert all(torch.equal(model.state_dict()[name], closed[name]) for name in closed)
        for _ in range(100):
            publisher.score(*AHEAD)
        assert not publisher.closed
        for _ in train(model, optimizer, 1):
            publisher.publish()
        for name in closed:
            assert torch.equal(statistics(publisher)[name], closed[name])  # and not those of the master's pass
            assert not torch.equal(model.state_dict()[name], closed[name])
        assert_equal(publisher, Replica(url))


@pytest.mark.parametrize("scores", [None, BEHIND], ids=["open", "closed"])
def test_a_checkpoint_holds_them(scores: tuple[float, float] | None, url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model, lr=0.5)
    publisher = Publisher(model, optimizer, url, density=0.02, clock=lambda: 1e9)
    stepped(model, optimizer, publisher, 3)
    if scores is not None:
        publisher.score(*scores)
    state, live = copy.deepcopy((publisher.state_dict(), dict(model.named_buffers())))

    def rest(
        publisher: Publisher, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[int, dict[str, torch.Tensor]]:
        stepped(model, optimizer, publisher, 3, seed=9)
        for _ in range(100):
            publisher.score(*AHEAD)
        stepped(model, optimizer, publisher, 2, seed=10)
        publisher.detach()
        return publisher.digest, copy.deepcopy(dict(model.named_buffers()))

    expected, buffers = rest(publisher, model, optimizer)
    again = batch_norm()
    for name, buffer in again.named_buffers():
        buffer.copy_(live[name])
    optimizer = sgd(again, lr=0.5)
    second = Publisher(again, optimizer, f"{url}-2", density=0.02, resume=state, clock=lambda: 1e9)
    found, own = rest(second, again, optimizer)
    assert found == expected
    assert all(torch.equal(own[name], buffers[name]) for name in buffers)


def test_what_was_deployed_is_given_back_to_them_too(url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model)
    with Publisher(model, optimizer, url, density=0.02, forward="master") as publisher:
        stepped(model, optimizer, publisher, 2)
        told = statistics(publisher)
        publisher.recalibrate(lambda: model(torch.full((8, 3, 4, 4), 1e9)))
        publisher.restore_buffers()
        publisher.publish()
        for name in told:
            assert torch.equal(statistics(publisher)[name], told[name])
            assert torch.equal(model.state_dict()[name], told[name])
