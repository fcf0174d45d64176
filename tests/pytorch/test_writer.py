"""Publishing beside training: whatever the log does, training goes on, memory stays bounded, and nothing is lost."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import evergrad
from evergrad.errors import LogUnavailable, WriterConflict
from evergrad.log.layout import UpdateLog
from evergrad.pytorch import pending, writer
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.settings import Forward
from evergrad.pytorch.writer import MOST_WAITING, Published
from evergrad.testing import FaultyStore
from tests.pytorch.models import FORWARDS, MODELS, assert_equal, batch_norm, linear, sgd, state_bits, train
from tests.pytorch.stores import faulty_log, fold_name, update_name


class All(set[str]):
    """Every name there is."""

    def __contains__(self, name: object) -> bool:
        return True


class GatedStore(FaultyStore):
    """Creates nothing while the gate is shut: a store that is slow."""

    gate: threading.Event

    def create(self, name: str, data: bytes) -> bool:
        self.gate.wait()
        return super().create(name, data)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(writer, "_LAST_RETRY_S", 0.002)


def beside(model: nn.Module, log: str | UpdateLog, **settings: Any) -> tuple[Publisher, torch.optim.Optimizer]:
    optimizer = sgd(model)
    return Publisher(model, optimizer, log, background=True, **{"density": 0.05, **settings}), optimizer


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("forward", FORWARDS)
def test_every_update_arrives_in_order(model_name: str, forward: Forward, any_url: str) -> None:
    seen: list[Published] = []
    model = MODELS[model_name]()
    publisher, optimizer = beside(model, any_url, forward=forward, snapshot_every=7, on_published=seen.append)
    replica = evergrad.Replica(any_url)
    for _ in train(model, optimizer, 20):
        assert publisher.publish() is None or seen
    publisher.flush()
    assert_equal(publisher, replica)
    assert [one.version for one in seen] == list(range(1, publisher.version + 1))
    assert publisher.stats().waiting == 0
    publisher.close()
    assert 7 in publisher.log.snapshots()


def test_the_same_weights_as_without_a_thread(url: str) -> None:
    digests = []
    for background in (False, True):
        torch.manual_seed(4)
        model = batch_norm()
        optimizer = sgd(model)
        with Publisher(model, optimizer, f"{url}-{background}", density=0.05, background=background) as publisher:
            for _ in train(model, optimizer, 30):
                publisher.publish()
        digests.append((publisher.version, publisher.digest))
    assert digests[0] == digests[1]


def test_a_slow_log_holds_nothing_up_and_what_waits_is_folded(url: str) -> None:
    inner, _ = faulty_log(url)
    store = GatedStore(inner.inner)
    store.gate = threading.Event()
    store.gate.set()
    model = batch_norm()
    publisher, optimizer = beside(model, UpdateLog(store, url))
    store.gate.clear()
    for _ in train(model, optimizer, 3 * MOST_WAITING):
        publisher.publish()
        assert publisher.stats().waiting <= MOST_WAITING + 1
    store.gate.set()
    publisher.flush()
    assert MOST_WAITING <= publisher.version <= MOST_WAITING + 2
    assert_equal(publisher, evergrad.Replica(url))
    publisher.close()


@pytest.mark.parametrize("stored", [False, True])
def test_a_log_that_is_gone_receives_one_fold_when_it_is_back(stored: bool, url: str) -> None:
    store, log = faulty_log(url)
    model = batch_norm()
    publisher, optimizer = beside(model, log)
    steps = train(model, optimizer, 60)
    next(steps)
    publisher.publish()
    publisher.flush()
    version = publisher.version
    if stored:
        store.fail_after_create = {update_name(version + 1)}
    store.fail_create = set() if stored else All()
    for _ in range(20):
        next(steps)
        publisher.publish()
    if not stored:
        with pytest.raises(LogUnavailable):
            publisher.flush()
        assert "no space" in str(publisher.stats().unavailable)
        assert publisher.version == version
    replica = evergrad.Replica(url)
    store.fail_create = set()
    publisher.flush()
    assert publisher.stats().unavailable is None
    assert_equal(publisher, replica)
    if not stored:
        assert publisher.version <= version + 3  # the one that failed, and folds of all others
    for _ in range(5):
        next(steps)
        publisher.publish()
    publisher.flush()
    assert_equal(publisher, replica)
    publisher.close()


@pytest.mark.parametrize("background", [False, True])
def test_what_would_not_fit_memory_is_left_to_a_snapshot(
    background: bool, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "_LEAST_ELEMENTS", 8)
    store, log = faulty_log(url)
    model = batch_norm()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, log, density=0.05, background=background)
    replica = evergrad.Replica(url)
    assert_equal(publisher, replica)
    store.fail_create = All()
    for _ in train(model, optimizer, 30):
        publish_or_wait(publisher)
    assert publisher.version == 0
    store.fail_create = set()
    for _ in train(model, optimizer, 3):
        publish_or_wait(publisher)
    flush_until_written(publisher)
    assert publisher.log.snapshots()[-1] > 0
    assert_equal(publisher, replica)
    assert_equal(publisher, evergrad.Replica(url))
    publisher.close()


def publish_or_wait(publisher: Publisher) -> None:
    try:
        publisher.publish()
    except LogUnavailable:
        assert publisher.stats().waiting


def flush_until_written(publisher: Publisher) -> None:
    for _ in range(1000):
        publisher.flush()
        if not publisher.stats().waiting:
            return
        threading.Event().wait(0.001)
    raise AssertionError("what waits is never written")


def test_a_rival_is_told_at_the_next_call(url: str) -> None:
    model = linear()
    publisher, optimizer = beside(model, url)
    rival = linear()
    with Publisher(rival, sgd(rival), url, density=0.05) as other:
        for _ in train(rival, other._optimizer, 2):  # type: ignore[arg-type]
            other.publish()
    for _ in train(model, optimizer, 1):
        publisher.publish()
    with pytest.raises(WriterConflict):
        publisher.flush()
    with pytest.raises(WriterConflict):
        publisher.publish()
    before = state_bits(model)
    with pytest.raises(WriterConflict):
        publisher.close()
    assert before.keys() == state_bits(model).keys()
    assert not optimizer._optimizer_step_pre_hooks


def test_closing_a_publisher_whose_log_is_gone_gives_the_loop_back(url: str) -> None:
    store, log = faulty_log(url)
    model = linear()
    publisher, optimizer = beside(model, log)
    store.fail_create = All()
    for _ in train(model, optimizer, 2):
        publisher.publish()
    with pytest.raises(LogUnavailable):
        publisher.close()
    assert not optimizer._optimizer_step_pre_hooks
    store.fail_create = set()
    with Publisher(model, optimizer, log, density=0.05) as again:  # what was not written is in the difference
        assert_equal(again, evergrad.Replica(url))


def test_long_folds_are_made_beside_the_state(url: str) -> None:
    model = linear(width=1000)
    publisher, optimizer = beside(model, url, density=2e-4)
    for _ in train(model, optimizer, 260):
        publisher.publish()
    publisher.flush()
    assert publisher.log.store.read(fold_name(0, 256)) is not None
    replica = evergrad.Replica(url)
    assert_equal(publisher, replica)
    publisher.close()


def test_the_thread_ends_with_the_publisher(url: str) -> None:
    before = set(threading.enumerate())
    publisher, _ = beside(linear(), url)
    own = set(threading.enumerate()) - before
    assert [thread.name for thread in own] == ["evergrad-writer"]
    publisher.close()
    assert not any(thread.is_alive() for thread in own)


@pytest.mark.parametrize("gone", [False, True])
def test_the_thread_ends_with_a_publisher_that_nobody_closed(
    gone: bool, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer.logger, "disabled", True)  # what the tests keep of a log holds errors and their frames
    thread = thread_of_a_dropped_publisher(url, gone)
    tries = 0
    while thread.is_alive() and tries < 20:
        gc.collect()
        thread.join(0.1)
        tries += 1
    assert not thread.is_alive()


LEFT_OPEN = """
import atexit, sys
atexit.register(lambda: sys.argv[2] == "close" and publisher.close())
import evergrad
from torch import nn, optim
model = nn.Linear(40, 30)
optimizer = optim.SGD(model.parameters(), 0.1)
publisher = evergrad.Publisher(model, optimizer, sys.argv[1], background=True)
for step in range(5):
    for parameter in model.parameters():
        parameter.grad = parameter.detach() + 1
    optimizer.step()
    if step < 4:
        publisher.publish()
"""


@pytest.mark.parametrize("how", ["close", "leave"])
def test_a_process_ends_whether_its_publisher_is_closed_at_exit_or_not(how: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LEFT_OPEN, str(tmp_path / "log"), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    version = evergrad.Replica(str(tmp_path / "log")).sync()
    assert version == 5 if how == "close" else 0 <= version <= 5


def thread_of_a_dropped_publisher(url: str, gone: bool) -> threading.Thread:
    before = set(threading.enumerate())
    store, log = faulty_log(url)
    model = linear()
    publisher, optimizer = beside(model, log)
    (thread,) = set(threading.enumerate()) - before
    store.fail_create = All() if gone else set()
    for _ in train(model, optimizer, 3):
        publisher.publish()
    if gone:
        with pytest.raises(LogUnavailable):
            publisher.flush()
    else:
        publisher.flush()
    return thread
