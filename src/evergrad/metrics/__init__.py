"""Scores over a stream.

Prequential means: every example is predicted before it is trained on, so the score of a stream needs no test set
(Dawid 1984; Gama, Sebastiao, Rodrigues 2013, whose fading factor is used here).

    outputs, labels ──> Score: a number per example ──> Running, Windowed, Fading    (`scores`, `means`)
                   └──> Metric: no mean of examples  ──> the same three forms         (`auc`)
                   Prequential: several of both, as one dict of numbers               (`prequential`)
"""

from __future__ import annotations

from evergrad.metrics.auc import AUC, BinnedAUC, WindowedAUC
from evergrad.metrics.means import Fading, Running, Windowed
from evergrad.metrics.prequential import Forms, Metric, Prequential
from evergrad.metrics.scores import (
    Score,
    absolute_error,
    accuracy,
    log_loss,
    log_loss_from_probabilities,
    ndcg,
    squared_error,
)

__all__ = [
    "AUC",
    "BinnedAUC",
    "Fading",
    "Forms",
    "Metric",
    "Prequential",
    "Running",
    "Score",
    "Windowed",
    "WindowedAUC",
    "absolute_error",
    "accuracy",
    "log_loss",
    "log_loss_from_probabilities",
    "ndcg",
    "squared_error",
]
