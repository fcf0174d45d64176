"""Other writers, damage and restarts: who may go on from a log, and that every replica follows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import evergrad
from evergrad.errors import CorruptRecord, LogUnavailable, WriterConflict
from evergrad.log.layout import UpdateLog
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.settings import Forward
from evergrad.testing import FakeClock, FaultyStore
from tests.pytorch.models import FORWARDS, assert_equal, batch_norm, deployed_bits, linear, sgd, state_bits, train
from tests.pytorch.stores import faulty_log, snapshot_name, update_name


@pytest.mark.parametrize("forward", FORWARDS)
def test_of_two_publishers_on_one_log_the_second_to_write_is_told(forward: Forward, any_url: str) -> None:
    loops = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = linear()
        optimizer = sgd(model)
        loops.append((model, optimizer, Publisher(model, optimizer, any_url, density=0.05, forward=forward)))
    (model, optimizer, loser), (other, other_optimizer, winner) = loops
    assert winner.version == 1, "its weights differ from those that began the log"
    replica = evergrad.Replica(any_url)
    for _ in train(other, other_optimizer, 2):
        winner.publish()
    for _ in train(model, optimizer, 3):
        with pytest.raises(WriterConflict) as caught:
            loser.publish()
        assert (caught.value.version, caught.value.url) == (1, any_url)
        assert caught.value.writer == f"run {winner.log.read(1)[0].run:016x}"
    assert loser.version == 0
    assert_equal(winner, replica)
    for _ in train(other, other_optimizer, 2):
        winner.publish()
        assert_equal(winner, replica)

    winner.close()
    loser.detach()
    with Publisher(model, optimizer, any_url, density=0.05, forward=forward) as again:
        assert again.version == winner.version + 1
        assert_equal(again, replica)


def test_of_two_publishers_that_begin_one_log_the_second_is_told(url: str) -> None:
    store, log = faulty_log(url)
    model, rival = linear(), linear()

    class Late(FaultyStore):
        """Sees no snapshot yet, for the other began in between."""

        def read(self, name: str) -> bytes | None:
            return None if name == "latest.json" else super().read(name)

        def names(self, prefix: str) -> list[str]:
            return []

    first = Publisher(model, sgd(model), log)
    optimizer = sgd(rival)
    with pytest.raises(WriterConflict) as caught:
        Publisher(rival, optimizer, UpdateLog(Late(store.inner), url))
    assert caught.value.version == 0
    assert not optimizer._optimizer_step_pre_hooks
    assert_equal(first, evergrad.Replica(url))


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "stranger"])
def test_a_damaged_head_is_healed_by_the_publisher_that_reopens(damage: str, forward: Forward, tmp_path: Path) -> None:
    url = f"file:{tmp_path}"
    model = batch_norm()
    optimizer = sgd(model)
    publisher, ahead, stuck = Publisher(model, optimizer, url, density=0.05, forward=forward), *_replicas(url, 2)
    for step in train(model, optimizer, 5):
        publisher.publish()
        ahead.sync()
        if step < 3:
            stuck.sync()
    publisher.close()
    head = tmp_path / update_name(5)
    whole = head.read_bytes()
    head.write_bytes(
        {
            "truncated": whole[:-1],
            "empty": b"",
            "flipped": whole[:60] + bytes([whole[60] ^ 1]) + whole[61:],
            "stranger": (tmp_path / update_name(4)).read_bytes(),
        }[damage]
    )
    (fresh,) = _replicas(url, 1)
    for replica in (stuck, fresh):
        with pytest.raises(CorruptRecord):
            replica.sync()
        assert replica.version == 4, "the last good version"
    again = Publisher(model, optimizer, url, density=0.05, forward=forward)
    assert again.version == 6
    newest = evergrad.Replica(url)
    for replica in (stuck, fresh, ahead, newest):
        assert_equal(again, replica)
        assert replica.stats().error is None
    assert newest.stats().updates == 0, "a new replica starts from the new snapshot"
    with again.master():
        master = state_bits(model)
    assert deployed_bits(again) == master, "nothing waits after a new beginning"
    for _ in train(model, optimizer, 3):
        again.publish()
        for replica in (stuck, fresh, ahead):
            assert_equal(again, replica)


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_lost_update_is_healed_by_the_publisher_that_reopens(forward: Forward, tmp_path: Path) -> None:
    url, clock = f"file:{tmp_path}", FakeClock()
    model = batch_norm()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, density=0.05, forward=forward, clock=clock)
    ahead, stuck = _replicas(url, 2)
    for step in train(model, optimizer, 5):
        publisher.publish()
        ahead.sync()
        if step < 2:
            stuck.sync()
    publisher.close()
    (tmp_path / update_name(4)).unlink()
    assert stuck.sync() == 3
    clock.advance(60)
    again = Publisher(model, optimizer, url, density=0.05, forward=forward, clock=clock)
    assert again.version == 6
    late = evergrad.Replica(url, clock=clock)
    for replica in (stuck, ahead, late):
        assert_equal(again, replica)
    assert late.staleness_s() == 60
    for _ in train(model, optimizer, 2):
        again.publish()
        for replica in (stuck, ahead, late):
            assert_equal(again, replica)


def test_a_crash_between_the_new_beginning_and_its_snapshot_is_healed_by_the_next(url: str) -> None:
    store, log = faulty_log(url)
    model = linear()
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, log, density=0.05), evergrad.Replica(log)
    for _ in train(model, optimizer, 3):
        publisher.publish()
    publisher.close()
    store.instead = {update_name(2): b"EGup"}
    store.fail_create = {snapshot_name(4)}
    with pytest.raises(LogUnavailable):
        Publisher(model, optimizer, log, density=0.05)
    with pytest.raises(CorruptRecord):
        replica.sync()
    assert replica.version == 1
    store.fail_create = set()
    again = Publisher(model, optimizer, log, density=0.05)
    assert again.version == 5
    assert_equal(again, replica)
    for _ in train(model, optimizer, 2):
        again.publish()
        assert_equal(again, replica)


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_restart_with_the_same_weights_publishes_nothing(forward: Forward, any_url: str) -> None:
    model: nn.Module = batch_norm()
    optimizer = sgd(model)
    replica = None
    with Publisher(model, optimizer, any_url, density=0.05, forward=forward) as publisher:
        replica = evergrad.Replica(any_url)
        for _ in train(model, optimizer, 3):
            publisher.publish()
        assert_equal(publisher, replica)
        with publisher.deployed() as shown:
            deployed = {name: t.clone() for name, t in shown.state_dict().items()}
    version = publisher.version
    restarted = batch_norm()
    restarted.load_state_dict(deployed)
    optimizer = sgd(restarted)
    again = Publisher(restarted, optimizer, any_url, density=0.05, forward=forward)
    assert again.version == version
    assert again.stats().updates == again.stats().snapshot_bytes == 0
    for _ in train(restarted, optimizer, 3):
        again.publish()
        assert_equal(again, replica)
    assert replica.stats().snapshots == 1, "it was never restarted"


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_restart_with_other_weights_publishes_them_at_once(forward: Forward, any_url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model)
    replica = evergrad.Replica(any_url)
    with Publisher(model, optimizer, any_url, density=0.05, forward=forward) as publisher:
        for _ in train(model, optimizer, 3):
            publisher.publish()
        assert_equal(publisher, replica)
    torch.manual_seed(99)
    other = batch_norm()
    other.train()(torch.randn(4, 3, 4, 4))
    expected = state_bits(other)
    optimizer = sgd(other)
    again = Publisher(other, optimizer, any_url, density=0.05, forward=forward)
    assert again.version == publisher.version + 1
    assert again.stats().updates == 1
    assert_equal(again, replica)
    assert deployed_bits(again) == expected
    for _ in train(other, optimizer, 2):
        again.publish()
        assert_equal(again, replica)
    assert replica.stats().snapshots == 1, "it was never restarted"


def _replicas(url: str, count: int) -> list[evergrad.Replica]:
    return [evergrad.Replica(url) for _ in range(count)]
