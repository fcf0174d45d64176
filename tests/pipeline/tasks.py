"""A small classification task, for tests that train."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

CLASSES = 4


def make_model() -> nn.Module:
    """Eight numbers to four classes, with a BatchNorm."""
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))


def seeded_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make_model()


def make_examples(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Four noisy clusters: float32 [count, 8], int64 [count]."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CLASSES, 8)) * 2
    labels = rng.integers(0, CLASSES, count)
    return (centres[labels] + rng.normal(size=(count, 8))).astype(np.float32), labels.astype(np.int64)


def pairs(count: int, batch: int = 8, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    x, y = make_examples(count, seed)
    for start in range(0, count, batch):
        yield x[start : start + batch], y[start : start + batch]
