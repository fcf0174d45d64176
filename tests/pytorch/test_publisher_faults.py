"""The store fails at a named point; nothing that was to be sent is lost, and replicas equal the trainer again."""

from __future__ import annotations

import pytest

import evergrad
from evergrad.errors import LogUnavailable
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.settings import Forward
from evergrad.testing import FakeClock
from tests.pytorch.models import FORWARDS, assert_equal, batch_norm, linear, sgd, state_bits, train
from tests.pytorch.stores import faulty_log, snapshot_name, update_name


@pytest.mark.parametrize("forward", FORWARDS)
def test_what_a_full_store_refused_goes_out_with_the_next_publish(forward: Forward, url: str) -> None:
    store, log = faulty_log(url)
    model = batch_norm()
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, log, density=0.02, forward=forward), evergrad.Replica(url)
    store.fail_create = {update_name(3)}
    for step in train(model, optimizer, 8):
        if 2 <= step < 6:
            before = state_bits(model)
            with pytest.raises(LogUnavailable):
                publisher.publish()
            assert state_bits(model) == before, "training goes on from where it was"
            assert publisher.version == 2
            assert replica.sync() == 2
        else:
            if step == 6:
                store.fail_create = set()
            publisher.publish()
            assert_equal(publisher, replica)


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("steps_between", [0, 1, 300])
def test_an_update_that_was_stored_and_reported_as_failed_is_ours(
    steps_between: int, forward: Forward, url: str
) -> None:
    """The answer got lost: a retry at a later time, or after more steps, must not take its own update for another's."""
    store, log = faulty_log(url)
    clock = FakeClock()
    model = batch_norm()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, log, density=0.02, forward=forward, clock=clock)
    replica = evergrad.Replica(url)
    for _ in train(model, optimizer, 2):
        publisher.publish()
    store.fail_after_create = {update_name(3)}
    for _ in train(model, optimizer, 1):
        with pytest.raises(LogUnavailable):
            publisher.publish()
    assert publisher.version == 2
    assert replica.sync() == 3, "it is in the log"
    for _ in train(model, optimizer, steps_between):
        pass
    clock.advance(1.0)
    published = publisher.publish()
    assert published is not None
    assert published.version == publisher.version == (3 if steps_between == 0 else 4)
    assert_equal(publisher, replica)
    stats = publisher.stats()
    assert (stats.updates, stats.update_bytes) == (publisher.version, replica.stats().update_bytes)
    for _ in train(model, optimizer, 2):
        publisher.publish()
        assert_equal(publisher, replica)


def test_a_snapshot_never_holds_a_state_between_two_versions(url: str) -> None:
    store, log = faulty_log(url)
    model = batch_norm()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, log, density=0.02, snapshot_every=3)
    store.fail_after_create = {update_name(3)}
    for step in train(model, optimizer, 8):
        if step == 2:
            with pytest.raises(LogUnavailable):
                publisher.publish()
        else:
            publisher.publish()
        late = evergrad.Replica(url)
        late.sync()
        if step != 2:
            assert_equal(publisher, late)
    assert publisher.log.snapshots() == [0, 4, 6]


def test_a_snapshot_that_failed_is_written_with_the_next_version(url: str) -> None:
    store, log = faulty_log(url)
    model = batch_norm()
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, log, density=0.02, snapshot_every=3), evergrad.Replica(url)
    store.fail_create = {snapshot_name(3)}
    for step in train(model, optimizer, 7):
        if step == 2:
            with pytest.raises(LogUnavailable):
                publisher.publish()
        else:
            publisher.publish()
        assert_equal(publisher, replica)
    assert publisher.log.snapshots() == [0, 4, 6]


@pytest.mark.parametrize("name", ["schema", "evergrad.json", snapshot_name(0)])
@pytest.mark.parametrize("stored", [False, True])
def test_a_log_that_could_not_be_begun_is_begun_by_the_next_publisher(name: str, stored: bool, url: str) -> None:
    store, log = faulty_log(url)
    model = linear()
    if name == "schema":
        name = f"schema/{evergrad.pytorch.bridge.schema_of(model).fingerprint}.json"
    (store.fail_after_create if stored else store.fail_create).add(name)
    optimizer = sgd(model)
    before = state_bits(model)
    with pytest.raises(LogUnavailable):
        Publisher(model, optimizer, log)
    assert state_bits(model) == before
    assert not optimizer._optimizer_step_pre_hooks
    store.fail_create = set()
    with Publisher(model, optimizer, log) as publisher:
        assert_equal(publisher, evergrad.Replica(url))


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_publisher_whose_first_update_failed_leaves_the_loop_free(forward: Forward, url: str) -> None:
    store, log = faulty_log(url)
    model = linear()
    optimizer = sgd(model)
    Publisher(model, optimizer, log, forward=forward).close()
    for _ in train(model, optimizer, 1):
        pass
    before = {name: t.data_ptr() for name, t in model.state_dict().items()}
    store.fail_create = {update_name(1)}
    with pytest.raises(LogUnavailable):
        Publisher(model, optimizer, log, forward=forward)
    assert {name: t.data_ptr() for name, t in model.state_dict().items()} == before
    store.fail_create = set()
    with Publisher(model, optimizer, log, forward=forward) as publisher:
        assert publisher.version == 1
        assert_equal(publisher, evergrad.Replica(url))
