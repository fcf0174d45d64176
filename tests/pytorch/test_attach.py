"""A module that follows in place: the same memory, only what was touched, never a mix."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import evergrad
from evergrad.errors import LogNotFound, NotSynced, SchemaMismatch
from evergrad.log import UpdateLog
from evergrad.pytorch import Attached, attach
from evergrad.pytorch.publisher import Publisher
from evergrad.replica import Applied, Replica
from evergrad.testing import FakeClock, FaultyStore
from tests.builders import NEWEST_US, Writer, equal_states, fresh_log, fresh_store, update_name
from tests.pytorch.models import MODELS, Everything, batches, linear, sgd, state_bits, train

UPDATES, READERS = 300, 4


class Small(nn.Module):
    """The model of `tests.builders.small_schema`."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, 4))
        self.b = nn.Parameter(torch.zeros(4))
        self.count = nn.Parameter(torch.tensor(0), requires_grad=False)
        self.h = nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
        self.on = nn.Parameter(torch.zeros(3, dtype=torch.bool), requires_grad=False)
        self.w_tied = self.w

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w @ x + self.b[:3] + self.count


def pointers(module: nn.Module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}


def weights(replica: Replica) -> dict[str, bytes]:
    return {name: np.ascontiguousarray(array).tobytes() for name, array in replica.weights.items()}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_module_follows_in_its_own_memory(make: Callable[[], nn.Module], url: str) -> None:
    model = make()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, density=0.1)
    torch.manual_seed(8)
    served = make()
    places, strides = pointers(served), [t.stride() for t in served.state_dict().values()]
    with attach(served, url, follow=False) as attached:
        for step in train(model, optimizer, 6):
            publisher.publish()
            attached.replica.sync()
            assert attached.version == step + 1
            assert attached.digest == publisher.digest
            with publisher.deployed() as shown:
                assert state_bits(served) == state_bits(shown)
    assert pointers(served) == places
    assert [t.stride() for t in served.state_dict().values()] == strides


def test_an_update_writes_only_what_it_touched() -> None:
    writer, served = Writer(fresh_log()).begin(), Small()
    attached = attach(served, Replica(writer.log), follow=False)
    told: list[Applied] = []
    attached.replica.on_update(told.append)
    mark = 1234.5
    with torch.no_grad():
        served.w.fill_(mark)
        served.b.fill_(mark)
    writer.append()
    attached.replica.sync()
    flat = torch.cat([served.w.flatten(), served.b]).detach().numpy()
    assert np.flatnonzero(flat != mark).tolist() == [0, 3]
    assert told[-1].touched is not None
    assert told[-1].touched[0][1].tolist() == [0, 3]
    assert np.array_equal(flat[[0, 3]], writer.state.arrays[0][[0, 3]])


def test_a_snapshot_and_a_rollback_are_followed() -> None:
    store = fresh_store()
    writer = Writer(UpdateLog(store, "memory:test")).begin().append(2)
    faulty = FaultyStore(store)
    served = Small()
    attached = attach(served, Replica(UpdateLog(faulty, "memory:test")), follow=False)
    replica, places = attached.replica, pointers(served)
    faulty.instead[update_name(3)] = b"damaged"
    writer.append(2).log.write_snapshot(writer.snapshot())
    assert replica.sync() == 4
    assert (attached.version, state_bits(served)) == (4, weights(replica))
    old = state_bits(served)
    writer.append(3)
    assert replica.sync() == 7
    assert state_bits(served) == weights(replica) != old
    replica.rollback(4)
    assert (attached.version, state_bits(served)) == (4, old)
    replica.resume()
    assert replica.sync() == 7
    assert equal_states(replica.state, writer.state)
    assert state_bits(served) == weights(replica)
    assert pointers(served) == places


def test_another_model_is_refused_before_anything_is_written(url: str) -> None:
    model = linear()
    Publisher(model, sgd(model), url).detach()
    for other in (linear(5), linear().to("meta"), linear().half(), nn.Sequential(nn.Flatten(), nn.Linear(48, 4))):
        before = {name: t.clone() for name, t in other.state_dict().items()}
        with pytest.raises(SchemaMismatch, match=r"\.weight"):
            attach(other, url)
        for name, tensor in other.state_dict().items():
            assert tensor.is_meta or torch.equal(tensor, before[name])
    with pytest.raises(LogNotFound):
        attach(linear(), "memory:nothing-there")


def test_a_module_may_be_attached_before_its_log_begins(tmp_path: Path) -> None:
    log, served, other = f"file:{tmp_path / 'updates'}", linear(), linear(5)
    own = state_bits(served)
    attached, mistaken = (attach(m, log, follow=False, must_exist=False) for m in (served, other))
    for _ in range(2):
        with pytest.raises(NotSynced, match="no version yet"), attached.pin():
            pass
        with pytest.raises(LogNotFound):
            attached.replica.sync()
    assert state_bits(served) == own
    model = linear()
    publisher, before = Publisher(model, sgd(model), log), state_bits(other)
    for each in (attached, mistaken):
        assert each.replica.sync() == 0
    assert (attached.version, attached.digest) == (0, publisher.digest)
    assert state_bits(served) == state_bits(model) != own
    with pytest.raises(SchemaMismatch, match=r"\.weight"), mistaken.pin():
        pass
    assert state_bits(other) == before
    with pytest.raises(SchemaMismatch, match=r"\.weight"):
        attach(other, log, must_exist=False)


def test_staleness_is_the_replicas() -> None:
    writer, clock = Writer(fresh_log()).begin(), FakeClock(NEWEST_US / 1e6 + 5)
    with attach(Small(), Replica(writer.log, clock=clock), follow=False) as attached:
        assert attached.staleness_s() == 5.0


def test_after_close_the_module_keeps_its_weights() -> None:
    writer, served = Writer(fresh_log()).begin(), Small()
    replica = Replica(writer.log)
    with attach(served, replica, follow=False) as attached:
        kept = state_bits(served)
    attached.close()
    writer.append()
    assert replica.sync() == 1
    assert state_bits(served) == kept != weights(replica)


def test_a_replica_of_its_own_is_closed_with_it_and_a_given_one_is_not() -> None:
    writer = Writer(fresh_log()).begin()
    given = Replica(writer.log)
    for source, own in ((writer.log, True), (given, False)):
        attached = attach(Small(), source)
        follower = attached.replica._follower
        attached.close()
        assert follower is not None
        assert follower._thread.is_alive() is not own
    given.close()


def test_a_tensor_that_cannot_be_written_is_told_by_pin_and_healed_by_the_next_update() -> None:
    class Stubborn(Attached):
        broken = False

        def _write(self, number: int, positions: np.ndarray) -> None:
            if self.broken:
                raise OSError("no")
            super()._write(number, positions)

    writer, served = Writer(fresh_log()).begin(), Small()
    replica = Replica(writer.log)
    replica.sync()
    attached = Stubborn(served, replica, owned=False)
    attached.broken = True
    writer.append()
    replica.sync()
    with pytest.raises(OSError, match="no"), attached.pin():
        pass
    writer.append()
    replica.sync()
    assert (attached.version, state_bits(served)) == (2, weights(replica))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, as it loads its compiler
@pytest.mark.parametrize("first", ["compile", "attach"])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_compiled_module_follows_without_compiling_anew(first: str, backend: str, url: str) -> None:
    if backend == "inductor" and not _has_compiler():
        pytest.skip("no C++ compiler here")
    model = linear()
    optimizer = sgd(model, lr=1.0)
    publisher, served = Publisher(model, optimizer, url, density=0.5), linear()
    x = next(batches())[0]
    torch._dynamo.reset()
    compiled = torch.compile(served, backend=backend)
    if first == "compile":
        with torch.no_grad():
            compiled(x)
    attached = attach(compiled if first == "compile" else served, url, follow=False)
    with torch.no_grad():
        before = compiled(x).clone()
    for _ in train(model, optimizer, 3):
        publisher.publish()
        attached.replica.sync()
        with torch.compiler.set_stance("fail_on_recompile"), torch.no_grad(), publisher.deployed() as shown:
            found = compiled(x)
            assert torch.allclose(found, shown(x), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found, before, rtol=1e-4, atol=1e-4)
        before = found.clone()


def _has_compiler() -> bool:
    from torch._inductor import cpp_builder, exc

    try:
        return bool(cpp_builder.get_cpp_compiler())
    except exc.InvalidCxxCompiler:
        return False


def test_users_of_inference_mode_and_of_gradients_are_left_alone() -> None:
    writer = Writer(fresh_log()).begin()
    with torch.inference_mode():
        served = Small()
    plain = Small()
    replica = Replica(writer.log)
    attach(served, replica, follow=False)
    attached = attach(plain, replica, follow=False)
    x = torch.arange(4.0)
    with torch.inference_mode(), attached.pin():
        before = served(x)
    versions = [p._version for p in plain.parameters()]
    writer.append()
    replica.sync()
    assert [p._version for p in plain.parameters()] == versions
    assert all(p.grad is None and p.is_leaf for p in plain.parameters())
    with torch.inference_mode():
        assert not torch.equal(served(x), before)
        assert torch.equal(served(x), plain(x))
    with attached.pin():
        plain(x).sum().backward()
    assert plain.w.grad is not None


class Level(nn.Module):
    """All weights are the version: the smallest and the largest tell any mix, and any lie."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.zeros(4, 2, 2, 2).to(memory_format=torch.channels_last))
        self.high = nn.Parameter(torch.zeros(20_000))

    def forward(self) -> torch.Tensor:
        return torch.stack([self.high.min(), self.high.max(), self.low.min(), self.low.max()])


def test_no_forward_pass_sees_a_mix(url: str) -> None:
    model, served = Level(), Level()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    publisher = Publisher(model, optimizer, url, density=1.0)
    attached, stop = attach(served, url), threading.Event()
    seen: list[set[int]] = [set() for _ in range(READERS)]
    torn: list[object] = []

    def keep_reading(versions: set[int]) -> None:
        while not stop.is_set():
            with attached.pin() as version, torch.inference_mode():
                found = served().tolist()
            versions.add(version)
            if found != [-version] * 4:
                torn.append((version, found))

    threads = [threading.Thread(target=keep_reading, args=(versions,)) for versions in seen]
    for thread in threads:
        thread.start()
    try:
        for _ in range(UPDATES):
            optimizer.zero_grad()
            (model.low.sum() + model.high.sum()).backward()
            optimizer.step()
            publisher.publish()
        assert attached.replica.sync() == UPDATES
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        attached.close()
    assert torn == []
    assert len(set.union(*seen)) > 10
    assert state_bits(served) == state_bits(model)


def test_everything_stays_in_evaluation_or_training_mode_as_it_was(url: str) -> None:
    model = Everything()
    Publisher(model, sgd(model), url).detach()
    for mode in (True, False):
        served = Everything().train(mode)
        attach(served, url, follow=False)
        assert served.training is mode


def test_it_is_a_public_name() -> None:
    assert evergrad.attach is attach
