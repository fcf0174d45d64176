"""Several scores of one stream, in three forms each, as a dict, and across a restart."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from evergrad.errors import ConfigError, ScoreMismatch
from evergrad.metrics import (
    AUC,
    BinnedAUC,
    Fading,
    Prequential,
    Running,
    Windowed,
    WindowedAUC,
    absolute_error,
    log_loss,
)


def batches(count: int) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        labels = rng.integers(0, 2, 10)
        found.append((rng.normal(size=10) + labels, labels))
    return found


def both(window: int = 25, half_life: float = 40) -> Prequential:
    return Prequential({"auc": AUC, "log_loss": log_loss}, window=window, half_life=half_life)


def test_values_are_those_of_each_form() -> None:
    found = both()
    losses, areas = (Running(), Windowed(25), Fading(40)), (BinnedAUC(), WindowedAUC(25), BinnedAUC(40))
    for outputs, labels in batches(8):
        found.add(outputs, labels)
        for mean, area in zip(losses, areas, strict=True):
            mean.add(log_loss(outputs, labels))
            area.add(outputs, labels)
    expected: dict[str, float] = {}
    for name, forms in (("auc", areas), ("log_loss", losses)):
        expected |= {f"{name}{end}": form.value for end, form in zip(("", "_windowed", "_fading"), forms, strict=True)}
    assert (found.values(), found.examples) == (expected, 80)
    assert list(found.values()) == list(expected)
    assert json.loads(json.dumps(found.values())) == expected


def test_values_are_nan_before_the_first_example() -> None:
    assert both().examples == 0
    assert all(math.isnan(value) for value in both().values().values())


def test_prequential_goes_on_from_its_state_bit_for_bit() -> None:
    one, other = both(), both()
    first, second = batches(14)[:9], batches(14)[9:]
    for batch in first:
        one.add(*batch)
    other.add(*first[3])
    state = one.state_dict()
    for batch in second:
        one.add(*batch)
    other.load_state_dict(state)
    for batch in second:
        other.add(*batch)
    assert (other.values(), other.examples) == (one.values(), 140)


@pytest.mark.parametrize(
    ("made", "key"),
    [
        (both(window=26), "window"),
        (both(half_life=41), "half_life"),
        (Prequential({"auc": AUC}, window=25, half_life=40), "scores"),
    ],
)
def test_state_of_other_settings_is_refused_and_changes_nothing(made: Prequential, key: str) -> None:
    made.add(*batches(1)[0])
    before = made.values()
    with pytest.raises(ConfigError) as caught:
        made.load_state_dict(both().state_dict())
    assert caught.value.key == key
    assert made.values() == before


def test_batch_that_one_score_refuses_changes_nothing() -> None:
    found = Prequential({"mae": absolute_error, "auc": AUC, "log_loss": log_loss})
    found.add(np.array([0.0, 1.0]), np.array([0, 1]))
    before = found.values()
    for outputs, labels in (
        (np.zeros(2), np.zeros(3)),
        (np.zeros((2, 3)), np.zeros((2, 3))),
        (np.zeros(2), np.array([0, 5])),
    ):
        with pytest.raises(ScoreMismatch):
            found.add(outputs, labels)
        assert found.values() == before


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {"a": absolute_error, "a_windowed": absolute_error},
    ],
)
def test_names_that_would_hide_each_other_are_refused(scores: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Prequential(scores)
    assert caught.value.key == "scores"


def test_settings_out_of_range_are_refused() -> None:
    for settings, key in (({"window": 0}, "window"), ({"half_life": 0.0}, "half_life")):
        with pytest.raises(ConfigError) as caught:
            Prequential({"mae": absolute_error}, **settings)  # type: ignore[arg-type]
        assert caught.value.key == key
