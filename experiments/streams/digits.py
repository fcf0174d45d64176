"""MNIST that drifts: digits that slowly turn, and labels that are exchanged, all at once, in mid-stream."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from torch import nn
from torch.nn.functional import cross_entropy

from evergrad.demo.digits import rotate
from evergrad.demo.lenet import make_lenet5
from evergrad.metrics import accuracy
from experiments.data import Images, Labels, Pixels, load_mnist, normalising
from experiments.streams.subject import Examples, Measure, Subject, mean_of, sides_of

FIRST, STREAM = 10_000, 20_000
DEGREES = 120.0
_TURNED_AT_ONCE = 100
_PERMUTATION_SEED = 2021


def load_rotating(data: Path) -> Subject:
    """Digits that turn by `DEGREES` over the stream. Raises ConfigError: a file is missing, or not of its format."""
    images = load_mnist(data)
    stream = slice(FIRST, FIRST + STREAM)
    found = _digits("rotating", images, turning(images.x[stream], DEGREES), images.y[stream])
    third, where = int(DEGREES) // 3, np.arange(STREAM) * 3 // STREAM
    groups = {f"{third * part} to {third * (part + 1)} degrees": where == part for part in range(3)}
    return dataclasses.replace(found, groups=groups)


def load_permuted(data: Path) -> Subject:
    """Labels that mean other digits from the middle of the stream on. Raises as `load_rotating`."""
    images = load_mnist(data)
    stream, middle = slice(FIRST, FIRST + STREAM), STREAM // 2
    labels = images.y[stream].copy()
    labels[middle:] = deranged(10, _PERMUTATION_SEED)[labels[middle:]]
    found = _digits("permuted", images, images.x[stream], labels)
    groups = sides_of(middle, STREAM, "before the exchange", "after the exchange")
    return dataclasses.replace(found, groups=groups, marks=[(middle, "labels exchanged")])


def _digits(name: str, images: Images, x: Pixels, y: Labels) -> Subject:
    def make_model() -> nn.Module:
        return normalising(make_lenet5(), images.mean, images.sd)

    return Subject(
        name=name,
        first=Examples(images.x[:FIRST], images.y[:FIRST]),
        stream=Examples(x, y),
        make_model=make_model,
        loss=cross_entropy,
        score=accuracy,
        measures={"accuracy": Measure(mean_of(accuracy), higher_is_better=True, percent=True, tolerance=0.05)},
        first_epochs=10,
        retrain_every=5000,
        retrain_epochs=10,
        window=1000,
    )


def turning(pixels: Pixels, degrees: float) -> Pixels:
    """The images [n, 1, side, side], each turned a little more than the one before, the last by `degrees`."""
    found = np.empty_like(pixels)
    for start in range(0, len(pixels), _TURNED_AT_ONCE):
        rows = slice(start, start + _TURNED_AT_ONCE)
        angle = degrees * (start + _TURNED_AT_ONCE) / len(pixels)
        found[rows] = np.rint(rotate(pixels[rows].astype(np.float32), angle))
    return found


def deranged(count: int, seed: int) -> Labels:
    """A permutation in which nothing stays where it was."""
    random = np.random.default_rng(seed)
    while True:
        found = random.permutation(count)
        if not np.any(found == np.arange(count)):
            return found.astype(np.int64)
