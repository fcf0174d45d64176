"""WeightTree: sums are a function of the weights alone, and draws follow them."""

from __future__ import annotations

import numpy as np
import pytest

from evergrad.sampling.tree import WeightTree
from tests.unit.sampling.fairness import fits_successive


def tree_of(weights: np.ndarray, first: int = 0) -> WeightTree:
    tree = WeightTree()
    tree.begin(first)
    tree.grow(first + len(weights), 1.0)
    tree.put(np.arange(first, first + len(weights)), weights)
    return tree


@pytest.mark.parametrize("size", [3, 64, 65, 4096, 5000])
def test_draws_of_two_follow_the_weights_and_then_those_of_the_rest(size: int) -> None:
    rng = np.random.default_rng(size)
    weights = np.zeros(size)
    some = np.sort(rng.choice(size, min(size, 12), replace=False))
    weights[some] = rng.integers(1, 6, len(some))
    tree = tree_of(weights, first=1000)
    places = np.zeros(size, dtype=np.int64)
    places[some] = np.arange(len(some))
    fits_successive(lambda: places[tree.draw(rng, 1000 + size, 2) - 1000], weights[some], 5000)


def test_draw_leaves_the_weights_as_they_were_and_takes_no_zero() -> None:
    weights = np.zeros(300)
    weights[[4, 70, 299]] = 1e-20, 1.0, 1e20
    tree = tree_of(weights)
    for _ in range(20):
        assert sorted(tree.draw(np.random.default_rng(3), 300, 50).tolist()) == [4, 70, 299]
    assert np.array_equal(tree.get(np.arange(300)), weights.astype(np.float32))
    assert sorted(tree.draw(np.random.default_rng(3), 299, 50).tolist()) == [4, 70]
    assert tree.draw(np.random.default_rng(3), 4, 50).tolist() == []


def test_sums_do_not_depend_on_how_the_weights_came_about() -> None:
    rng = np.random.default_rng(2)
    grown = WeightTree()
    for end in (1, 50, 64, 130, 4000, 9000, 30_000):
        grown.grow(end, 0.3)
        ids = rng.integers(grown.first, end, 40)
        grown.put(ids, rng.random(40))
        grown.retire(end // 3)
    loaded = WeightTree()
    loaded.load_state_dict(grown.state_dict())
    assert len(loaded._levels) == len(grown._levels) == 3
    for mine, other in zip(loaded._levels, grown._levels, strict=True):
        assert np.array_equal(mine, other)
    leaves = grown.get(np.arange(10_000, 30_000)).astype(np.float64)
    assert grown._sum_to(30_000 - grown._base) == pytest.approx(leaves.sum(), rel=1e-12)
    assert grown._sum_to(20_001 - grown._base) == pytest.approx(leaves[:10_001].sum(), rel=1e-12)


def test_room_follows_what_is_held_and_not_all_that_ever_was() -> None:
    tree = WeightTree()
    for step in range(3000):
        tree.grow(10 * step + 10, 1.0)
        tree.retire(max(0, 10 * step - 500))
    assert len(tree._levels[0]) <= 1024
    assert tree.end - tree.first == 510
    assert sorted(tree.draw(np.random.default_rng(0), 30_000, 600).tolist()) == list(range(tree.first, 30_000))


def test_everything_retired_is_an_empty_tree_that_goes_on() -> None:
    tree = tree_of(np.ones(100))
    tree.retire(5000)
    assert tree.draw(np.random.default_rng(0), 5000, 3).tolist() == []
    tree.grow(5002, 1.0)
    assert sorted(tree.draw(np.random.default_rng(0), 5002, 3).tolist()) == [5000, 5001]


def test_target_that_rounding_puts_past_the_end_finds_a_leaf_of_the_tree() -> None:
    tree = tree_of(np.full(100, 0.1))
    assert 0 <= int(tree._find(np.array([1e9]))[0]) < len(tree._levels[0])
