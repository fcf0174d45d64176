"""Predictions wait for their labels: which join, which never do, and how much is held meanwhile."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from evergrad.errors import ConfigError, JoinMismatch
from evergrad.stream import Batch
from evergrad.stream.late import Id, Join


def predict(join: Join, ids: Sequence[Id], now_s: float, first: float = 0.0) -> None:
    """Inputs [first, first + 0.5], outputs 10 times `first`, and so on by one for each id."""
    numbers = first + np.arange(len(ids))
    join.predicted(ids, np.stack([numbers, numbers + 0.5], axis=1), numbers.astype("f4") * 10, now_s)


def label(join: Join, ids: Sequence[Id], now_s: float) -> list[tuple[float, int]]:
    """What was joined: the first number of each input, and the place of its label in the call."""
    batch = join.labelled(ids, np.arange(len(ids)), now_s)
    if batch is None:
        return []
    assert batch.outputs is not None
    assert (batch.outputs / 10 == batch.x[:, 0]).all()
    return list(zip(batch.x[:, 0].tolist(), batch.y.tolist(), strict=True))


def counts(join: Join) -> dict[str, int]:
    """Those that are not 0."""
    return {name: count for name, count in asdict(join.stats()).items() if count}


# -- joining ----------------------------------------------------------------------------------------------------------


def test_labels_join_what_was_served_in_the_order_in_which_they_come() -> None:
    join = Join(timeout_s=60)
    predict(join, ["a", "b", 3], now_s=0.0)
    batch = join.labelled([3, "a"], np.array([[7], [8]], "i2"), now_s=5.0)
    assert isinstance(batch, Batch)
    assert (batch.x.tolist(), batch.y.tolist(), batch.arrived_s) == ([[2.0, 2.5], [0.0, 0.5]], [[7], [8]], 5.0)
    assert batch.outputs is not None
    assert (batch.outputs.tolist(), batch.outputs.dtype, batch.y.dtype) == ([20.0, 0.0], np.float32, np.int16)
    assert counts(join) == {"predicted": 3, "joined": 2, "waiting": 1}
    assert label(join, ["b"], now_s=6.0) == [(1.0, 0)]


def test_nothing_that_is_given_or_taken_is_shared_with_the_join() -> None:
    join = Join(timeout_s=60)
    x, outputs, y = np.ones((2, 1)), np.ones((2, 1)), np.ones(2)
    join.predicted(["a", "b"], x, outputs, 0.0)
    x[:], outputs[:] = 5, 5
    first = join.labelled(["a"], y[:1], 0.0)
    assert first is not None
    assert first.outputs is not None
    y[:] = first.x[:] = first.outputs[:] = 7
    predict_again = join.labelled(["b"], np.ones(1), 0.0)
    assert predict_again is not None
    assert predict_again.outputs is not None
    assert (predict_again.x.item(), predict_again.outputs.item(), first.y.item()) == (1.0, 1.0, 1.0)


def test_label_of_an_id_that_was_not_predicted_is_counted() -> None:
    join = Join(timeout_s=60)
    assert label(join, ["a"], now_s=0.0) == []
    predict(join, ["a"], now_s=1.0)  # the label came first, and does not come back
    assert label(join, ["b", "a"], now_s=2.0) == [(0.0, 1)]
    assert counts(join) == {"predicted": 1, "joined": 1, "unknown": 2}


def test_second_prediction_of_an_id_changes_nothing() -> None:
    join = Join(timeout_s=60)
    predict(join, ["a", "a"], now_s=0.0)
    predict(join, ["a"], now_s=50.0, first=7.0)
    assert counts(join) == {"predicted": 1, "duplicate_predictions": 2, "waiting": 1}
    assert label(join, ["a"], now_s=60.0) == [(0.0, 0)]
    predict(join, ["a"], now_s=60.0, first=7.0)  # delivered late
    assert label(join, ["a"], now_s=60.0) == []
    assert counts(join) == {"predicted": 1, "joined": 1, "duplicate_predictions": 3, "duplicate_labels": 1}


def test_second_prediction_does_not_make_the_first_wait_longer() -> None:
    join = Join(timeout_s=60)
    predict(join, ["a"], now_s=0.0)
    predict(join, ["a"], now_s=50.0)
    assert label(join, ["a"], now_s=61.0) == []
    assert counts(join) == {"predicted": 1, "expired": 1, "unknown": 1, "duplicate_predictions": 1}


def test_first_of_two_labels_counts() -> None:
    join = Join(timeout_s=60)
    predict(join, ["a"], now_s=0.0)
    assert label(join, ["x", "a", "a"], now_s=1.0) == [(0.0, 1)]
    assert label(join, ["a"], now_s=61.0) == []
    assert counts(join) == {"predicted": 1, "joined": 1, "unknown": 1, "duplicate_labels": 2}


def test_id_is_a_new_one_when_the_time_out_has_passed_since_it_was_joined() -> None:
    join = Join(timeout_s=60)
    predict(join, ["a"], now_s=0.0)
    label(join, ["a"], now_s=1.0)
    predict(join, ["a"], now_s=61.5, first=7.0)
    assert label(join, ["a"], now_s=62.0) == [(7.0, 0)]
    assert counts(join) == {"predicted": 2, "joined": 2}


def test_no_ids_are_no_examples_and_settle_no_shapes() -> None:
    join = Join(timeout_s=60)
    join.predicted([], np.zeros(0), np.zeros((0, 3)), 0.0)
    assert join.labelled([], np.zeros(0), 0.0) is None
    predict(join, ["a"], now_s=0.0)
    join.predicted([], np.zeros(0), np.zeros(0), 100.0)
    assert counts(join) == {"predicted": 1, "expired": 1}


def test_ids_may_be_arrays_and_iterators_and_numbers_of_numpy() -> None:
    join = Join(timeout_s=60)
    predict(join, np.array([5, 6], "u2"), now_s=0.0)  # type: ignore[arg-type]
    join.predicted((name for name in (7, np.int64(8))), np.zeros((2, 2)), np.zeros(2, "f4"), 0.0)
    predict(join, np.array(["a", "bc"]), now_s=0.0)  # type: ignore[arg-type]
    assert len(label(join, [5, 6, 7, 8, "a", "bc"], now_s=0.0)) == 6
    json.dumps(join.state_dict()["joined"])


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("now_s", "joined"), [(60.0, 1), (60.001, 0)])
def test_label_that_comes_just_then_is_in_time(now_s: float, joined: int) -> None:
    join = Join(timeout_s=60)
    predict(join, ["a"], now_s=0.0)
    assert len(label(join, ["a"], now_s)) == joined
    assert join.stats().expired == 1 - joined


def test_each_waits_by_its_own_time() -> None:
    join = Join(timeout_s=60)
    for number in range(5):
        predict(join, [number], now_s=20.0 * number, first=number)
    assert label(join, range(5), now_s=110.0) == [(3.0, 3), (4.0, 4)]
    assert counts(join) == {"predicted": 5, "joined": 2, "expired": 3, "unknown": 3}


def test_nothing_expires_where_the_time_out_is_infinite() -> None:
    join = Join(timeout_s=math.inf)
    predict(join, ["a"], now_s=-1e300)
    predict(join, ["b"], now_s=1e300)
    assert len(label(join, ["a", "b"], now_s=0.0)) == 2


def test_clock_that_is_behind_lets_wait_longer_and_at_most_twice() -> None:
    join = Join(timeout_s=60)
    predict(join, ["a"], now_s=100.0)
    predict(join, ["b"], now_s=41.0)  # by another clock
    assert label(join, ["a"], now_s=100.0) == [(0.0, 0)]
    assert join.stats().waiting == 1
    assert label(join, [], now_s=160.0) == []
    assert join.stats().waiting == 1
    assert label(join, ["b"], now_s=160.5) == []
    assert join.stats().expired == 1


def test_clock_that_was_set_back_goes_on_from_there() -> None:
    join = Join(timeout_s=60)
    predict(join, ["a"], now_s=1000.0)
    predict(join, ["b"], now_s=100.0, first=1.0)  # set back by 15 minutes, and right from now on
    assert label(join, [], now_s=160.0) == []
    assert join.stats().waiting == 2
    predict(join, ["c"], now_s=160.0, first=2.0)
    assert label(join, ["a", "b", "c"], now_s=161.0) == [(2.0, 2)]
    assert join.stats().expired == 2
    batch = join.labelled(["c"], np.zeros(1), now_s=161.0)
    assert batch is None


def test_batch_arrived_when_its_clock_said_so() -> None:
    join = Join(timeout_s=60)
    predict(join, ["a"], now_s=1000.0)
    batch = join.labelled(["a"], np.zeros(1), now_s=3.0)
    assert batch is not None
    assert batch.arrived_s == 3.0


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_the_oldest_makes_room_for_the_newest() -> None:
    join = Join(timeout_s=60, limit=3)
    predict(join, range(5), now_s=0.0)
    assert counts(join) == {"predicted": 5, "dropped": 2, "waiting": 3}
    assert label(join, range(5), now_s=1.0) == [(2.0, 2), (3.0, 3), (4.0, 4)]
    assert join.stats().unknown == 2


def test_joined_ids_are_known_while_fewer_than_the_limit_were_joined_later() -> None:
    join = Join(timeout_s=60, limit=2)
    for number in range(3):
        predict(join, [number], now_s=0.0)
        label(join, [number], now_s=0.0)
    label(join, range(3), now_s=0.0)
    assert counts(join) == {"predicted": 3, "joined": 3, "unknown": 1, "duplicate_labels": 2}


@pytest.mark.parametrize("labels_come", [False, True])
def test_memory_does_not_grow_with_the_stream(labels_come: bool) -> None:
    join = Join(timeout_s=1e9, limit=50)
    rows = np.zeros((10, 1000))

    def take(first: int) -> None:
        for number in range(first, first + 2000, 10):
            join.predicted(range(number, number + 10), rows, rows, float(number))
            if labels_come:
                join.labelled(range(number, number + 10), np.zeros(10), float(number))

    take(0)
    tracemalloc.start()
    take(2000)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 100_000  # rows of 200 predictions alone would be 3.2 MB


# -- state ------------------------------------------------------------------------------------------------------------


def scenario(join: Join, first: int, last: int) -> list[Any]:
    rng = np.random.default_rng(3)
    found: list[Any] = []
    for step in range(last):
        ids, wanted, back = rng.integers(0, 60, 4).tolist(), rng.integers(0, 60, 3).tolist(), rng.integers(0, 5)
        if step >= first:
            predict(join, ids, now_s=3.0 * step - back, first=100.0 * step)
            found.append(label(join, wanted, now_s=3.0 * step))
    return [*found, asdict(join.stats())]


def test_join_goes_on_from_its_state_exactly() -> None:
    one, other = Join(timeout_s=40, limit=20), Join(timeout_s=40, limit=20)
    scenario(one, 0, 50)
    scenario(other, 10, 17)
    state = one.state_dict()
    expected = scenario(one, 50, 100)
    other.load_state_dict(state)
    assert scenario(other, 50, 100) == expected
    stats = one.stats()
    assert min(stats.joined, stats.expired, stats.dropped, stats.unknown) > 0
    assert min(stats.duplicate_labels, stats.duplicate_predictions) > 0
    other.load_state_dict(state)  # was not live
    assert scenario(other, 50, 100) == expected


def test_state_after_loading_is_the_state_and_plain() -> None:
    one, other = Join(timeout_s=40), Join(timeout_s=40)
    for join in (one, other):
        assert join.state_dict() == Join(timeout_s=40).state_dict()
    scenario(one, 0, 30)
    state = one.state_dict()
    other.load_state_dict(state)
    again = other.state_dict()
    for part, rows in state.pop("rows").items():
        found = again["rows"][part]
        assert (found.dtype, found.tolist()) == (rows.dtype, rows.tolist())
    again.pop("rows")
    assert again == state == json.loads(json.dumps(state))


def test_rows_keep_their_shape_in_a_state_that_holds_none() -> None:
    one, other = Join(timeout_s=40), Join(timeout_s=40)
    predict(one, ["a"], 0.0)
    label(one, ["a"], 0.0)
    other.load_state_dict(one.state_dict())
    with pytest.raises(JoinMismatch, match="rows of float64"):
        other.predicted(["b"], np.zeros((1, 3)), np.zeros(1, "f4"), 0.0)


def test_smaller_limit_drops_the_oldest_of_a_state() -> None:
    one, other = Join(timeout_s=60), Join(timeout_s=60, limit=2)
    predict(one, range(5), now_s=0.0)
    label(one, [0], now_s=0.0)
    other.load_state_dict(one.state_dict())
    assert counts(other) == {"predicted": 5, "joined": 1, "dropped": 2, "waiting": 2}
    assert label(other, range(5), now_s=0.0) == [(3.0, 3), (4.0, 4)]


@pytest.mark.parametrize("key", ["ids", "since_s", "joined", "x"])
def test_state_that_is_not_whole_is_refused_and_changes_nothing(key: str) -> None:
    join = Join(timeout_s=60)
    predict(join, ["a", "b"], now_s=0.0)
    label(join, ["b"], now_s=0.0)
    state = join.state_dict()
    if key == "x":
        state["rows"]["x"] = state["rows"]["x"][:0]
    else:
        state[key] = state[key][:-1]
    with pytest.raises(ConfigError) as caught:
        join.load_state_dict(state)
    assert caught.value.key == "join.state"
    assert label(join, ["a", "b"], now_s=0.0) == [(0.0, 0)]


# -- hostile ----------------------------------------------------------------------------------------------------------

ROWS, OUTPUTS = np.zeros((1, 2)), np.zeros(1, "f4")


@pytest.mark.parametrize(
    ("ids", "x", "outputs", "now_s", "part"),
    [
        (["b", "c"], ROWS, OUTPUTS, 1.0, "x"),
        (["b"], ROWS, np.zeros(2, "f4"), 1.0, "outputs"),
        (["b"], np.float64(1), OUTPUTS, 1.0, "x"),
        (["b"], np.zeros((1, 3)), OUTPUTS, 1.0, "x"),
        (["b"], ROWS.astype("f4"), OUTPUTS, 1.0, "x"),
        (["b"], ROWS, np.zeros((1, 1), "f4"), 1.0, "outputs"),
        (["b"], np.array([[None, None]]), OUTPUTS, 1.0, "x"),
        ("b", ROWS, OUTPUTS, 1.0, "ids"),
        (b"b", ROWS, OUTPUTS, 1.0, "ids"),
        (7, ROWS, OUTPUTS, 1.0, "ids"),
        ([["b"]], ROWS, OUTPUTS, 1.0, "ids"),
        ([1.0], ROWS, OUTPUTS, 1.0, "ids"),
        ([math.nan], ROWS, OUTPUTS, 1.0, "ids"),
        ([None], ROWS, OUTPUTS, 1.0, "ids"),
        (np.zeros((1, 1), int), ROWS, OUTPUTS, 1.0, "ids"),
        (np.zeros((), int), ROWS, OUTPUTS, 1.0, "ids"),
        (["b"], ROWS, OUTPUTS, math.nan, "now_s"),
        (["b"], ROWS, OUTPUTS, math.inf, "now_s"),
    ],
)
def test_prediction_that_cannot_be_taken_in_is_named_and_changes_nothing(
    ids: Any, x: Any, outputs: Any, now_s: float, part: str
) -> None:
    join = Join(timeout_s=60)
    predict(join, ["a"], now_s=0.0)
    with pytest.raises(JoinMismatch) as caught:
        join.predicted(ids, x, outputs, now_s)
    assert caught.value.part == part
    assert counts(join) == {"predicted": 1, "waiting": 1}
    assert label(join, ["a"], now_s=60.0) == [(0.0, 0)]


@pytest.mark.parametrize(
    ("ids", "y", "now_s", "part"),
    [
        (["a"], np.zeros(2), 1.0, "y"),
        (["a"], np.zeros(()), 1.0, "y"),
        (["a"], np.array([None]), 1.0, "y"),
        ("a", np.zeros(1), 1.0, "ids"),
        ([{}], np.zeros(1), 1.0, "ids"),
        (["a"], np.zeros(1), -math.inf, "now_s"),
    ],
)
def test_labels_that_cannot_be_taken_in_are_named_and_change_nothing(ids: Any, y: Any, now_s: float, part: str) -> None:
    join = Join(timeout_s=60)
    predict(join, ["a"], now_s=0.0)
    with pytest.raises(JoinMismatch) as caught:
        join.labelled(ids, y, now_s)
    assert caught.value.part == part
    assert counts(join) == {"predicted": 1, "waiting": 1}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"timeout_s": 0.0}, "join.timeout_s"),
        ({"timeout_s": -1.0}, "join.timeout_s"),
        ({"timeout_s": math.nan}, "join.timeout_s"),
        ({"timeout_s": 1.0, "limit": 0}, "join.limit"),
        ({"timeout_s": 1.0, "limit": 2.5}, "join.limit"),
    ],
)
def test_settings_out_of_range_are_refused(settings: Any, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Join(**settings)
    assert caught.value.key == key
