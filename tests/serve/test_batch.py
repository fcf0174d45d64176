"""Micro-batches: what waits together is computed together, each gets its own rows, and who comes alone never waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from evergrad.errors import ConfigError
from evergrad.serve.batch import Batcher, Batching, Computed
from evergrad.serve.tensors import Array
from tests.serve.support import until


class Model:
    """Doubles its rows, and notes what it was given; the first batch waits until it is told to go on."""

    def __init__(self, change: Callable[[Array], Array] = lambda x: 2 * x) -> None:
        self.batches: list[tuple[int, int | None]] = []
        self.go, self.change = threading.Event(), change

    def __call__(self, x: Array, version: int | None) -> Computed:
        if not self.batches:
            self.batches.append((len(x), version))
            assert self.go.wait(30)
        else:
            self.batches.append((len(x) if x.ndim else 0, version))
        return Computed(self.change(x), 7 if version is None else version, 1, 0.5)


@contextmanager
def batching(model: Model, **settings: float) -> Iterator[tuple[Batcher, list[tuple[int, int]]]]:
    seen: list[tuple[int, int]] = []
    batcher = Batcher(model, Batching(**settings), lambda requests, rows: seen.append((requests, rows)))
    try:
        yield batcher, seen
    finally:
        model.go.set()
        batcher.close()


def row(value: float, rows: int = 1) -> Array:
    return np.full((rows, 2), value, np.float32)


def _held(model: Model, batcher: Batcher) -> None:
    batcher.submit(row(0))
    until(lambda: model.batches)


def test_requests_that_wait_are_computed_at_once_and_each_gets_its_rows() -> None:
    model = Model()
    with batching(model, rows=8) as (batcher, seen):
        _held(model, batcher)
        futures = [batcher.submit(row(n, rows)) for n, rows in ((1, 1), (2, 3), (3, 2))]
        model.go.set()
        for future, (n, rows) in zip(futures, ((1, 1), (2, 3), (3, 2)), strict=True):
            answer = future.result(30)
            assert np.array_equal(answer.outputs, row(2 * n, rows))
            assert (answer.version, answer.digest, answer.staleness_s) == (7, 1, 0.5)
    assert seen == [(1, 1), (3, 6)]


def test_a_batch_has_no_more_rows_than_allowed_and_keeps_the_order() -> None:
    model = Model()
    with batching(model, rows=4) as (batcher, seen):
        _held(model, batcher)
        futures = [batcher.submit(row(n, 2)) for n in range(5)] + [batcher.submit(row(9, 7))]
        model.go.set()
        assert [len(future.result(30).outputs) for future in futures] == [2] * 5 + [7]
    assert seen == [(1, 1), (2, 4), (2, 4), (1, 2), (1, 7)]


@pytest.mark.parametrize(
    "other",
    [np.zeros((1, 3), np.float32), np.zeros((1, 2)), np.float32(1).reshape(()), np.zeros((1, 2, 1), np.float32)],
)
def test_what_is_not_alike_is_computed_apart(other: Array) -> None:
    model = Model()
    with batching(model, rows=8) as (batcher, _):
        _held(model, batcher)
        futures = [batcher.submit(each) for each in (row(1), other, row(2))]
        model.go.set()
        for future, x in zip(futures, (row(1), other, row(2)), strict=True):
            assert np.array_equal(future.result(30).outputs, 2 * x)
    assert len(model.batches) == 3


def test_versions_are_not_mixed() -> None:
    model = Model()
    with batching(model, rows=8) as (batcher, _):
        _held(model, batcher)
        futures = [batcher.submit(row(n), version) for n, version in ((1, None), (2, 3), (3, 3), (4, None))]
        model.go.set()
        assert [future.result(30).version for future in futures] == [7, 3, 3, 7]
    assert sorted(model.batches[1:], key=str) == [(2, 3), (2, None)]


def test_one_request_s_fault_is_not_another_s() -> None:
    def fragile(x: Array) -> Array:
        if (x < 0).any():
            raise ValueError("negative")
        return x

    model = Model(fragile)
    with batching(model, rows=8) as (batcher, _):
        _held(model, batcher)
        good, bad, also_good = (batcher.submit(row(n)) for n in (1, -1, 2))
        model.go.set()
        assert np.array_equal(good.result(30).outputs, row(1))
        assert np.array_equal(also_good.result(30).outputs, row(2))
        with pytest.raises(ValueError, match="negative"):
            bad.result(30)


def test_a_model_without_a_row_for_each_row_is_asked_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(lambda x: x.sum(keepdims=True)[0])
    with batching(model, rows=8) as (batcher, seen):
        _held(model, batcher)
        futures = [batcher.submit(row(n)) for n in (1, 2, 3)]
        model.go.set()
        assert [float(future.result(30).outputs[0]) for future in futures] == [2, 4, 6]
    assert seen == [(1, 1)] * 4
    assert "one by one" in caplog.text


def test_alone_it_never_waits_and_after_company_it_does() -> None:
    model = Model()
    with batching(model, rows=8, delay_s=1.0) as (batcher, seen):
        _held(model, batcher)
        company = [batcher.submit(row(n)) for n in (1, 2)]
        model.go.set()
        for future in company:
            future.result(30)
        first = batcher.submit(row(3))  # the last batch had two: the second is waited for
        second = batcher.submit(row(4))
        first.result(30)
        second.result(30)
        assert seen == [(1, 1), (2, 2), (2, 2)]


def test_what_waits_at_the_end_is_answered() -> None:
    model = Model()
    with batching(model, rows=1) as (batcher, _):
        _held(model, batcher)
        futures = [batcher.submit(row(n)) for n in (1, 2)]
        closing = threading.Thread(target=batcher.close)
        closing.start()
        model.go.set()
        closing.join()
        assert all(future.done() for future in futures)
        with pytest.raises(RuntimeError, match="closed"):
            batcher.submit(row(1))


def test_one_who_gave_up_is_left_out() -> None:
    model = Model()
    with batching(model, rows=8) as (batcher, _):
        _held(model, batcher)
        gone, there = batcher.submit(row(1)), batcher.submit(row(2))
        assert gone.cancel()
        model.go.set()
        assert np.array_equal(there.result(30).outputs, row(4))
    assert model.batches[1:] == [(1, None)]


@pytest.mark.parametrize(("key", "value"), [("rows", 0), ("delay_s", -1), ("delay_s", 2)])
def test_settings_are_checked(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        Batching(**{key: value})
