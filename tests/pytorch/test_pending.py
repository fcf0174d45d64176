"""What waits is folded exactly, and never more than is promised."""

from __future__ import annotations

import numpy as np
import pytest

from evergrad.pytorch import pending
from evergrad.pytorch.pending import Pending
from evergrad.schema import Schema
from evergrad.update import Section, State, Steps, Values

SCHEMA = Schema([("w", "F32", (200,)), ("n", "I64", (3,))])


def zeros() -> State:
    return State(SCHEMA, [np.zeros(200, np.float32), np.zeros(3, np.int64)])


def moves(state: State, run: Pending, count: int, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for _ in range(count):
        indices = np.sort(random.choice(200, 10, replace=False))
        sections: list[Section] = [Steps(indices, random.random(10) < 0.5, float(random.random() + 0.1))]
        if random.random() < 0.5:
            sections.append(Values(np.array([201]), np.array([random.integers(100)]), "I64"))
        change = state.resolve(sections)
        state.commit(change)
        run.add(sections, change)


def leads_to(run: Pending, state: State) -> bool:
    fresh = zeros()
    change = fresh.resolve(run.smallest())
    fresh.commit(change)
    same = all(np.array_equal(a, b) for a, b in zip(fresh.arrays, state.arrays, strict=True))
    return same and fresh.digest == run.digest_after == state.digest


@pytest.mark.parametrize("count", [1, 2, 40, 255, 256, 257, 700])
def test_a_run_leads_where_its_moves_led(count: int) -> None:
    state, run = zeros(), Pending(SCHEMA, 1000)
    assert not run
    moves(state, run, count)
    assert run
    assert not run.lost
    assert run.elements <= 256 * 11 + 203
    assert run.digest_before == zeros().digest
    assert leads_to(run, state)


def test_runs_join(monkeypatch: pytest.MonkeyPatch) -> None:
    state, first, second = zeros(), Pending(SCHEMA, 1000), Pending(SCHEMA, 1000)
    first.newest_us, second.newest_us = 5, 3
    first.examples, second.examples = range(8, 16), range(24, 32)
    moves(state, first, 200, seed=1)
    moves(state, second, 200, seed=2)
    joined = Pending(SCHEMA, 1000)
    joined.extend(first)
    joined.extend(second)
    assert joined.newest_us == 5
    assert joined.examples == range(8, 32)
    assert leads_to(joined, state)


def test_a_run_that_grows_too_long_is_lost_but_knows_where_it_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "_LEAST_ELEMENTS", 50)
    state, run = zeros(), Pending(SCHEMA, 50)
    moves(state, run, 40)
    assert run.lost
    assert run.elements == 0
    assert (run.digest_before, run.digest_after) == (zeros().digest, state.digest)
    later = Pending(SCHEMA, 50)
    moves(state, later, 1, seed=3)
    later.examples = range(3, 4)
    run.extend(later)
    assert run.examples == range(3, 4), "readers take the snapshot of its version, which has learned from it"
    assert run.lost
    assert run.digest_after == state.digest
    fresh = Pending(SCHEMA, 50)
    fresh.extend(run)
    assert fresh.lost
    assert fresh
    assert fresh.digest_before == zeros().digest
