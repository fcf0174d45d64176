"""The publisher in a user's loop: what it leaves alone, what it refuses, and how it lets go."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import evergrad
from evergrad.errors import OptimizerAttached
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.settings import Forward
from evergrad.testing import FakeClock
from tests.pytorch.models import (
    FORWARDS,
    MODELS,
    OPTIMIZERS,
    Everything,
    assert_equal,
    batch_norm,
    bits,
    deployed_bits,
    linear,
    sgd,
    state_bits,
    train,
    trainable,
)


def optimizer_bits(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [
        [(key, bits(value) if isinstance(value, torch.Tensor) else value) for key, value in sorted(state.items())]
        for state in optimizer.state_dict()["state"].values()
    ]


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("model_name", MODELS)
def test_an_open_loop_leaves_training_as_it_is(model_name: str, optimizer_name: str, url: str) -> None:
    found = []
    for publishes in (False, True):
        torch.manual_seed(4)
        model = MODELS[model_name]()
        optimizer = OPTIMIZERS[optimizer_name](trainable(model))
        publisher = Publisher(model, optimizer, url, density=0.01, forward="master") if publishes else None
        for _ in train(model, optimizer, 6):
            if publisher:
                publisher.publish()
                deployed_bits(publisher)
        found.append((state_bits(model), optimizer_bits(optimizer)))
    assert found[0] == found[1]


def test_a_closed_loop_of_full_precision_trains_as_without(url: str) -> None:
    """Where one element differs, a single step reaches the master, so gradients are the same ones."""
    found = []
    for publishes in (False, True):
        weight = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            weight.weight.fill_(0.75)
        optimizer = torch.optim.SGD(weight.parameters(), lr=0.25)
        if publishes:
            Publisher(weight, optimizer, url, density=1.0, forward="deployed")
        for _ in range(5):
            optimizer.zero_grad()
            weight(torch.ones(1, 1)).square().sum().backward()
            optimizer.step()
        found.append(weight.weight.item())
    assert found == [0.75 / 2**5] * 2


@pytest.mark.parametrize("ending", ["detach", "close", "with"])
@pytest.mark.parametrize("forward", FORWARDS)
def test_the_loop_is_given_back(forward: Forward, ending: str, url: str) -> None:
    model = Everything()
    optimizer = OPTIMIZERS["adamw_fused"](trainable(model))
    before = {name: (t.data_ptr(), t.stride()) for name, t in model.state_dict(keep_vars=True).items()}
    with Publisher(model, optimizer, url, density=0.02, forward=forward) as publisher:
        for _ in train(model, optimizer, 3):
            publisher.publish()
        for _ in train(model, optimizer, 1):
            pass
        with publisher.master():
            master = state_bits(model)
        if ending == "detach":
            publisher.detach()
        elif ending == "close":
            publisher.close()
    assert publisher.version == (3 if ending == "detach" else 4), "close() publishes what has moved, detach() does not"
    assert state_bits(model) == master
    assert {name: (t.data_ptr(), t.stride()) for name, t in model.state_dict(keep_vars=True).items()} == before
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks

    twin = Everything()
    twin.load_state_dict(model.state_dict())
    twin_optimizer = OPTIMIZERS["adamw_fused"](trainable(twin))
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its_optimizer in ((model, optimizer), (twin, twin_optimizer)):
        for _ in train(one, its_optimizer, 3, seed=8):
            pass
    assert state_bits(model) == state_bits(twin)
    assert evergrad.Replica(url).sync() == publisher.version


@pytest.mark.parametrize("forward", FORWARDS)
def test_after_detach_nothing_is_published_and_contexts_harm_nothing(forward: Forward, url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, density=0.05, forward=forward)
    for _ in train(model, optimizer, 2):
        publisher.publish()
    publisher.detach()
    for _ in train(model, optimizer, 2):
        assert publisher.publish() is None
    publisher.close()
    assert publisher.log.updates() == [1, 2]
    before = state_bits(model)
    assert_equal(publisher, evergrad.Replica(url))
    assert state_bits(model) == before


@pytest.mark.parametrize("forward", FORWARDS)
def test_closing_an_old_publisher_leaves_the_new_one_alone(forward: Forward, url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    old = Publisher(model, optimizer, url, density=0.05, forward=forward)
    for _ in train(model, optimizer, 2):
        old.publish()
    old.close()
    new, replica = Publisher(model, optimizer, url, density=0.05, forward=forward), evergrad.Replica(url)
    old.close()
    old.detach()
    with pytest.raises(OptimizerAttached):
        Publisher(model, optimizer, url)
    shown = state_bits(model)
    with new.deployed() if forward == "deployed" else new.master():
        assert state_bits(model) == shown
    for _ in train(model, optimizer, 2):
        new.publish()
        assert_equal(new, replica)


def test_an_exception_in_the_block_publishes_nothing_and_gives_the_loop_back(url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url)

    def loop() -> None:
        with publisher:
            for step in train(model, optimizer, 9):
                if step == 4:
                    raise ZeroDivisionError
                publisher.publish()

    with pytest.raises(ZeroDivisionError):
        loop()
    assert publisher.log.updates() == [1, 2, 3, 4]
    assert not optimizer._optimizer_step_post_hooks
    with Publisher(model, optimizer, url) as again:
        assert again.version == 5, "the weights that were not sent go out as one update"
    assert_equal(again, evergrad.Replica(url))


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_step_that_fails_in_its_closure_harms_nothing(forward: Forward, url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, url, density=0.05, forward=forward), evergrad.Replica(url)

    def closure() -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert publisher.publish() is None
    for _ in train(model, optimizer, 3):
        publisher.publish()
        assert_equal(publisher, replica)


def test_nothing_new_is_nothing_published(url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url)
    assert publisher.publish() is None
    for _ in train(model, optimizer, 1):
        assert publisher.publish() is not None
        assert publisher.publish() is None
    assert publisher.log.updates() == [1]


def test_a_dropped_optimizer_is_forgotten(url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url)
    publisher.detach()
    gone = weakref.ref(optimizer)
    del optimizer, publisher
    gc.collect()
    assert gone() is None


def test_stats_count_what_was_written(tmp_path: Any) -> None:
    model = linear()
    optimizer = sgd(model)
    clock = FakeClock()
    publisher = Publisher(model, optimizer, f"file:{tmp_path}", snapshot_every=2, clock=clock, factory="a.b:c")
    sizes = []
    for _ in train(model, optimizer, 3):
        published = publisher.publish()
        assert published is not None
        sizes.append(published.update_bytes)
        assert published.elements == 1
    assert sizes == [path.stat().st_size for path in sorted(tmp_path.glob("updates/*"))]
    stats = publisher.stats()
    assert (stats.version, stats.digest, stats.updates) == (3, publisher.digest, 3)
    assert stats.update_bytes == sum(sizes)
    assert stats.snapshot_bytes == sum(path.stat().st_size for path in tmp_path.glob("snapshots/*"))
    assert stats.full_push_bytes == 4 * sum(p.numel() for p in model.parameters())
    assert publisher.log.snapshots() == [0, 2]
    assert evergrad.open_log(f"file:{tmp_path}").model == "a.b:c"


def test_replicas_know_how_old_the_newest_example_is(url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    clock = FakeClock()
    publisher, replica = Publisher(model, optimizer, url, clock=clock), evergrad.Replica(url, clock=clock)
    replica.sync()
    assert replica.staleness_s() == float("inf")
    steps = train(model, optimizer, 3)
    for newest_s, expected in ((clock() - 30, 30.0), (clock() - 60, 30.0), (None, 0.0)):
        next(steps)
        publisher.publish(newest_s)
        replica.sync()
        assert replica.staleness_s() == pytest.approx(expected, abs=1e-5)
