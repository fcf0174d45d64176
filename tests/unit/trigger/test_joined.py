"""Several triggers as one."""

from __future__ import annotations

import pytest

from evergrad.errors import ConfigError
from evergrad.trigger import AllOf, AnyOf, EveryN, EverySeconds, News


def news(examples: int, now_s: float) -> News:
    return News(examples=examples, now_s=now_s)


def test_any_of_is_due_with_the_first_and_a_step_restarts_all() -> None:
    trigger = AnyOf(EveryN(4), EverySeconds(10))
    assert [trigger.inform(news(1, now_s)) for now_s in (0.0, 1.0, 2.0)] == [False] * 3
    assert trigger.inform(news(1, 3.0))
    trigger.taken(3.0)
    assert [trigger.inform(news(1, now_s)) for now_s in (10.0, 12.0, 13.0)] == [False, False, True]
    trigger.taken(13.0)
    assert [trigger.inform(news(1, now_s)) for now_s in (14.0, 15.0, 16.0)] == [False, False, False]


def test_all_of_is_due_with_the_last_whichever_that_is() -> None:
    trigger = AllOf(EveryN(3), EverySeconds(10))
    assert [trigger.inform(news(2, now_s)) for now_s in (0.0, 1.0, 9.0, 10.0)] == [False, False, False, True]
    trigger.taken(10.0)
    assert [trigger.inform(news(1, now_s)) for now_s in (30.0, 31.0, 32.0)] == [False, False, True]


def test_they_may_be_joined_again() -> None:
    trigger = AnyOf(AllOf(EveryN(2), EverySeconds(5)), EveryN(4))
    assert [trigger.inform(news(1, now_s)) for now_s in (0.0, 1.0, 2.0, 3.0)] == [False, False, False, True]
    trigger.taken(3.0)
    assert [trigger.inform(news(1, now_s)) for now_s in (4.0, 8.0)] == [False, True]


def test_nothing_to_join_is_refused() -> None:
    for join in (AnyOf, AllOf):
        with pytest.raises(ConfigError, match="at least one trigger"):
            join()


def test_state_of_another_number_of_triggers_is_refused() -> None:
    state = AnyOf(EveryN(2), EveryN(3)).state_dict()
    with pytest.raises(ConfigError, match="joins 1 triggers, and 2 in the saved state"):
        AnyOf(EveryN(2)).load_state_dict(state)
    with pytest.raises(ConfigError, match=r"trigger\.kind"):
        AllOf(EveryN(2), EveryN(3)).load_state_dict(state)
