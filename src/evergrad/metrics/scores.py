"""Scores of a batch, example by example: plain functions of outputs and labels, for the means of `means`.

All of them take arrays of any real dtype, compute in float64, and keep nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import ConfigError, ScoreMismatch

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Score = Callable[[Array, Array], Floats]
"""Scores a batch of outputs against its labels: one number per example."""


def accuracy(outputs: Array, labels: Array) -> Floats:
    """1.0 where the largest of `outputs` [examples, classes] is at the label [examples], 0.0 elsewhere.

    Raises:
        ScoreMismatch: the shapes are others.
    """
    check_batch("accuracy", outputs, labels)
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ScoreMismatch("accuracy", "outputs [examples, classes] of two classes or more", str(outputs.shape))
    return np.asarray(outputs.argmax(axis=1) == one_each("accuracy", labels), dtype=np.float64)


def absolute_error(outputs: Array, labels: Array) -> Floats:
    """|output - label| per example, the mean over further axes.

    Raises:
        ScoreMismatch: labels and outputs differ in how many numbers there are per example.
    """
    return _mean(np.abs(_differences("absolute error", outputs, labels)))


def squared_error(outputs: Array, labels: Array) -> Floats:
    """(output - label)^2 per example, the mean over further axes.

    Raises:
        ScoreMismatch: labels and outputs differ in how many numbers there are per example.
    """
    return _mean(np.square(_differences("squared error", outputs, labels)))


def log_loss(outputs: Array, labels: Array) -> Floats:
    """-log of the probability that *logits* give to the label, in nats; what torch calls cross entropy.

    Args:
        outputs: logits, [examples, classes]; or [examples] or [examples, 1], of class 1 against class 0.
        labels: classes as whole numbers, [examples] or [examples, 1].

    Raises:
        ScoreMismatch: the shapes are others, or a label is no class.
    """
    logits, classes = _classes("log loss", outputs, labels)
    if logits.shape[1] == 1:
        return np.asarray(np.logaddexp(0.0, np.where(classes == 1, -logits[:, 0], logits[:, 0])))
    return np.asarray(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(classes)), classes])


def log_loss_from_probabilities(outputs: Array, labels: Array) -> Floats:
    """-log of the label's *probability*, in nats; 0 and 1 count as the dtype's epsilon away from them.

    That bounds the score of one example: 15.9 for float32, 36.0 for float64 (and for whole numbers).

    Args:
        outputs: probabilities, [examples, classes]; or [examples] or [examples, 1], of class 1.
        labels: classes as whole numbers, [examples] or [examples, 1].

    Raises:
        ScoreMismatch: the shapes are others, a label is no class, or an output lies outside [0, 1].
    """
    given, classes = _classes("log loss", outputs, labels)
    if np.any((given < 0) | (given > 1)):
        raise ScoreMismatch("log loss", "probabilities in [0, 1]", f"{given.min()} to {given.max()}; take log_loss")
    epsilon = np.finfo(outputs.dtype if outputs.dtype.kind == "f" else np.float64).eps
    if given.shape[1] == 1:
        given = np.hstack([1 - given, given])
    return -np.log(np.clip(given[np.arange(len(classes)), classes], epsilon, 1 - epsilon))


def ndcg(k: int) -> Score:
    """The normalised discounted cumulative gain of the first `k` documents, a score per query.

    The score takes outputs [queries, documents], the higher the earlier, and labels of that shape: the relevance of
    each document, 0 or more, which is its gain; it is divided by log2(1 + rank). Documents with equal outputs share
    the mean of their gains, so that the order in which they are listed plays no part (McSherry and Najork 2008). A
    label of NaN says that there is no such document, for queries of fewer. An output of NaN comes last, and a query
    without relevant documents scores 0.

    Raises:
        ConfigError: `k` is below 1. The score raises ScoreMismatch: the shapes are others, or a relevance is below 0
            or infinite.
    """
    if not (isinstance(k, int) and k >= 1):
        raise ConfigError("ndcg.k", f"must be a whole number, 1 or more, not {k}")
    name = f"NDCG@{k}"

    def score(outputs: Array, labels: Array) -> Floats:
        check_batch(name, outputs, labels)
        if outputs.ndim != 2 or outputs.shape != labels.shape or not outputs.shape[1]:
            raise ScoreMismatch(name, "outputs and labels [queries, documents]", f"{outputs.shape} and {labels.shape}")
        relevance = np.asarray(labels, dtype=np.float64)
        if np.any((relevance < 0) | np.isposinf(relevance)):
            raise ScoreMismatch(name, "relevances of 0 or more", f"{np.nanmin(relevance)} to {np.nanmax(relevance)}")
        there = ~np.isnan(relevance)
        outputs = np.where(there & ~np.isnan(outputs), outputs, -np.inf)
        relevance = np.where(there, relevance, 0.0)
        best = _gain(relevance, relevance, k)
        return np.divide(_gain(outputs, relevance, k), best, out=np.zeros(len(best)), where=best > 0)

    return score


def _gain(outputs: Floats, relevance: Floats, k: int) -> Floats:
    queries, documents = outputs.shape
    order = np.argsort(-outputs, axis=1)
    ranked, gains = np.take_along_axis(outputs, order, 1), np.take_along_axis(relevance, order, 1)
    new = np.ones((queries, documents), dtype=bool)
    new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    tied = np.cumsum(new.reshape(-1)) - 1  # numbers the groups of equal outputs, over all queries
    shared = np.bincount(tied, gains.reshape(-1)) / np.bincount(tied)
    discounts = np.where(np.arange(documents) < k, 1 / np.log2(np.arange(documents) + 2.0), 0.0)
    return np.asarray(shared[tied].reshape(queries, documents) @ discounts)


def _mean(values: Floats) -> Floats:
    return np.asarray(values.mean(axis=1))


def check_batch(name: str, outputs: Array, labels: Array) -> None:
    """Both are real numbers, have a first axis, and as many examples.

    Raises:
        ScoreMismatch: they are not.
    """
    for array in (outputs, labels):
        if array.dtype.kind in "OSUMmc":
            raise ScoreMismatch(name, "real numbers as outputs and labels", str(array.dtype))
    if outputs.ndim < 1 or labels.ndim < 1 or len(outputs) != len(labels):
        raise ScoreMismatch(name, "as many outputs as labels", f"{outputs.shape} and {labels.shape}")


def one_each(name: str, labels: Array) -> Array:
    """Labels [examples] or [examples, 1, ...] as [examples].

    Raises:
        ScoreMismatch: there is not one per example.
    """
    if labels.size != len(labels):
        raise ScoreMismatch(name, "one label per example", str(labels.shape))
    return labels.reshape(-1)


def _differences(name: str, outputs: Array, labels: Array) -> Floats:
    """[examples, numbers per example]"""
    check_batch(name, outputs, labels)
    numbers = math.prod(outputs.shape[1:])
    if numbers != math.prod(labels.shape[1:]) or not numbers:
        raise ScoreMismatch(name, "as many numbers in an output as in a label", f"{outputs.shape} and {labels.shape}")
    shape = (len(labels), numbers)
    return outputs.reshape(shape).astype(np.float64) - labels.reshape(shape).astype(np.float64)


def _classes(name: str, outputs: Array, labels: Array) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Outputs as float64 [examples, classes], 1 class where there is one number for two, and labels as integers."""
    check_batch(name, outputs, labels)
    found = one_each(name, labels)
    columns = outputs.reshape(-1, 1) if outputs.ndim == 1 else outputs
    if columns.ndim != 2 or not columns.shape[1]:
        raise ScoreMismatch(name, "outputs [examples] or [examples, classes]", str(outputs.shape))
    classes = max(2, columns.shape[1])
    if not np.all((found >= 0) & (found < classes) & (found == np.floor(found))):
        raise ScoreMismatch(name, f"whole numbers from 0 to {classes - 1} as labels", f"{found.min()} to {found.max()}")
    return columns.astype(np.float64), found.astype(np.intp)
