"""No window exceeds a byte budget by more than its burst: whatever the steps, prices, bundles and delays."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evergrad.budget import FRAME_BYTES, ByteBudget
from tests.simulated import Link

GAPS_S = st.one_of(st.sampled_from([0.0, 1 / 300, 1.0]), st.floats(0, 100))
SCHEDULES = st.lists(st.tuples(GAPS_S, st.integers(1, 40)), min_size=1, max_size=12)


@given(
    SCHEDULES,
    st.floats(0.1, 1e6),
    st.floats(1024, 1e7),
    st.integers(1, 10**7),
    st.integers(1, 8),
    st.integers(0, 20),
    st.integers(0, 2**32),
)
def test_no_window_exceeds_the_budget_by_more_than_the_burst(
    schedule: list[tuple[float, int]], rate: float, burst: float, elements: int, every: int, late: int, seed: int
) -> None:
    dice = np.random.default_rng(seed)

    def cost(moved: int) -> int:
        return int(dice.uniform(64, FRAME_BYTES) + (1, 5, dice.uniform(1, 5))[dice.integers(3)] * moved)

    link = Link(ByteBudget(elements, rate, burst), cost, every, late)
    link.run(gap_s for gap_s, times in schedule for _ in range(times))
    assert link.most_beyond(rate) <= burst * (1 + 1e-9)
    assert all(0 <= due <= elements for due in link.due)


@given(st.floats(1, 1e5), st.floats(0.001, 30), st.integers(64, 50_000), st.integers(1, 8), st.integers(0, 2**32))
def test_moves_never_end_and_debts_are_paid(rate: float, gap_s: float, fixed: int, every: int, seed: int) -> None:
    """Whatever an update costs beside its elements: each thousand times as long as it takes to earn one, some moved."""
    dice = np.random.default_rng(seed)
    burst = max(1024.0, 10 * rate)
    link = Link(ByteBudget(10**6, rate, burst), lambda moved: int(fixed + dice.uniform(1, 5) * moved), every)
    gap_s = max(gap_s, (fixed + burst) / rate / 50)
    for _ in range(5):
        moved = sum(link.due)
        link.run([gap_s] * 200)
        assert sum(link.due) > moved
    assert link.nbytes <= rate * link.clock() + burst + every * fixed
