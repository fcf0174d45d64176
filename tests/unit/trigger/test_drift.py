"""When the stream has changed, as river's detectors see it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evergrad.errors import ConfigError
from evergrad.trigger import News, OnDrift

pytest.importorskip("river")
PAGE_HINKLEY = {"detector": "page-hinkley", "options": {"threshold": 5.0}}


def losses(seed: int, *levels: float, each: int = 600) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([np.abs(rng.normal(level, 0.1, each)) for level in levels])


def drifts(trigger: OnDrift, values: np.ndarray) -> list[int]:
    found = []
    for i, loss in enumerate(values.tolist()):
        if trigger.inform(News(examples=8, now_s=float(i), loss=loss)):
            found.append(i)
            trigger.taken(float(i))
    return found


@pytest.mark.parametrize("options", [{}, PAGE_HINKLEY], ids=["adwin", "page-hinkley"])
def test_change_of_the_loss_is_found_soon_and_nothing_else_is(options: dict[str, object]) -> None:
    assert drifts(OnDrift(**options), losses(1, 0.5)) == []
    for levels in ((0.5, 1.5), (1.5, 0.5)):
        found = drifts(OnDrift(**options), losses(2, *levels))
        assert found
        assert 600 < found[0] < 700
    assert len(drifts(OnDrift(**options), losses(3, 0.5, 1.5, 0.5, 2.0))) >= 3


def test_options_are_rivers() -> None:
    up = OnDrift(detector="page-hinkley", options={"threshold": 5.0, "mode": "up"})
    assert drifts(up, losses(2, 1.5, 0.5)) == []
    assert drifts(up, losses(2, 0.5, 1.5))[0] > 600


def test_drift_asks_for_so_many_steps_and_others_count_too() -> None:
    trigger, values = OnDrift(steps=5), losses(4, 0.5, 1.5)
    found = drifts(trigger, values)
    assert len(found) == 5
    assert found == list(range(found[0], found[0] + 5))
    trigger = OnDrift(steps=2)
    due = [trigger.inform(News(examples=8, now_s=0.0, loss=loss)) for loss in values.tolist()]
    assert due == [False] * found[0] + [True] * (1200 - found[0])
    trigger.taken(0.0)
    assert trigger.inform(News(examples=8, now_s=0.0))
    trigger.taken(0.0)
    trigger.taken(0.0)
    assert not trigger.inform(News(examples=8, now_s=0.0))


def test_losses_that_are_no_numbers_are_left_out() -> None:
    values = losses(5, 0.5, 1.5)
    holed = np.insert(values, range(0, 1200, 3), [math.nan, math.inf, -math.inf, math.nan] * 100)
    finite = np.cumsum(np.isfinite(holed)) - 1
    assert [int(finite[i]) for i in drifts(OnDrift(), holed)] == drifts(OnDrift(), values)


@pytest.mark.parametrize("options", [{}, PAGE_HINKLEY], ids=["adwin", "page-hinkley"])
def test_what_it_keeps_is_bounded_and_a_saved_state_goes_on_exactly(options: dict[str, object]) -> None:
    values = losses(6, 0.5, 0.52, 0.5, 1.8, 0.5, each=300)
    expected = drifts(OnDrift(memory=128, **options), values)
    assert expected
    for cut in range(0, 1500, 83):
        first, second = OnDrift(memory=128, **options), OnDrift(memory=128, **options)
        before = drifts(first, values[:cut])
        state = first.state_dict()
        assert len(state["losses"]) <= 128
        second.load_state_dict(state)
        assert before + [cut + i for i in drifts(second, values[cut:])] == expected


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"steps": 0}, "steps"), ({"memory": 63}, "memory"), ({"detector": "kswin"}, "detector"),
        ({"options": {"gamma": 1}}, "options"), ({"detector": "page-hinkley", "options": {"mode": "x"}}, "options"),
    ],
)  # fmt: skip
def test_settings_that_nobody_knows_are_refused(settings: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"trigger\.{key}:"):
        OnDrift(**settings)


def test_without_river_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['river'] = None\n"
        "from evergrad import OnDrift, errors\n"
        "try: OnDrift()\n"
        "except errors.MissingDependency as error: print(error.package, error.extra)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "river drift\n"
