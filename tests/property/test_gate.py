"""A gate's state is all there is to it; its decisions follow the order of losses alone; none breaks it."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evergrad.gate import Decision, Gate

LEVELS = st.lists(
    st.tuples(st.sampled_from([0.1, 1.0, 30.0]), st.sampled_from([0.1, 1.0, 30.0]), st.integers(1, 40)),
    min_size=1, max_size=6,
)  # fmt: skip


def small_gate() -> Gate:
    return Gate(reference=100, patience=100, alpha=1e-3)


def feed(gate: Gate, levels: list[tuple[float, float, int]], seed: int, scale: float = 1.0) -> list[Decision]:
    rng = np.random.default_rng(seed)
    found = []
    for served, candidate, batches in levels:
        for _ in range(batches):
            losses = scale * rng.exponential(size=8)
            first = 8 * len(found)
            found.append(gate.judge(served * losses, candidate * losses, first=first, last=first + 7))
            found.append(gate.judge_move(float(losses[0]), first=first, last=first + 7))
    return found


@settings(max_examples=60)
@given(LEVELS, LEVELS, st.integers(0, 2**32))
def test_state_goes_through_json_exactly_and_decides_as_before(before, after, seed: int) -> None:
    gate, other = small_gate(), small_gate()
    feed(gate, before, seed)
    state = json.loads(json.dumps(gate.state_dict(), allow_nan=False))
    other.load_state_dict(state)
    assert other.state_dict() == gate.state_dict() == state
    assert feed(other, after, seed + 1) == feed(gate, after, seed + 1)
    assert other.state_dict() == gate.state_dict()


@settings(max_examples=40)
@given(LEVELS, st.integers(0, 2**32), st.integers(-40, 40))
def test_unit_of_the_losses_does_not_matter(levels, seed: int, exponent: int) -> None:
    plain, scaled = feed(small_gate(), levels, seed), feed(small_gate(), levels, seed, 2.0**exponent)
    assert [(d.verdict, d.suspect, d.evidence) for d in plain] == [(d.verdict, d.suspect, d.evidence) for d in scaled]


@settings(max_examples=60)
@given(st.lists(st.lists(st.floats(), min_size=0, max_size=4), max_size=60), st.integers(0, 2**32))
def test_any_losses_give_a_verdict_that_json_can_hold(batches, seed: int) -> None:
    gate = small_gate()
    feed(gate, [(1.0, 1.0, 10)], seed)
    held = False
    for number, losses in enumerate(batches):
        found = gate.judge(losses, losses[::-1], first=80 + number, last=80 + number)
        assert (found.verdict == "hold") == (gate.held > 0)
        assert (found.verdict in {"release", "rollback"}) <= held
        assert found.alert == bool(found.reason)
        held = gate.held > 0
        json.dumps(asdict(found), allow_nan=False)
        json.dumps(gate.state_dict(), allow_nan=False)
