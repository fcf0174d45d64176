"""The gate holds a sudden loss, lets go when it passes, and gives in to a lasting change."""

from __future__ import annotations

import math

import pytest

from evergrad.errors import ConfigError
from evergrad.gate import Gate

WARM = 65  # batches until the default gate judges


def warm_gate(loss: float = 1.0, **settings: float) -> Gate:
    gate = Gate(**settings)  # type: ignore[arg-type]
    assert all(gate.judge(loss) for _ in range(WARM))
    return gate


def test_steady_and_falling_losses_pass() -> None:
    gate = warm_gate()
    assert all(gate.judge(1.0 / (1 + i / 50)) for i in range(500))
    assert gate.held == 0


def test_anything_passes_before_there_is_a_baseline() -> None:
    gate = Gate()
    assert all(gate.judge(loss) for loss in [1.0, 1e6, math.nan, math.inf] * 16)


def test_spike_is_held_and_let_go_when_the_loss_is_back() -> None:
    gate = warm_gate()
    assert not gate.judge(20.0)
    answers = [gate.judge(1.0) for _ in range(30)]
    assert not answers[0]
    assert answers == sorted(answers), "once let go, it stays open"
    assert answers[-1]
    assert gate.held == 0


def test_a_lasting_fault_is_not_learned_as_normal_while_it_is_held() -> None:
    gate = warm_gate()
    assert not any(gate.judge(20.0) for _ in range(99))
    assert gate.held == 99
    answers = [gate.judge(1.0) for _ in range(40)]
    assert answers[-1]


def test_a_lasting_change_is_accepted_for_good_when_patience_ends() -> None:
    gate = warm_gate(patience=10)
    assert [gate.judge(20.0) for _ in range(200)] == [False] * 10 + [True] * 190


def test_after_a_change_was_accepted_the_next_one_is_held_again() -> None:
    gate = warm_gate(patience=10)
    for _ in range(100):
        gate.judge(20.0)
    assert not gate.judge(400.0)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_loss_that_is_no_number_holds_its_own_batch_only(loss: float) -> None:
    gate = warm_gate()
    assert not gate.judge(loss)
    assert gate.judge(1.0)


def test_a_run_of_losses_that_are_no_number_is_held_to_the_end_of_patience() -> None:
    gate = warm_gate(patience=3)
    assert [gate.judge(math.nan) for _ in range(5)] == [False, False, False, True, False]
    assert gate.judge(1.0)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"ratio": 1.0}, "gate.ratio"),
        ({"ratio": math.nan}, "gate.ratio"),
        ({"fresh": 0.0}, "gate.fresh"),
        ({"fresh": 64.0}, "gate.fresh"),
        ({"baseline": 1.0}, "gate.fresh"),
    ],
)
def test_settings_out_of_range_are_refused_by_key(settings: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Gate(**settings)  # type: ignore[arg-type]
    assert caught.value.key == key
