"""When a training step is due by what has arrived, and by whether there is room."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from evergrad.errors import ConfigError
from evergrad.testing import FakeClock
from evergrad.trigger import EveryN, EverySeconds, News, Trigger, WhenIdle


def news(examples: int = 1, now_s: float = 0.0) -> News:
    return News(examples=examples, now_s=now_s)


def fired(trigger: Trigger, arrivals: Iterable[News]) -> list[bool]:
    """What is due after each arrival, if every step that is due is taken at once."""
    found = []
    for each in arrivals:
        found.append(trigger.inform(each))
        if found[-1]:
            trigger.taken(each.now_s)
    return found


@pytest.mark.parametrize(
    ("n", "arrivals", "expected"),
    [
        (1, [1, 1, 1], [True, True, True]),
        (3, [1, 1, 1, 1, 1, 1], [False, False, True, False, False, True]),
        (3, [2, 5, 2, 1], [False, True, False, True]),
        (3, [0, 0, 3, 0], [False, False, True, False]),
    ],
)
def test_every_n_counts_examples_from_the_last_step(n: int, arrivals: list[int], expected: list[bool]) -> None:
    assert fired(EveryN(n), map(news, arrivals)) == expected


def test_step_that_was_not_due_restarts_the_count_too() -> None:
    trigger = EveryN(3)
    trigger.inform(news(2))
    trigger.taken(0.0)
    assert not trigger.inform(news(2))


def test_every_seconds_counts_from_the_last_step_and_begins_with_the_first_example() -> None:
    trigger, clock, found = EverySeconds(10), FakeClock(), []
    for wait_s in (0, 9.5, 0.5, 9.0, 30.0, 9.0, 1.0):
        clock.advance(wait_s)
        found += fired(trigger, [news(now_s=clock())])
    assert found == [False, False, True, False, True, False, True]


def test_every_seconds_counts_from_when_the_step_was_taken() -> None:
    trigger = EverySeconds(10)
    assert [trigger.inform(news(now_s=now_s)) for now_s in (0.0, 10.0, 15.0)] == [False, True, True]
    trigger.taken(15.0)
    assert [trigger.inform(news(now_s=now_s)) for now_s in (20.0, 25.0)] == [False, True]


def test_clock_that_goes_back_fires_nothing_takes_nothing_back_and_goes_on() -> None:
    trigger = EverySeconds(10)
    assert [trigger.inform(news(now_s=now_s)) for now_s in (100.0, 50.0, 105.0, 110.0, 60.0)] == [False] * 3 + [
        True
    ] * 2


def test_when_idle_waits_for_room_and_for_enough_examples() -> None:
    loads = iter([5.0, 5.0, 0.5, 0.5])
    trigger = WhenIdle(load=lambda: next(loads), below=1.0, n=3)
    arrivals = [news(2), news(2), news(2), news(2), news(2), news(2)]
    assert fired(trigger, arrivals) == [False, False, False, True, False, True]
    assert list(loads) == []  # asked only where enough examples wait


def test_room_that_was_there_stays_until_the_step_is_taken() -> None:
    loads = iter([0.5])
    trigger = WhenIdle(load=lambda: next(loads), below=1.0)
    assert [trigger.inform(news()), trigger.inform(news())] == [True, True]


def test_load_at_the_bound_or_unknown_is_no_room() -> None:
    for load in (1.0, math.nan, math.inf):
        assert not WhenIdle(load=lambda load=load: load, below=1.0).inform(news())  # type: ignore[misc]


def test_when_idle_waits_no_longer_than_at_most_so_many_seconds() -> None:
    trigger = WhenIdle(load=lambda: 9.0, below=1.0, n=100, at_most_s=60)
    arrivals = [news(now_s=now_s) for now_s in (0.0, 59.0, 60.0, 100.0, 120.0)]
    assert fired(trigger, arrivals) == [False, False, True, False, True]
    assert not any(fired(WhenIdle(load=lambda: 9.0, below=1.0), arrivals))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: EveryN(0), "n"),
        (lambda: EveryN(-1), "n"),
        (lambda: EverySeconds(0.0), "seconds"),
        (lambda: EverySeconds(-1.0), "seconds"),
        (lambda: EverySeconds(math.nan), "seconds"),
        (lambda: WhenIdle(load=float, below=math.nan), "below"),
        (lambda: WhenIdle(load=float, below=1.0, n=0), "n"),
        (lambda: WhenIdle(load=float, below=1.0, at_most_s=0.0), "at_most_s"),
    ],
)
def test_settings_out_of_range_are_refused(make, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"trigger\.{key}:"):
        make()


def test_waiting_examples_are_no_part_of_equality() -> None:
    trigger = EveryN(3)
    trigger.inform(news(2))
    assert trigger == EveryN(3)
    assert repr(trigger) == "EveryN(n=3)"
