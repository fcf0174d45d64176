"""Selection against a brute force that sorts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evergrad.pytorch.select import top_k

few_values = st.sampled_from([-2.0, -0.0, 0.0, 1e-45, 1.0, 1.5, 3.0, float("inf")])
any_values = st.floats(-10, 10, width=32)


def brute_force(scores: npt.NDArray[np.float32], k: int) -> list[int]:
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return sorted(i for i in order[:k] if scores[i] > 0)


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
