"""A model that gains and loses tensors: the same log goes on, and replicas equal the trainer at every version."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import evergrad
from evergrad import maintain
from evergrad.errors import LogUnavailable, NonFiniteWeights, SchemaMismatch
from evergrad.log import UpdateLog
from evergrad.pytorch.bridge import schema_of
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.settings import Forward
from evergrad.testing import FakeClock
from tests.pytorch.models import (
    FORWARDS,
    assert_equal,
    batch_norm,
    deployed_bits,
    linear,
    replica_bits,
    state_bits,
    train,
)
from tests.pytorch.stores import faulty_log, snapshot_name, update_name


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def add(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A layer at the end."""
    assert isinstance(model, nn.Sequential)
    model.append(nn.Linear(2, 2))
    optimizer.add_param_group({"params": [*model[-1].parameters()]})


def remove(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """No bias in the first layer any more."""
    gone = model[0].bias if isinstance(model[0], nn.Conv2d) else model[1].bias
    for module in model.modules():
        if getattr(module, "bias", None) is gone:
            module.bias = None
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not gone]


def exchange(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """As many parameters as before, and one of them of another shape: a wider hidden layer would be such a thing."""
    old, new = model[-1], nn.Linear(model[-1].in_features, 3)
    model[-1] = new
    _take_place(optimizer, old, new)


def make_anew(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The same names and shapes, and other tensors."""
    old, new = model[-1], nn.Linear(model[-1].in_features, model[-1].out_features)
    model[-1] = new
    _take_place(optimizer, old, new)


def rename(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The same tensors under other names, beside a new one."""
    model[-1] = nn.Sequential(model[-1], nn.Linear(2, 2))
    optimizer.add_param_group({"params": [*model[-1][1].parameters()]})


def _take_place(optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module) -> None:
    others = dict(zip(old.parameters(), new.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["params"] = [others.get(p, p) for p in group["params"]]


Restructure = Callable[[nn.Module, torch.optim.Optimizer], None]
RESTRUCTURES = [add, remove, exchange, make_anew, rename]


def steps(publisher: Publisher, model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> Iterator[int]:
    for step in train(model, optimizer, count):
        publisher.publish()
        publisher.flush()
        yield step


@pytest.mark.parametrize("restructure", [add, remove, exchange, rename])
@pytest.mark.parametrize("background", [False, True], ids=["caller", "thread"])
@pytest.mark.parametrize("forward", FORWARDS)
def test_replicas_equal_the_trainer_at_every_version_before_and_after(
    forward: Forward, background: bool, restructure: Restructure, any_url: str
) -> None:
    model = batch_norm()
    optimizer = momentum(model)
    publisher = Publisher(model, optimizer, any_url, density=0.05, forward=forward, background=background)
    before = evergrad.Replica(any_url)
    for _ in steps(publisher, model, optimizer, 4):
        assert_equal(publisher, before)
    for _ in train(model, optimizer, 2):  # what these move is published by itself
        pass
    names = {name for name, _ in model.named_parameters()}
    last = {name: data for name, data in deployed_bits(publisher).items() if name in names}
    log_id = publisher.log.id
    restructure(model, optimizer)
    for _ in train(model, optimizer, 1):
        stays_at(before, 5, last)
    publisher.publish()
    publisher.flush()
    after = evergrad.Replica(any_url)
    assert publisher.log.begins == 6
    assert publisher.log.id != log_id
    assert_equal(publisher, after)
    for _ in steps(publisher, model, optimizer, 4):
        assert_equal(publisher, after)
        assert_equal(publisher, evergrad.Replica(any_url))
    stays_at(before, 5, last)
    stats = publisher.stats()
    assert (stats.version, stats.updates) == (11, 10)
    assert stats.full_push_bytes == publisher.log.schema.nbytes
    assert maintain.verify(publisher.log).problems == ()
    publisher.close()
    assert state_bits(model).keys() == replica_bits(after).keys()


def stays_at(replica: evergrad.Replica, version: int, weights: dict[str, bytes]) -> None:
    """It serves the last version of the older generation, and says why it does not go on."""
    for _ in range(2):
        with pytest.raises(SchemaMismatch, match="make a new Replica") as caught:
            replica.sync()
        assert (replica.version, replica.stats().error) == (version, caught.value)
        found = replica_bits(replica)
        assert {name: found[name] for name in weights} == weights


@pytest.mark.parametrize("forward", FORWARDS)
def test_replicas_follow_into_a_generation_of_the_same_schema(forward: Forward, url: str) -> None:
    model = batch_norm()
    optimizer = momentum(model)
    publisher, replica = Publisher(model, optimizer, url, density=0.05, forward=forward), evergrad.Replica(url)
    views = {}
    for step in steps(publisher, model, optimizer, 6):
        assert_equal(publisher, replica)
        views = views or replica.weights
        if step == 2:
            make_anew(model, optimizer)
    assert publisher.log.begins == 5, "version 4 tells the statistics of the forward pass before"
    assert all((views[name] == tensor).all() for name, tensor in replica.weights.items())
    publisher.close()


@pytest.mark.parametrize("restructure", RESTRUCTURES)
@pytest.mark.parametrize("forward", FORWARDS)
def test_parameters_that_stay_keep_what_was_deployed_and_others_begin_as_they_are(
    forward: Forward, restructure: Restructure, url: str
) -> None:
    model = linear()
    optimizer = momentum(model)
    publisher = Publisher(model, optimizer, url, density=0.05, forward=forward)
    for _ in train(model, optimizer, 3):
        pass
    with publisher.deployed():
        known = {id(p): p.detach().clone() for p in model.parameters()}
    restructure(model, optimizer)
    expected = {name: known.get(id(p), p.detach().clone()) for name, p in model.named_parameters()}
    for _ in train(model, optimizer, 1):
        found = maintain.state_at(publisher.log, publisher.log.begins).state.tensors()
    assert found.keys() == expected.keys()
    assert all((found[name] == tensor.numpy()).all() for name, tensor in expected.items())
    publisher.detach()


@pytest.mark.parametrize("restructure", RESTRUCTURES)
def test_training_with_an_open_loop_is_untouched(restructure: Restructure, url: str) -> None:
    found = []
    for attached in (False, True):
        torch.manual_seed(3)
        model = batch_norm()
        optimizer = momentum(model)
        publisher = Publisher(model, optimizer, url, density=0.05, forward="master") if attached else None
        for _ in train(model, optimizer, 3):
            pass
        restructure(model, optimizer)
        for _ in train(model, optimizer, 3, seed=9):
            pass
        found.append(state_bits(model))
        if publisher is not None:
            publisher.close()
    assert found[0] == found[1]


def test_bfloat16_of_a_model_that_grows_is_exact(url: str) -> None:
    model = linear()
    optimizer = momentum(model)
    publisher = Publisher(model, optimizer, url, values="bf16", forward="master")
    for _ in steps(publisher, model, optimizer, 2):
        pass
    add(model, optimizer)
    for _ in steps(publisher, model, optimizer, 3):
        replica = evergrad.Replica(url)
        assert replica.sync() == publisher.version
        assert replica_bits(replica) == state_bits(copy.deepcopy(model).bfloat16())
    publisher.detach()


@pytest.mark.parametrize(
    "pace", [{"k": 200}, {"density": 1.0}, {"quality": 1e-6}, {"budget": "20 kB/s"}], ids=lambda pace: next(iter(pace))
)
def test_the_pace_fits_what_is_left_of_the_model(pace: dict[str, Any], url: str) -> None:
    model = linear()
    optimizer = momentum(model)
    publisher = Publisher(model, optimizer, url, **pace)
    for _ in steps(publisher, model, optimizer, 3):
        pass
    model[1] = nn.Linear(48, 1)
    model[3] = nn.Linear(1, 2)
    optimizer.param_groups[0]["params"] = [*model.parameters()]
    for _ in steps(publisher, model, optimizer, 3):
        assert_equal(publisher, evergrad.Replica(url))
    assert publisher.log.begins == 4
    publisher.close()


def test_every_steps_hooks_and_lineage_go_on(url: str) -> None:
    model, told = linear(), list[int]()
    optimizer = momentum(model)
    publisher = Publisher(model, optimizer, url, every_steps=1, on_published=lambda p: told.append(p.version))
    for number in range(6):
        if number == 3:
            add(model, optimizer)
        publisher.publish(examples=(8 * number, 8 * number + 8), hold=True)
        for _ in train(model, optimizer, 1):
            pass
    assert told == [1, 2, 3, 5, 6, 7]
    named = {version: update[0].examples for version in (5, 6, 7) if (update := publisher.log.read(version))}
    assert named == {5: range(24, 32), 6: range(32, 40), 7: range(40, 48)}
    publisher.close()


def test_what_is_older_than_the_window_is_deleted_across_generations(url: str) -> None:
    model = linear()
    optimizer = momentum(model)
    publisher = Publisher(model, optimizer, url, snapshot_every=2, keep_versions=2)
    for _ in steps(publisher, model, optimizer, 5):
        pass
    add(model, optimizer)
    for _ in steps(publisher, model, optimizer, 6):
        assert_equal(publisher, evergrad.Replica(url))
    log = publisher.log
    assert log.begins == 6
    assert log.store.names("snapshots") == [snapshot_name(version) for version in (10, 12)]
    assert log.store.names("updates") == [update_name(version) for version in (11, 12)]
    publisher.close()


def test_a_new_parameter_that_is_not_finite_is_named_and_nothing_is_begun(url: str) -> None:
    model = linear()
    optimizer = momentum(model)
    publisher = Publisher(model, optimizer, url)
    for _ in steps(publisher, model, optimizer, 2):
        pass
    add(model, optimizer)
    with torch.no_grad():
        model[-1].bias.fill_(float("nan"))
    with pytest.raises(NonFiniteWeights, match=r"4\.bias"):
        optimizer.step()
    assert publisher.log.begins == 0
    with torch.no_grad():
        model[-1].bias.fill_(0.0)
    for _ in steps(publisher, model, optimizer, 2):
        assert_equal(publisher, evergrad.Replica(url))
    publisher.close()


# -- the log fails, or the process ends, between two writes ------------------------------------------------------------

POINTS = ["update", "schema", "marker", "snapshot", "evergrad.json", "latest.json"]


def grown() -> nn.Module:
    model = linear()
    add(model, momentum(model))
    return model


def name_of(point: str) -> str:
    """Which object is written there: version 3 ends the older generation, the new one begins with 4."""
    schema = f"schema/{schema_of(grown()).fingerprint}.json"
    names = {"update": update_name(3), "schema": schema, "marker": update_name(4), "snapshot": snapshot_name(4)}
    return names.get(point, point)


@dataclass
class Stopped:
    """A publisher whose log failed while it began a new generation; and a replica, and a checkpoint, of before."""

    log: UpdateLog
    publisher: Publisher
    model: nn.Module
    optimizer: torch.optim.Optimizer
    replica: evergrad.Replica
    checkpoint: dict[str, Any]


def stopped_at(point: str, url: str, *, stored: bool, **settings: Any) -> Stopped:
    """Version 2 is in the log, and another step was taken since."""
    store, log = faulty_log(url)
    model = linear()
    optimizer = momentum(model)
    publisher, replica = Publisher(model, optimizer, log, density=0.05, **settings), evergrad.Replica(url)
    for _ in steps(publisher, model, optimizer, 2):
        replica.sync()
    for _ in train(model, optimizer, 1):
        pass
    checkpoint = copy.deepcopy(publisher.state_dict())
    add(model, optimizer)
    (store.fail_after_create if stored else store.fail_create).add(name_of(point))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(LogUnavailable):
        optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    store.fail_create.clear()
    return Stopped(log, publisher, model, optimizer, replica, checkpoint)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("stored", [False, True], ids=["refused", "stored"])
@pytest.mark.parametrize("then", ["step", "publish", "changed", "shrunk", "close"])
def test_a_log_that_failed_meanwhile_is_tried_again(then: str, stored: bool, point: str, url: str) -> None:
    stopped = stopped_at(point, url, stored=stored)
    log, publisher, model, optimizer = stopped.log, stopped.publisher, stopped.model, stopped.optimizer
    if then == "changed":
        with publisher.master(), torch.no_grad():
            model[-1].bias.add_(1.0)
    if then == "shrunk":
        optimizer.param_groups.pop()
        del model[-1]
    if then == "close":
        publisher.close()
    elif then == "publish":
        publisher.publish()
        assert log.begins == (0 if point == "update" else 4), "what was begun is ended, and nothing else is begun"
        assert evergrad.Replica(url).sync() == publisher.version
    else:
        for _ in steps(publisher, model, optimizer, 3):
            assert_equal(publisher, evergrad.Replica(url))
    if then == "step":
        assert (log.begins, publisher.version) == (4, 7)
    assert maintain.verify(evergrad.open_log(url)).problems == ()
    publisher.detach()


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("stored", [False, True], ids=["refused", "stored"])
@pytest.mark.parametrize("model_then", ["old", "new"])
@pytest.mark.parametrize("checkpoint", ["none", "after"])
def test_a_process_that_ended_meanwhile_is_followed_by_another(
    checkpoint: str, model_then: str, stored: bool, point: str, url: str
) -> None:
    stopped = stopped_at(point, url, stored=stored)
    saved = copy.deepcopy(stopped.publisher.state_dict()) if checkpoint == "after" else None
    stopped.publisher.detach()
    again, replica = linear(), stopped.replica
    if model_then == "new":
        again, saved = copy.deepcopy(stopped.model), None  # both are of the old model
    optimizer = momentum(again)
    if not stopped.log.has_had(schema_of(again)):
        assert point in ("update", "schema"), "nobody knows yet that this log is of that model, too"
        with pytest.raises(SchemaMismatch):
            Publisher(again, optimizer, url)
        return
    next_one = Publisher(again, optimizer, url, density=0.05, resume=saved)
    for _ in steps(next_one, again, optimizer, 3):
        if model_then == "new":
            replica = evergrad.Replica(url)
        assert_equal(next_one, replica)
        assert replica.weights.keys() == again.state_dict().keys()
    next_one.close()


@pytest.mark.parametrize("point", ["snapshot", "evergrad.json", "latest.json"])
def test_a_checkpoint_of_before_goes_on_after_the_version_that_was_taken(point: str, url: str) -> None:
    stopped = stopped_at(point, url, stored=False)
    stopped.publisher.detach()
    again = linear()
    optimizer = momentum(again)
    resumed = Publisher(again, optimizer, url, density=0.05, resume=stopped.checkpoint)
    for _ in steps(resumed, again, optimizer, 2):
        assert_equal(resumed, stopped.replica)
    assert resumed.version > 5
    resumed.close()


def test_with_a_thread_a_log_that_is_down_is_told_and_the_next_step_tries_again(url: str) -> None:
    stopped = stopped_at("update", url, stored=False, background=True)
    for _ in steps(stopped.publisher, stopped.model, stopped.optimizer, 2):
        assert_equal(stopped.publisher, evergrad.Replica(url))
    assert stopped.log.begins == 4
    stopped.publisher.close()


def test_what_a_thread_could_not_keep_goes_out_before_a_generation_begins(url: str) -> None:
    store, log = faulty_log(url)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 1400), nn.Linear(1400, 2))
    optimizer = momentum(model)
    publisher = Publisher(model, optimizer, log, density=1.0, values="exact", background=True)
    store.fail_create = {update_name(1)}
    for _ in train(model, optimizer, 5):  # more than the memory that is set aside for a log that is gone
        publisher.publish()
    add(model, optimizer)
    for _ in range(3):
        with pytest.raises(LogUnavailable):
            next(train(model, optimizer, 1))
    assert (log.begins, publisher.version) == (0, 0)
    store.fail_create.clear()
    with pytest.raises(LogUnavailable, match="what moved while it was gone is not in it yet"):
        next(train(model, optimizer, 1))
    publisher._writer._next_try_s = 0.0  # as if ten seconds had passed
    for _ in steps(publisher, model, optimizer, 2):
        assert_equal(publisher, evergrad.Replica(url))
    assert maintain.verify(log).problems == ()
    assert log.begins > 1
    publisher.close()


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_training_goes_on_from_a_checkpoint_of_the_same_generation_bit_for_bit(url: str) -> None:
    model = linear()
    optimizer = momentum(model)
    publisher = Publisher(model, optimizer, url, density=0.05, clock=FakeClock())
    for _ in steps(publisher, model, optimizer, 2):
        pass
    add(model, optimizer)
    for _ in steps(publisher, model, optimizer, 2):
        pass
    saved = copy.deepcopy((optimizer.state_dict(), publisher.state_dict()))
    expected = [deployed_bits(publisher) for _ in steps(publisher, model, optimizer, 3)]
    objects = {name: publisher.log.store.read(name) for name in publisher.log.store.names("updates")}
    publisher.detach()

    again = grown()
    anew = torch.optim.SGD([{"params": [*again[:-1].parameters()]}, {"params": [*again[-1].parameters()]}], lr=0.05)
    anew.load_state_dict(saved[0])
    resumed = Publisher(again, anew, url, density=0.05, resume=saved[1], clock=FakeClock())
    assert [deployed_bits(resumed) for _ in steps(resumed, again, anew, 3)] == expected
    assert {name: resumed.log.store.read(name) for name in resumed.log.store.names("updates")} == objects
    assert_equal(resumed, evergrad.Replica(url))
    resumed.close()


def test_a_checkpoint_from_before_the_change_takes_the_log_on_with_the_model_that_it_is_of(url: str) -> None:
    model = linear()
    optimizer = momentum(model)
    publisher = Publisher(model, optimizer, url, density=0.05)
    for _ in steps(publisher, model, optimizer, 3):
        pass
    saved, weights = copy.deepcopy(publisher.state_dict()), deployed_bits(publisher)
    add(model, optimizer)
    for _ in steps(publisher, model, optimizer, 3):
        pass
    publisher.close()
    again = linear()
    anew = momentum(again)
    resumed = Publisher(again, anew, url, density=0.05, resume=saved)
    assert deployed_bits(resumed) == weights
    assert_equal(resumed, evergrad.Replica(url))
    add(again, anew)
    for _ in steps(resumed, again, anew, 3):
        assert_equal(resumed, evergrad.Replica(url))
    resumed.close()
