"""Each update names the examples that it learned from, whenever it is told and however late it goes out."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from evergrad.errors import ConfigError, LogUnavailable
from evergrad.pytorch import pending
from evergrad.pytorch.publisher import Publisher
from evergrad.testing import FakeClock
from tests.pytorch.models import batch_norm, idle, linear, sgd, train
from tests.pytorch.stores import faulty_log, fold_name, update_name


def told(publisher: Publisher) -> list[range | None]:
    """What each version's update says, from the first on."""
    found = []
    for version in range(1, publisher.version + 1):
        update = publisher.log.read_header(version - 1, version)
        assert update is not None
        found.append(update.examples)
    return found


def linear_and(publisher_log: Any, **settings: Any) -> tuple[nn.Module, Any, Publisher]:
    model = linear()
    optimizer = sgd(model)
    return model, optimizer, Publisher(model, optimizer, publisher_log, **{"density": 0.05, **settings})


@pytest.mark.parametrize("background", [False, True])
def test_each_update_names_its_examples_and_is_silent_where_nobody_says(background: bool, url: str) -> None:
    model, optimizer, publisher = linear_and(url, background=background)
    for step in train(model, optimizer, 4):
        publisher.publish(examples=None if step == 1 else (8 * step, 8 * step + 8))
    publisher.flush()
    assert told(publisher) == [range(8), None, range(16, 24), range(24, 32)]


def test_a_fold_names_all_that_its_updates_do(url: str) -> None:
    model, optimizer, publisher = linear_and(url, density=0.005)
    for step in train(model, optimizer, 16):
        publisher.publish(examples=(8 * step, 8 * step + 8))
    assert publisher.log.store.read(fold_name(0, 16)) is not None
    fold = publisher.log.read_header(0, 16)
    assert fold is not None
    assert fold.examples == range(128)


def test_an_update_that_is_held_back_leaves_its_examples_to_the_next(url: str) -> None:
    model, optimizer, publisher = linear_and(url)
    for step in train(model, optimizer, 5):
        published = publisher.publish(examples=(8 * step, 8 * step + 8), hold=step < 2)
        assert (published is None) == (step < 2)
    assert told(publisher) == [range(24), range(24, 32), range(32, 40)]


def test_where_nothing_moved_the_examples_wait_for_what_does(url: str) -> None:
    model, optimizer, publisher = linear_and(url, density=1.0)
    for step in idle(optimizer, 2):
        assert publisher.publish(examples=(step, step + 1)) is None
    for _ in train(model, optimizer, 1):
        publisher.publish(examples=(2, 3))
    assert told(publisher) == [range(3)]


def test_a_spent_budget_leaves_its_examples_to_the_next_update(url: str) -> None:
    clock = FakeClock()
    model, optimizer, publisher = linear_and(url, density=None, budget="1 B/s", clock=clock)
    clock.advance(600.0)
    for step in train(model, optimizer, 6):
        publisher.publish(examples=(step, step + 1))
        if step == 4:
            clock.advance(6000.0)
    found = told(publisher)
    assert len(found) < 6
    assert [examples.start for examples in found[1:] if examples] == [e.stop for e in found[:-1] if e]
    assert found[-1] is not None
    assert (found[0], found[-1].stop) == (range(1), 6)


def test_what_waited_for_the_log_names_all_its_examples(url: str) -> None:
    store, log = faulty_log(url)
    model, optimizer, publisher = linear_and(log)
    store.fail_create = {update_name(2)}
    for step in train(model, optimizer, 6):
        if 1 <= step < 4:
            with pytest.raises(LogUnavailable):
                publisher.publish(examples=(8 * step, 8 * step + 8))
        else:
            store.fail_create = set() if step == 4 else store.fail_create
            publisher.publish(examples=(8 * step, 8 * step + 8))
    assert told(publisher) == [range(8), range(8, 16), range(16, 40), range(40, 48)]


def test_an_update_that_only_a_snapshot_can_tell_names_its_examples_too(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "_LEAST_ELEMENTS", 8)
    model = batch_norm()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, density=0.5)
    for step in train(model, optimizer, 20):
        publisher.publish(examples=(step, step + 1), hold=step < 19)
    update = publisher.log.read_header(0, 1)
    assert update is not None
    assert (update.digest_before, publisher.log.snapshots()) == (update.digest_after, [0, 1])
    assert update.examples == range(20)


def test_examples_may_be_told_before_the_step_that_publishes_by_itself(url: str) -> None:
    model, optimizer, publisher = linear_and(url, every_steps=1)
    publisher.publish(examples=(0, 8), hold=True)
    for step in train(model, optimizer, 3):
        publisher.publish(examples=(8 * step + 8, 8 * step + 16), hold=True)
    assert told(publisher) == [range(8), range(8, 16), range(16, 24)]


@pytest.mark.parametrize("examples", [(-1, 3), (5, 4), (0, 1 << 63)])
def test_a_range_that_is_none_is_refused_and_nothing_is_published(examples: tuple[int, int], url: str) -> None:
    model, optimizer, publisher = linear_and(url)
    for _ in train(model, optimizer, 1):
        with pytest.raises(ConfigError, match=f"examples: .* not \\({examples[0]}, {examples[1]}\\)"):
            publisher.publish(examples=examples)
    assert publisher.version == 0
    publisher.publish(examples=(5, 5))
    assert told(publisher) == [None]
