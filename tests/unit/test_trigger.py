"""When a training step is due."""

from __future__ import annotations

import math

import pytest

from evergrad.errors import ConfigError
from evergrad.testing import FakeClock, check_trigger
from evergrad.trigger import EveryN, EverySeconds


@pytest.mark.parametrize(
    ("n", "arrivals", "fired"),
    [
        (1, [1, 1, 1], [True, True, True]),
        (3, [1, 1, 1, 1, 1, 1], [False, False, True, False, False, True]),
        (3, [2, 5, 2, 1], [False, True, False, True]),
        (3, [0, 0, 3, 0], [False, False, True, False]),
    ],
)
def test_every_n_counts_examples_from_the_last_step(n: int, arrivals: list[int], fired: list[bool]) -> None:
    trigger = EveryN(n)
    assert [trigger.inform(count, 0.0) for count in arrivals] == fired


def test_every_seconds_counts_from_the_last_step_and_begins_with_the_first_example() -> None:
    trigger, clock = EverySeconds(10), FakeClock()
    fired = []
    for wait_s in (0, 9.5, 0.5, 9.0, 30.0, 9.0, 1.0):
        clock.advance(wait_s)
        fired.append(trigger.inform(1, clock()))
    assert fired == [False, False, True, False, True, False, True]


def test_clock_that_goes_back_fires_nothing_and_goes_on() -> None:
    trigger = EverySeconds(10)
    assert [trigger.inform(1, now_s) for now_s in (100.0, 50.0, 105.0, 110.0)] == [False, False, False, True]


def test_triggers_keep_the_public_promises_and_the_check_can_fail() -> None:
    check_trigger(lambda: EveryN(7))
    check_trigger(lambda: EverySeconds(33.0))
    with pytest.raises(AssertionError, match="fire again"):
        check_trigger(lambda: EveryN(4000))


@pytest.mark.parametrize("n", [0, -1])
def test_every_n_refuses_less_than_one(n: int) -> None:
    with pytest.raises(ConfigError, match=r"trigger\.n"):
        EveryN(n)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_every_seconds_refuses_no_time(seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"trigger\.seconds"):
        EverySeconds(seconds)


def test_waiting_examples_are_no_part_of_equality() -> None:
    trigger = EveryN(3)
    trigger.inform(2, 0.0)
    assert trigger == EveryN(3)
    assert repr(trigger) == "EveryN(n=3)"
