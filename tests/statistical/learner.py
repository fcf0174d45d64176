"""A stream, a small network that learns from it step by step, and replicas behind a gate: all of it in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from evergrad.gate import Decision, Gate

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
CLASSES, INPUTS, HIDDEN = 10, 20, 32


class World:
    """Ten Gaussian classes in 20 dimensions, whose centres turn by `turn` radians an example in ten planes.

    Args:
        spread: of each class; 1.0 leaves about 4% of errors to the best model.
    """

    def __init__(self, seed: int, *, spread: float = 1.0, turn: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self._centres = np.random.default_rng(7).normal(size=(CLASSES, INPUTS)) * 0.75
        self._spread, self._turn = spread, turn

    def draw(self, count: int, at: int) -> tuple[Floats, Labels]:
        """Examples as they are after `at` others."""
        y = self.rng.integers(0, CLASSES, count)
        angle = self._turn * at
        even, odd = self._centres[:, ::2], self._centres[:, 1::2]
        turned = np.hstack((even * np.cos(angle) - odd * np.sin(angle), even * np.sin(angle) + odd * np.cos(angle)))
        return turned[y] + self._spread * self.rng.normal(size=(count, INPUTS)), y


@dataclass
class Network:
    """One hidden layer, cross-entropy, Adam."""

    rate: float = 3e-3
    weights: list[Floats] = field(default_factory=list)
    means: list[Floats] = field(default_factory=list)
    squares: list[Floats] = field(default_factory=list)
    steps: int = 0

    def __post_init__(self) -> None:
        if not self.weights:
            rng = np.random.default_rng(0)
            shapes = [(INPUTS, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,)]
            self.weights = [rng.normal(size=s) / np.sqrt(s[0]) * (len(s) > 1) for s in shapes]
            self.means, self.squares = ([np.zeros(s) for s in shapes] for _ in range(2))

    def copy(self) -> Network:
        parts = ([a.copy() for a in group] for group in (self.weights, self.means, self.squares))
        return Network(self.rate, *parts, self.steps)

    def logits(self, x: Floats) -> Floats:
        w1, b1, w2, b2 = self.weights
        return np.maximum(x @ w1 + b1, 0) @ w2 + b2

    def losses(self, x: Floats, y: Labels) -> Floats:
        logits = self.logits(x)
        return np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]

    def accuracy(self, x: Floats, y: Labels) -> float:
        return float((self.logits(x).argmax(axis=1) == y).mean())

    def learn(self, x: Floats, y: Labels) -> None:
        w1, b1, w2, b2 = self.weights
        hidden = np.maximum(x @ w1 + b1, 0)
        logits = hidden @ w2 + b2
        error = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        error[np.arange(len(y)), y] -= 1
        error /= len(y)
        back = (error @ w2.T) * (hidden > 0)
        gradients = [x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
        self.steps += 1
        for weights, mean, square, gradient in zip(self.weights, self.means, self.squares, gradients, strict=True):
            mean += 0.1 * (gradient - mean)  # noqa: PLW2901 - in place
            square += 0.001 * (gradient * gradient - square)  # noqa: PLW2901 - in place
            step = mean / (1 - 0.9**self.steps) / (np.sqrt(square / (1 - 0.999**self.steps)) + 1e-8)
            weights -= self.rate * step  # noqa: PLW2901 - in place


@dataclass
class Deployment:
    """A trainer and its replicas behind a gate, or without one: 8 new and 120 sampled examples a step."""

    gate: Gate | None
    candidate: Network
    window: int | None = None
    batch: int = 8
    seed: int = 0
    x: list[Floats] = field(default_factory=list)
    y: list[Labels] = field(default_factory=list)
    alerts: list[Decision] = field(default_factory=list)
    seen: int = 0
    held: int = 0

    def __post_init__(self) -> None:
        self.served, self.saved = self.candidate, self.candidate
        self._rng = np.random.default_rng(self.seed)
        self.excluded = np.zeros(1 << 17, dtype=bool)
        self._x, self._y = np.zeros((1 << 17, INPUTS)), np.zeros(1 << 17, dtype=np.int64)

    def take(self, x: Floats, y: Labels) -> None:
        first, last = self.seen, self.seen + len(y) - 1
        self._x[first : last + 1], self._y[first : last + 1] = x, y
        if self.gate:
            self._obey(self._decide(x, y, first, last))
        old = self._old(first)
        rows = np.concatenate((np.arange(first, last + 1), old))
        self.candidate.learn(self._x[rows], self._y[rows])
        self.seen += len(y)

    def _decide(self, x: Floats, y: Labels, first: int, last: int) -> Decision:
        other = self.candidate.losses(x, y) if self.gate.held else None
        return self.gate.judge(self.served.losses(x, y), other, first=first, last=last)

    def _obey(self, decision: Decision) -> None:
        if decision.alert:
            self.alerts.append(decision)
        if decision.verdict == "hold":
            self.held += 1
            if self.served is self.candidate:
                self.served, self.saved = self.candidate.copy(), self.candidate.copy()
            return
        if decision.suspect:
            self.excluded[decision.suspect[0] : decision.suspect[1] + 1] = True
        if decision.verdict == "rollback":
            self.candidate = self.saved
        self.served = self.candidate

    def _old(self, first: int) -> npt.NDArray[np.int64]:
        oldest = 0 if self.window is None else max(0, first - self.window)
        allowed = np.flatnonzero(~self.excluded[oldest:first]) + oldest
        return self._rng.choice(allowed, size=min(120, len(allowed)), replace=False)


Poison = Callable[[np.random.Generator, Labels], Labels]
POISONS: dict[str, Poison] = {
    "flipped": lambda rng, y: CLASSES - 1 - y,
    "random": lambda rng, y: rng.integers(0, CLASSES, len(y)),
    "constant": lambda rng, y: np.full(len(y), 3),
}
