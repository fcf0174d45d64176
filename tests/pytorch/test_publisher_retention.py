"""Folds, snapshots that fall due, and deletion, by a publisher that fails and restarts."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import evergrad
from evergrad.log import UpdateLog
from evergrad.pytorch.publisher import Publisher
from tests.pytorch.models import assert_equal, linear, sgd, train
from tests.pytorch.stores import faulty_log, fold_name, snapshot_name, update_name


def publisher_of(model: nn.Module, log: str | UpdateLog, **settings: int) -> tuple[torch.optim.Optimizer, Publisher]:
    optimizer = sgd(model)
    return optimizer, Publisher(model, optimizer, log, density=0.002, **settings)


def large() -> nn.Module:
    return linear(64)


def test_a_reader_far_behind_catches_up_by_folds(url: str) -> None:
    model = large()
    optimizer, publisher = publisher_of(model, url, snapshot_every_bytes=1 << 30)
    replica = evergrad.Replica(url)
    replica.sync()
    for _ in train(model, optimizer, 50):
        publisher.publish()
    assert publisher.log.folds() == [(0, 16), (16, 32), (32, 48)]
    assert_equal(publisher, replica)
    assert (replica.stats().updates, replica.stats().snapshots) == (16 + 2 + 2, 1)


@pytest.mark.parametrize("stored", [False, True])
def test_a_fold_that_fails_is_told_and_costs_no_update(
    stored: bool, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, log = faulty_log(url)
    (store.fail_after_create if stored else store.fail_create).add(fold_name(0, 16))
    model = large()
    optimizer, publisher = publisher_of(model, log, snapshot_every_bytes=1 << 30)
    replica = evergrad.Replica(url)
    replica.sync()
    with caplog.at_level(logging.WARNING, "evergrad.pytorch"):
        for _ in train(model, optimizer, 33):
            published = publisher.publish()
            assert published is not None
    assert ["no fold was written at version 16" in record.getMessage() for record in caplog.records] == [True]
    assert publisher.log.folds() == ([(0, 16)] if stored else []) + [(16, 32)]
    assert publisher.version == 33
    assert_equal(publisher, replica)


def test_an_update_that_was_not_sent_is_folded_with_the_state_already_further(url: str) -> None:
    store, log = faulty_log(url)
    model = large()
    optimizer, publisher = publisher_of(model, log, snapshot_every_bytes=1 << 30)
    early = evergrad.Replica(url)
    early.sync()
    for step in train(model, optimizer, 18):
        store.fail_create = {update_name(16)} if step == 15 else set()
        if step == 15:
            with pytest.raises(evergrad.errors.LogUnavailable):
                publisher.publish()
        else:
            publisher.publish()
    assert publisher.version == 18
    assert publisher.log.folds() == [(0, 16)]
    found, size = publisher.log.read_fold(0, 16)
    before = evergrad.Replica(UpdateLog(store, url))
    for version in range(1, 17):
        assert publisher.log.read(version)[0].version == version
    assert size > 0
    assert found.digest_after == publisher.log.read(16)[0].digest_after == publisher.log.read(17)[0].digest_before
    assert_equal(publisher, early)
    assert_equal(publisher, before)


def test_old_versions_are_deleted_after_each_snapshot_and_readers_in_the_window_need_none(url: str) -> None:
    model = large()
    optimizer, publisher = publisher_of(model, url, snapshot_every=5, snapshot_every_bytes=1 << 30, keep_versions=3)
    replica, outside = evergrad.Replica(url), evergrad.Replica(url)
    outside.sync()
    for step in train(model, optimizer, 22):
        publisher.publish()
        if step % 3 == 2:
            assert_equal(publisher, replica)
    assert publisher.log.snapshots() == [20]
    assert publisher.log.updates() == [18, 19, 20, 21, 22]
    assert_equal(publisher, replica)
    assert replica.stats().snapshots == 1
    assert_equal(publisher, outside)
    assert outside.stats().snapshots == 2
    assert_equal(publisher, evergrad.Replica(url))


def test_a_deletion_that_fails_is_told_and_done_after_the_next_snapshot(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, log = faulty_log(url)
    model = large()
    optimizer, publisher = publisher_of(model, log, snapshot_every=2, snapshot_every_bytes=1 << 30, keep_versions=0)
    with caplog.at_level(logging.WARNING, "evergrad.pytorch"):
        for step in train(model, optimizer, 4):
            # Only the first deletion meets the fault: the name is written once, long before.
            store.fail_create = {snapshot_name(0)} if step < 2 else set()
            assert publisher.publish() is not None
            assert publisher.log.snapshots() == ([0, 2] if step in {1, 2} else [0] if step == 0 else [4])
    assert ["not all deleted" in record.getMessage() for record in caplog.records] == [True]
    assert publisher.log.updates() == []
    assert_equal(publisher, evergrad.Replica(url))


def test_a_snapshot_that_was_due_before_a_restart_is_written_after_it(url: str) -> None:
    store, log = faulty_log(url)
    model = large()
    optimizer, publisher = publisher_of(model, log, snapshot_every=3, snapshot_every_bytes=1 << 30)
    store.fail_create = {snapshot_name(3)}
    for step in train(model, optimizer, 3):
        if step == 2:
            with pytest.raises(evergrad.errors.LogUnavailable):
                publisher.publish()
        else:
            publisher.publish()
    publisher.detach()
    store.fail_create = set()
    _, again = publisher_of(model, log, snapshot_every=3, snapshot_every_bytes=1 << 30)
    assert again.log.snapshots() == [0, again.version]
    assert again.version in {3, 4}
    assert_equal(again, evergrad.Replica(url))


def test_bytes_since_the_last_snapshot_are_counted_across_restarts(url: str) -> None:
    model, most, total, snapshots = large(), 1 << 15, 0, [0]
    while total < 2 * most:
        optimizer, publisher = publisher_of(model, url, snapshot_every_bytes=most)
        for _ in train(model, optimizer, 1):
            publisher.publish()
        publisher.close()
        assert publisher.stats().update_bytes < most // 2, "no publisher alone reaches it"
        total += publisher.stats().update_bytes
        snapshots = publisher.log.snapshots()
    assert len(snapshots) > 1


def test_a_log_whose_objects_are_all_gone_but_the_first_goes_on_with_a_new_snapshot(url: str) -> None:
    store, log = faulty_log(url)
    model = large()
    optimizer, publisher = publisher_of(model, log)
    for _ in train(model, optimizer, 3):
        publisher.publish()
    publisher.close()
    for folder in ("updates", "snapshots"):
        for name in store.names(folder):
            store.delete(name)
    _, again = publisher_of(model, log)
    assert again.version >= 1
    assert again.log.snapshots() == [again.version]
    assert_equal(again, evergrad.Replica(url))
