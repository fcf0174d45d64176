"""What may be published, and when: averages of weights, bfloat16 copies, embedding tables, in full precision."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import evergrad
from evergrad.errors import ConfigError, NonFiniteWeights, WeightsChanged
from evergrad.pytorch import mover, tables
from evergrad.pytorch.mover import ValuesAs
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.select import GlobalTopK, LayerTopK, RandomK, Selector, Threshold
from evergrad.pytorch.settings import Forward
from evergrad.pytorch.tables import Table, find_tables
from evergrad.testing import FakeClock
from tests.pytorch.models import (
    FORWARDS,
    MODELS,
    assert_equal,
    batch_norm,
    bits,
    distance,
    idle,
    linear,
    replica_bits,
    sgd,
    train,
    trainable,
)

# -- when --------------------------------------------------------------------------------------------------------


def test_it_publishes_by_itself_every_few_steps(url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model)
    with Publisher(model, optimizer, url, density=0.1, every_steps=3) as publisher:
        versions = [publisher.version for _ in train(model, optimizer, 9)]
        assert versions == [0, 0, 1, 1, 1, 2, 2, 2, 3]
        assert_equal(publisher, evergrad.Replica(url))


def test_an_average_of_weights_is_published(url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model, lr=0.2)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    publisher = Publisher(average.module, None, url, density=0.1, forward="master")
    replica = evergrad.Replica(url)
    before = distance(publisher)
    for _ in train(model, optimizer, 10):
        average.update_parameters(model)
        publisher.publish()
        assert_equal(publisher, replica)
    assert publisher.version == 10
    for _ in range(80):
        publisher.publish()
    assert before == 0
    assert distance(publisher) < 1e-3
    publisher.close()
    assert not optimizer._optimizer_step_pre_hooks


def test_an_average_is_followed_not_trained_on(url: str) -> None:
    with pytest.raises(ConfigError, match="no optimizer steps the model"):
        Publisher(linear(), None, url, forward="deployed")


def test_an_optimizer_that_puts_other_storage_in_place_is_told(url: str) -> None:
    class Replacing(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            for parameter in self.param_groups[0]["params"]:
                parameter.data = parameter.data + 1

    model = linear()
    optimizer = Replacing(model.parameters(), lr=0.1)
    publisher = Publisher(model, optimizer, url)
    with pytest.raises(WeightsChanged, match=r"1\.weight"):
        optimizer.step()
    publisher.detach()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("forward", FORWARDS)
def test_a_step_that_a_scaler_skips_moves_nothing(fused: bool, forward: Forward, url: str) -> None:
    model = linear()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    publisher = Publisher(model, optimizer, url, density=0.02, forward=forward)
    for _ in train(model, optimizer, 3):  # what is not sent waits
        publisher.publish()
    assert distance(publisher) > 0
    version = publisher.version
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    x = torch.randn(4, 3, 4, 4, dtype=torch.float32)
    for bad in (True, True, False):
        optimizer.zero_grad()
        loss = model(x).square().mean() * (float("inf") if bad else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        publisher.publish()
        assert publisher.version == version + (not bad)
    assert_equal(publisher, evergrad.Replica(url))


# -- how much ---------------------------------------------------------------------------------------------------


def test_a_number_of_elements(url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model)
    with Publisher(model, optimizer, url, k=3, buffer_tolerance=0.9) as publisher:
        for _ in train(model, optimizer, 5):
            published = publisher.publish()
            assert published is not None
    steps = [u[0] for v in range(1, 6) if (u := publisher.log.read(v)) is not None]
    assert all(len(update.sections[0].indices) <= 3 for update in steps)


@pytest.mark.parametrize("background", [False, True])
def test_a_byte_budget_is_kept(background: bool, url: str) -> None:
    clock = FakeClock()
    model = linear(width=200)
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, budget="200 B/s", background=background, clock=clock)
    replica = evergrad.Replica(url)
    for _ in train(model, optimizer, 300):
        publisher.publish()
        publisher.flush()
        clock.advance(1.0)
    stats = publisher.stats()
    assert 0.5 * 300 * 200 < stats.update_bytes < 300 * 200 + 2000
    assert_equal(publisher, replica)
    publisher.close()


def test_a_spent_budget_holds_statistics_back_too(url: str) -> None:
    clock = FakeClock()
    model = batch_norm()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, budget="1 B/s", buffer_tolerance=0.0, clock=clock)
    for _ in train(model, optimizer, 100):
        publisher.publish()
    assert publisher.stats().update_bytes < 1024 + 300
    clock.advance(3600)
    for _ in train(model, optimizer, 1):
        publisher.publish()
    assert_equal(publisher, evergrad.Replica(url))


def test_a_quality_is_kept(url: str) -> None:
    model = linear(width=200)
    optimizer = sgd(model, lr=0.02)
    publisher = Publisher(model, optimizer, url, quality=1e-2, values="exact")
    distances = []
    for _ in train(model, optimizer, 120):
        publisher.publish()
        distances.append(publisher._weights.distance())
    assert max(distances) > 2e-2
    assert max(distances[90:]) < 1.1e-2
    assert_equal(publisher, evergrad.Replica(url))


@pytest.mark.parametrize(
    "given", [{"density": 0.1, "k": 3}, {"k": 0}, {"budget": "20"}, {"quality": 2.0}, {"density": 0.0}]
)
def test_how_much_is_told_once_and_in_range(given: dict[str, Any], url: str) -> None:
    model = linear()
    with pytest.raises(ConfigError):
        Publisher(model, sgd(model), url, **given)
    with pytest.raises(ConfigError):
        Publisher(model, sgd(model), url, values="bf16", forward="master", **{"k": 3, **given})
    assert not evergrad.log.open_log(url, create=True).begun()


# -- what --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("values", ["steps", "exact"])
@pytest.mark.parametrize("selector", [GlobalTopK, LayerTopK, RandomK, lambda: Threshold(1e-3)])
def test_any_way_to_choose_and_to_tell(model_name: str, values: ValuesAs, selector: type[GlobalTopK], url: str) -> None:
    chosen: Selector = selector()
    model = MODELS[model_name]()
    optimizer = sgd(model)
    replica = evergrad.Replica(url)
    with Publisher(model, optimizer, url, density=0.1, selector=chosen, values=values) as publisher:
        for _ in train(model, optimizer, 8):
            publisher.publish()
            assert_equal(publisher, replica)
        assert publisher.version >= 6


def test_exact_values_reach_the_master_at_once(url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, density=1.0, values="exact")
    for _ in train(model, optimizer, 3):
        assert distance(publisher) == 0


def cast_bits(model: nn.Module) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in copy.deepcopy(model).bfloat16().state_dict().items()}


@pytest.mark.parametrize("model_name", ["linear", "batch_norm", "channels_last", "tied"])
@pytest.mark.parametrize("background", [False, True])
def test_a_bfloat16_replica_is_the_trainers_cast_at_every_step(model_name: str, background: bool, url: str) -> None:
    model, twin = (MODELS[model_name]() for _ in range(2))
    twin.load_state_dict(model.state_dict())
    optimizer, alone = sgd(model, lr=0.01), sgd(twin, lr=0.01)
    settings = {"values": "bf16", "forward": "master", "background": background}
    publisher = Publisher(model, optimizer, url, **settings)  # type: ignore[arg-type]
    replica = evergrad.Replica(url)
    replica.sync()
    assert replica_bits(replica) == cast_bits(model)
    for _ in zip(train(model, optimizer, 12), train(twin, alone, 12), strict=True):
        publisher.publish()
        publisher.flush()
        replica.sync()
        assert replica_bits(replica) == cast_bits(model) == cast_bits(twin)
    with publisher.deployed() as shown:
        assert cast_bits(shown) == cast_bits(twin)
        x = torch.randn(2, 3, 4, 4, dtype=torch.float32)
        served = shown.eval()(x)
    assert served.dtype == torch.float32
    model.train()
    assert publisher.stats().update_bytes < 0.7 * publisher.version * publisher.stats().full_push_bytes
    publisher.close()
    with Publisher(model, sgd(model), url, **settings) as again:  # type: ignore[arg-type]
        assert again.version == publisher.version


def test_bfloat16_loads_into_a_module_of_that_dtype(url: str) -> None:
    model = batch_norm()
    with Publisher(model, sgd(model), url, values="bf16", forward="master"):
        pass
    target = batch_norm().bfloat16()
    evergrad.pytorch.bridge.load_weights(target, synced(url))
    assert {name: bits(tensor) for name, tensor in target.state_dict().items()} == cast_bits(model)


def synced(url: str) -> evergrad.Replica:
    replica = evergrad.Replica(url)
    replica.sync()
    return replica


def test_bfloat16_statistics_are_given_back(url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, values="bf16", forward="master")
    for _ in train(model, optimizer, 2):
        publisher.publish()
    model(torch.full((4, 3, 4, 4), float("nan")))
    assert bool(model[1].running_mean.isnan().any())
    publisher.restore_buffers()
    assert replica_bits(synced(url)) == cast_bits(model)


def test_a_model_too_large_for_bfloat16_leaves_nothing_behind(url: str) -> None:
    model = linear()
    with Publisher(model, sgd(model), url, values="bf16", forward="master"):
        pass
    with torch.no_grad():
        model[3].weight[0, 1] = 3.4e38
    before, optimizer = set(threading.enumerate()), sgd(model)
    with pytest.raises(NonFiniteWeights, match=r"3\.weight"):
        Publisher(model, optimizer, url, values="bf16", forward="master", background=True)
    assert set(threading.enumerate()) == before
    assert not optimizer._optimizer_step_pre_hooks


def test_a_weight_too_large_for_bfloat16_is_named_and_nothing_is_published(url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, values="bf16", forward="master")
    next(train(model, optimizer, 1))
    with torch.no_grad():
        model[3].weight[0, 1] = 3.4e38
    with pytest.raises(NonFiniteWeights, match=r"3\.weight"):
        publisher.publish()
    assert publisher.version == 0
    with torch.no_grad():
        model[3].weight[0, 1] = 0.5
    publisher.publish()
    assert replica_bits(synced(url)) == cast_bits(model)


def test_bfloat16_trains_in_float32(url: str) -> None:
    model = linear()
    with pytest.raises(ConfigError, match="training goes on in float32"):
        Publisher(model, sgd(model), url, values="bf16", forward="deployed")


# -- embedding tables --------------------------------------------------------------------------------------------


class Recommender(nn.Module):
    def __init__(self, rows: int, *, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 8, sparse=sparse)
        self.bag = nn.EmbeddingBag(rows, 8, sparse=sparse)
        self.out = nn.Linear(8, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.table(ids).mean(1) + self.bag(ids)))


@pytest.fixture
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_LEAST_ELEMENTS", 100)
    monkeypatch.setattr(tables, "_LEAST_SWEPT", 4)


def learn(model: Recommender, optimizer: torch.optim.Optimizer, steps: int, rows: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(5)
    for step in range(steps):
        ids = torch.randint(0, rows, (16, 3), generator=generator)
        optimizer.zero_grad()
        (model(ids)[:, 0] - (ids.sum(1) % 2).float()).square().mean().backward()
        optimizer.step()
        yield step


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch, of its own Adagrad
@pytest.mark.usefixtures("small_tables")
def test_tables_are_published_and_catch_up(
    sparse: bool, optimizer_class: type[torch.optim.SGD], forward: Forward, url: str
) -> None:
    model = Recommender(100, sparse=sparse)
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    publisher = Publisher(model, optimizer, url, density=0.05, forward=forward)
    replica = evergrad.Replica(url)
    assert len(publisher._mover.tables) == 2
    for _ in learn(model, optimizer, 20, 100):
        publisher.publish()
        assert_equal(publisher, replica)
    assert distance(publisher) > 0
    for _ in idle(optimizer, 800):
        publisher.publish()
    assert_equal(publisher, replica)
    assert distance(publisher) < 1e-5
    publisher.close()
    assert not model.table._forward_pre_hooks


@pytest.mark.usefixtures("small_tables")
def test_only_touched_rows_and_the_next_few_are_scanned() -> None:
    model = Recommender(1000, sparse=True)
    pair = next(p for p in pairs_of(model) if p.name == "table.weight")
    table = Table(pair, [model.table])
    model(torch.tensor([[7, 900, 7]])).sum().backward()
    table.before_step()
    assert runs_of(table) == [(0, 4), (7, 8), (900, 901)]
    assert runs_of(table) == [(4, 8), (900, 901)]
    model.zero_grad()
    table.before_step()
    assert runs_of(table) == [(8, 12)]
    for _ in range(246):
        table.due()
    assert [runs_of(table), runs_of(table)] == [[(996, 1000)], [(0, 4)]]


def runs_of(table: Table) -> list[tuple[int, int]]:
    starts, stops = table.due()
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def pairs_of(model: nn.Module) -> list[evergrad.pytorch.select.Pair]:
    return [
        evergrad.pytorch.select.Pair(name, parameter, parameter.detach(), parameter.detach().clone(), 0)
        for name, parameter in model.named_parameters()
    ]


@pytest.mark.usefixtures("small_tables")
def test_a_matrix_that_is_more_than_a_table_is_scanned_whole() -> None:
    model = Recommender(100, sparse=False)
    model.decoder = nn.Linear(8, 100)
    model.decoder.weight = model.table.weight
    assert [table.pair.name for table in find_tables(model, pairs_of(model))] == ["bag.weight"]


@pytest.mark.usefixtures("small_tables")
def test_only_compiled_code_watches_tables(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "COMPILED", False)
    model = Recommender(100, sparse=False)
    with Publisher(model, torch.optim.SGD(model.parameters(), lr=0.1), url) as publisher:
        assert not publisher._mover.tables
        assert not model.table._forward_pre_hooks


def test_small_tables_are_scanned_whole() -> None:
    model = Recommender(100, sparse=True)
    assert find_tables(model, pairs_of(model)) == []


def test_a_row_that_is_not_finite_is_named(url: str, small_tables: None) -> None:
    model = Recommender(100, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    publisher = Publisher(model, optimizer, url, forward="master")
    model(torch.tensor([[3, 50, 4]])).sum().backward()
    with torch.no_grad():
        model.table.weight[50, 2] = float("nan")
    with pytest.raises(NonFiniteWeights, match=r"table\.weight"):
        optimizer.step()
    assert np.isfinite(synced(url).weights["table.weight"]).all()
    publisher.detach()


def test_trainable_parameters_alone_move(url: str) -> None:
    model = batch_norm()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    with Publisher(model, optimizer, url, density=1.0) as publisher:
        before = bits(model[0].weight)
        for _ in train(model, optimizer, 3):
            publisher.publish()
        assert replica_bits(synced(url))["0.weight"] == before
