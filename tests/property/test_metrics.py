"""Areas and gains equal scikit-learn's, whatever the scores, the ties and the batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import ndcg_score, roc_auc_score

from evergrad.metrics import BinnedAUC, Metric, WindowedAUC, ndcg

numbers = st.floats(-1e300, 1e300) | st.floats(0, 1) | st.sampled_from([0.0, -0.0, 0.5, 1.0])
examples = st.lists(st.tuples(numbers, st.booleans()), min_size=1, max_size=60)


def fill(metric: Metric, told: list[tuple[float, bool]], step: int) -> None:
    scores, labels = np.array([score for score, _ in told]), np.array([label for _, label in told])
    for start in range(0, len(told), step):
        metric.add(scores[start : start + step], labels[start : start + step])


def expected(told: list[tuple[float, bool]]) -> float:
    labels = [label for _, label in told]
    return float(roc_auc_score(labels, [score for score, _ in told])) if len(set(labels)) == 2 else math.nan


@given(examples, st.integers(1, 70), st.integers(1, 70))
def test_windowed_area_is_exact(told: list[tuple[float, bool]], size: int, step: int) -> None:
    metric = WindowedAUC(size)
    fill(metric, told, step)
    assert metric.value == pytest.approx(expected(told[-size:]), abs=1e-12, nan_ok=True)


@given(st.lists(st.tuples(st.integers(-9, 9), st.booleans()), min_size=1, max_size=60), st.integers(1, 70))
def test_binned_area_is_exact_where_scores_are_equal_or_well_apart(told: list[tuple[int, bool]], step: int) -> None:
    for spread in (float, lambda n: 0.5 ** (10 + n), lambda n: 1 - 0.5 ** (10 + n)):
        metric, spreaded = BinnedAUC(), [(spread(score), label) for score, label in told]
        fill(metric, spreaded, step)
        assert metric.value == pytest.approx(expected(spreaded), abs=1e-12, nan_ok=True)


@given(examples, st.integers(1, 70))
def test_binned_area_is_off_by_at_most_half_the_pairs_that_are_close(told: list[tuple[float, bool]], step: int) -> None:
    metric = BinnedAUC()
    fill(metric, told, step)
    ones, zeros = [score for score, label in told if label], [score for score, label in told if not label]
    if not (ones and zeros):
        assert math.isnan(metric.value)
        return
    one, zero = np.array(ones)[:, None], np.array(zeros)[None, :]
    near = np.abs(one - zero) <= np.maximum(np.abs(one), np.abs(zero)) / 256
    near |= np.abs(one - zero) < 1e-37  # below what float32 holds in full
    near |= (np.minimum(one, zero) > 3e38) | (np.maximum(one, zero) < -3e38)  # above it
    assert abs(metric.value - expected(told)) <= near.mean() / 2 + 1e-12


@given(
    arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=st.integers(0, 3)),
    st.integers(0, 2**32),
    st.integers(1, 8),
)
def test_gains_are_those_of_scikit_learn(labels: np.ndarray, seed: int, k: int) -> None:
    outputs = np.random.default_rng(seed).integers(0, 3, labels.shape).astype("f4")
    wanted = [ndcg_score(labels[i : i + 1], outputs[i : i + 1], k=k) for i in range(len(labels))]
    assert ndcg(k)(outputs, labels).tolist() == pytest.approx(wanted, abs=1e-12)
