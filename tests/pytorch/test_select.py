"""Selection against a brute force that sorts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evergrad.pytorch.select import even_step, top_k
from evergrad.update import Steps

few_values = st.sampled_from([-2.0, -0.0, 0.0, 1e-45, 1.0, 1.5, 3.0, float("inf")])
any_values = st.floats(-10, 10, width=32)


def brute_force(scores: npt.NDArray[np.float32], k: int) -> list[int]:
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return sorted(i for i in order[:k] if scores[i] > 0)


@settings(deadline=None, derandomize=True)
@given(
    scores=hnp.arrays(np.float32, st.integers(1, 60), elements=few_values | any_values),
    k=st.integers(1, 70),
)
def test_it_is_the_brute_force(scores: npt.NDArray[np.float32], k: int) -> None:
    assert top_k(torch.from_numpy(scores), k).tolist() == brute_force(scores, k)


@pytest.mark.parametrize("k", [1, 10, 999, 1000, 1001, 5000])
def test_large_and_full_of_ties(k: int) -> None:
    scores = np.random.default_rng(1).integers(0, 4, 1000).astype(np.float32)
    assert top_k(torch.from_numpy(scores), k).tolist() == brute_force(scores, k)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_all_equal_gives_the_lowest_indices(k: int) -> None:
    assert top_k(torch.full((8,), 0.5), k).tolist() == list(range(8))[:k]


@pytest.mark.parametrize("k", [1, 4, 5])
def test_nothing_positive_gives_nothing(k: int) -> None:
    assert top_k(torch.tensor([0.0, -1.0, -0.0, -3.0]), k).tolist() == []


def test_more_asked_than_positive() -> None:
    assert top_k(torch.tensor([-5.0, 0.0, 2.0, 0.0, 1.0]), 3).tolist() == [2, 4]


def test_no_scores() -> None:
    assert top_k(torch.zeros(0), 3).tolist() == []


finite_values = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None, derandomize=True)
@given(
    pairs=st.lists(
        st.tuples(finite_values | st.floats(-2, 2, width=32), finite_values | st.floats(-2, 2, width=32)),
        min_size=1,
        max_size=30,
    )
)
def test_even_steps_bring_each_moved_element_closer_and_end(pairs: list[tuple[float, float]]) -> None:
    deployed, master = np.array(pairs, dtype=np.float32).T.copy()
    with np.errstate(over="ignore"):
        moves = master - deployed
    keep = np.isfinite(moves) & (moves != 0)
    deployed, master = deployed[keep], master[keep]
    for _ in range(2000):
        moves = master - deployed
        chosen = np.flatnonzero(moves)
        kept, scale, levels = even_step(moves[chosen], deployed[chosen])
        if not len(kept):
            break
        at = chosen[kept]
        assert scale > 0
        assert (np.diff(at) > 0).all()
        before = np.abs(master[at].astype(np.float64) - deployed[at])
        deployed[at] = Steps(at, moves[at] < 0, scale, levels).moved(deployed[at])
        after = np.abs(master[at].astype(np.float64) - deployed[at])
        assert np.isfinite(deployed[at]).all()
        assert (after <= before).all()
    else:
        raise AssertionError("it goes on for ever")
    assert np.array_equal(deployed, master)


def test_an_even_step_is_their_mean_where_all_are_alike() -> None:
    kept, scale, levels = even_step(np.float32([1.0, -1.5, 1.25]), np.float32([0, 0, 0]))
    assert (kept.tolist(), scale, levels.tolist()) == ([0, 1, 2], 1.25, [0, 0, 0])


def test_an_outlier_does_not_drag_the_others_along() -> None:
    kept, scale, levels = even_step(np.float32([0.01] * 9 + [1.0]), np.zeros(10, np.float32))
    assert kept.tolist() == list(range(10))
    assert scale == pytest.approx(0.01, rel=0.25)
    assert levels.tolist() == [0] * 9 + [7]


def test_levels_are_the_powers_of_two_that_distances_are_nearest_to() -> None:
    moves = np.float32([1.0, -1.4, 1.6, 4.0, -30.0, 1e-6])
    kept, scale, levels = even_step(moves, np.zeros(6, np.float32))
    assert kept.tolist() == [0, 1, 2, 3, 4]  # the last is further below their mean than levels reach
    assert levels.tolist() == [0, 0, 1, 2, 5]
    assert scale == np.float32((1.0 + 1.4 + 1.6 + 4.0 + 30.0) / (1 + 1 + 2 + 4 + 32))


def test_an_infinite_distance_of_finite_numbers_holds_nothing_else_up() -> None:
    kept, scale, _ = even_step(np.float32([3e38, np.inf]), np.float32([-1e38, -3e38]))
    assert (kept.tolist(), scale) == ([0], np.float32(3e38))
    assert not len(even_step(np.float32([np.inf]), np.float32([-3e38]))[0])
