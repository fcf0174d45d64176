"""When a training step is due by how bad the model is."""

from __future__ import annotations

import math

import pytest

from evergrad.errors import ConfigError
from evergrad.trigger import News, OnLoss


def tell(trigger: OnLoss, loss: float, examples: int = 1) -> bool:
    return trigger.inform(News(examples=examples, now_s=0.0, loss=loss))


def test_due_while_the_fading_mean_is_above_the_level() -> None:
    trigger = OnLoss(above=1.0, half_life=1)
    found = []
    for loss in (0.0, 2.0, 2.0, 1.0, 0.5, 0.5, 0.0):
        found.append(tell(trigger, loss))
        trigger.taken(0.0)
    # Means: 0, 2 / 1.5, 3 / 1.75, 2.5 / 1.875, 1.75 / 1.9375, ...
    assert found == [False, True, True, True, False, False, False]


def test_loss_of_many_examples_weighs_as_many() -> None:
    trigger = OnLoss(above=1.0, half_life=1e9)
    assert not tell(trigger, 0.5, examples=30)
    assert not tell(trigger, 2.4, examples=10)
    assert tell(trigger, 2.4, examples=3)


def test_due_until_taken_even_where_the_loss_falls() -> None:
    trigger = OnLoss(above=1.0, half_life=1)
    assert [tell(trigger, 2.0), tell(trigger, 0.0), tell(trigger, 0.0)] == [True, True, True]
    trigger.taken(0.0)
    assert not tell(trigger, 0.0)


def test_what_was_not_scored_changes_nothing_and_an_infinite_loss_is_above_any_level() -> None:
    trigger = OnLoss(above=1.0)
    assert [tell(trigger, math.nan), tell(trigger, -math.inf), tell(trigger, 5.0, examples=0)] == [False] * 3
    assert tell(trigger, math.inf)
    trigger.taken(0.0)
    assert not tell(trigger, 0.5)


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"above": math.nan}, "above"), ({"above": math.inf}, "above"), ({"above": 1.0, "half_life": 0.0}, "half_life")],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"trigger\.{key}:"):
        OnLoss(**settings)
