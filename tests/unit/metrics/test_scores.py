"""Scores of a batch, example by example, against scikit-learn and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn

from evergrad.errors import ConfigError, ScoreMismatch
from evergrad.metrics import (
    Score,
    absolute_error,
    accuracy,
    log_loss,
    log_loss_from_probabilities,
    ndcg,
    squared_error,
)

SCORES: dict[str, Score] = {
    "accuracy": accuracy,
    "absolute error": absolute_error,
    "squared error": squared_error,
    "log loss": log_loss,
    "log loss from probabilities": log_loss_from_probabilities,
    "NDCG@3": ndcg(3),
}


def softmax(logits: Any) -> Any:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


# -- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_accuracy_is_one_where_the_largest_output_is_at_the_label(shape: tuple[int, ...]) -> None:
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], "f4")
    found = accuracy(outputs, np.array([1, 1, 1]).reshape(shape))
    assert (found.dtype, found.tolist()) == (np.float64, [1.0, 0.0, 1.0])


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1)])
def test_errors_are_one_number_an_example_whatever_the_shape(shape: tuple[int, ...]) -> None:
    outputs, labels = np.array([1.0, -2.0], "f4"), np.array([3.0, -1.0], "f4")
    for given in ((outputs.reshape(shape), labels), (outputs, labels.reshape(shape))):
        assert absolute_error(*given).tolist() == [2.0, 1.0]
        assert squared_error(*given).tolist() == [4.0, 1.0]


def test_errors_are_means_over_further_axes() -> None:
    assert absolute_error(np.ones((2, 2, 2)), np.zeros((2, 2, 2))).tolist() == [1.0, 1.0]
    assert absolute_error(np.array([[1.0, 3.0]]), np.array([[0.0, 0.0]])).tolist() == [2.0]
    assert squared_error(np.array([[1.0, 3.0]]), np.array([[0.0, 0.0]])).tolist() == [5.0]


def test_errors_of_unsigned_and_half_precision_numbers_neither_wrap_nor_overflow() -> None:
    assert absolute_error(np.array([1], "u1"), np.array([255], "u1")).tolist() == [254.0]
    assert squared_error(np.array([60000], "f2"), np.array([0], "f2")).tolist() == [np.float64(np.float16(60000)) ** 2]


# -- log loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5])
def test_log_loss_of_classes_is_that_of_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    logits, labels = rng.normal(size=(50, classes)), rng.integers(0, classes, 50)
    expected = sklearn.log_loss(labels, softmax(logits), labels=range(classes))
    assert log_loss(logits, labels).mean() == pytest.approx(expected, rel=1e-12)
    assert log_loss_from_probabilities(softmax(logits), labels).mean() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(50,), (50, 1)])
@pytest.mark.parametrize("dtype", ["i8", "f4", "?"])
def test_log_loss_of_one_output_is_that_of_class_1(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=50), rng.integers(0, 2, 50).astype(dtype)
    two = np.stack([np.zeros(50), logits], axis=1)
    expected = log_loss(two, labels)
    probabilities = softmax(two)[:, 1].reshape(shape)
    assert log_loss(logits.reshape(shape), labels.reshape(shape)) == pytest.approx(expected, rel=1e-12)
    assert log_loss_from_probabilities(probabilities, labels) == pytest.approx(expected, rel=1e-9)


def test_log_loss_of_far_logits_is_finite_and_exact() -> None:
    assert log_loss(np.array([[1000.0, 0.0], [-1000.0, 0.0]], "f4"), np.array([1, 1])).tolist() == [1000.0, 0.0]
    assert log_loss(np.array([1000.0, -1000.0]), np.array([0, 0])).tolist() == [1000.0, 0.0]


@pytest.mark.parametrize(("dtype", "most"), [("f4", 15.94), ("f8", 36.04), ("i8", 36.04)])
def test_log_loss_of_impossible_labels_is_bounded_as_in_scikit_learn(dtype: str, most: float) -> None:
    outputs, labels = np.array([[1, 0], [0, 1]], dtype), np.array([1, 1])
    worst, best = log_loss_from_probabilities(outputs, labels)
    assert worst == pytest.approx(most, abs=0.01)
    assert 0 < best < 1e-6
    if dtype != "i8":
        assert (worst + best) / 2 == pytest.approx(sklearn.log_loss(labels, outputs, labels=[0, 1]), rel=1e-6)


# -- NDCG -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 8, 50])
@pytest.mark.parametrize("levels", [3, 1000], ids=["ties", "no ties"])
def test_ndcg_is_that_of_scikit_learn(k: int, levels: int) -> None:
    rng = np.random.default_rng(k)
    outputs, labels = rng.integers(0, levels, (40, 8)).astype("f4"), rng.integers(0, 4, (40, 8))
    labels[0] = 0
    expected = [sklearn.ndcg_score(labels[i : i + 1], outputs[i : i + 1], k=k) for i in range(40)]
    assert ndcg(k)(outputs, labels) == pytest.approx(np.array(expected), abs=1e-12)


def test_ndcg_of_equal_outputs_does_not_depend_on_how_documents_are_listed() -> None:
    best_first = np.array([[3.0, 0.0, 0.0, 0.0]])
    found = [ndcg(1)(np.zeros((1, 4)), labels).tolist() for labels in (best_first, best_first[:, ::-1])]
    assert found == [[0.25], [0.25]]


def test_ndcg_passes_over_documents_that_are_not_there() -> None:
    outputs = np.array([[0.3, 0.9, 0.5, 7.0], [0.3, 0.9, 0.5, np.nan]])
    labels = np.array([[2.0, 0.0, 1.0, np.nan]] * 2)
    expected = ndcg(3)(outputs[:1, :3], labels[:1, :3])
    assert ndcg(3)(outputs, labels) == pytest.approx(np.repeat(expected, 2))
    assert ndcg(3)(outputs, np.full((2, 4), np.nan)).tolist() == [0.0, 0.0]


def test_ndcg_ranks_an_output_of_nan_last() -> None:
    assert ndcg(1)(np.array([[np.nan, -5.0]]), np.array([[1.0, 0.0]])).tolist() == [0.0]


@pytest.mark.parametrize("k", [0, -1, 2.0, None])
def test_ndcg_of_no_documents_is_refused(k: Any) -> None:
    with pytest.raises(ConfigError, match=r"ndcg\.k: must be a whole number, 1 or more"):
        ndcg(k)


# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORES)
def test_no_examples_give_no_scores(name: str) -> None:
    labels = np.zeros((0, 2)) if name.startswith(("abs", "squ", "NDCG")) else np.zeros(0, "i8")
    found = SCORES[name](np.zeros((0, 2)), labels)
    assert (found.dtype, found.shape) == (np.float64, (0,))


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    ("outputs", "labels"),
    [
        (np.zeros((3, 2)), np.zeros(2)),
        (np.zeros((2, 2)), np.zeros((2, 3))),
        (np.zeros((2, 2, 2)), np.zeros((2, 3))),
        (np.zeros((2, 0)), np.zeros((2, 0))),
        (np.zeros(()), np.zeros(1)),
        (np.zeros((1, 2)), np.zeros(())),
        (np.zeros((1, 2)), np.array(["a"])),
        (np.zeros((1, 2)), np.array([None])),
        (np.zeros((1, 2), complex), np.zeros(1)),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_arrays_that_do_not_fit_are_named(name: str, outputs: Any, labels: Any) -> None:
    with pytest.raises(ScoreMismatch) as caught:
        SCORES[name](outputs, labels)
    assert caught.value.score in name
    facts = (str(outputs.shape), str(labels.shape), str(outputs.dtype), str(labels.dtype))
    assert any(fact in caught.value.found for fact in facts)


@pytest.mark.parametrize(
    ("score", "outputs", "labels", "expected"),
    [
        (accuracy, np.zeros((2, 1)), np.zeros(2), "two classes or more"),
        (accuracy, np.zeros(2), np.zeros(2), "two classes or more"),
        (accuracy, np.zeros((2, 2)), np.zeros((2, 2)), "one label per example"),
        (log_loss, np.zeros((2, 3)), np.array([0, 3]), "whole numbers from 0 to 2 as labels"),
        (log_loss, np.zeros((2, 3)), np.array([0, -1]), "whole numbers from 0 to 2 as labels"),
        (log_loss, np.zeros((2, 3)), np.array([0, 0.5]), "whole numbers from 0 to 2 as labels"),
        (log_loss, np.zeros((2, 3)), np.array([0, math.nan]), "whole numbers from 0 to 2 as labels"),
        (log_loss, np.zeros(2), np.array([0, 2]), "whole numbers from 0 to 1 as labels"),
        (log_loss_from_probabilities, np.array([0.5, 1.5]), np.array([0, 1]), "probabilities in [0, 1]"),
        (log_loss_from_probabilities, np.array([-0.1, 0.5]), np.array([0, 1]), "probabilities in [0, 1]"),
        (ndcg(2), np.zeros((1, 2)), np.array([[1, -1]]), "relevances of 0 or more"),
        (ndcg(2), np.zeros((1, 2)), np.array([[1, math.inf]]), "relevances of 0 or more"),
    ],
)
def test_values_that_cannot_be_scored_are_named(score: Score, outputs: Any, labels: Any, expected: str) -> None:
    with pytest.raises(ScoreMismatch) as caught:
        score(outputs, labels)
    assert expected in caught.value.expected
