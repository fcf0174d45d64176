"""What a stream is here: examples in the order of their time, a model for them, and how it is scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from evergrad.metrics import Score
from evergrad.pytorch.learner import Loss

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs and labels [n, ...], oldest first; `time_s` [n] of each, seconds since 1970, where that is known."""

    x: Array
    y: Array
    time_s: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> Examples:
        return Examples(self.x[rows], self.y[rows], None if self.time_s is None else self.time_s[rows])


@dataclass(frozen=True, slots=True)
class Measure:
    """A number about examples: `of(outputs, labels)`.

    Attributes:
        percent: shown as such.
        tolerance: how far from what it was before a break it may be to count as back; None: a break changes how hard
            the task is, so that this would tell nothing.
    """

    of: Callable[[Array, Array], float]
    higher_is_better: bool = False
    percent: bool = False
    tolerance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A stream with all that an experiment on it needs.

    Attributes:
        name: as the command line has it.
        first: what the first model is trained on. stream: what comes after it.
        make_model: gives an untrained model, by torch's generator.
        loss: what is trained: `loss(model(x), y)`.
        score: of the library's prequential mean: a number per example.
        measures: by name, what is reported; the first one leads.
        groups: examples of the stream that are reported apart, by name.
        marks: moments of the stream at which something breaks: the example, and what.
        lr, first_epochs, batch_size: of Adam with amsgrad, of the initial training and of all steps.
        retrain_every, retrain_epochs: of full retraining, from scratch on all examples so far.
        half_life: examples after which one counts half, where newer ones are preferred.
        window: examples of a point of a curve.
    """

    name: str
    first: Examples
    stream: Examples
    make_model: Callable[[], nn.Module]
    loss: Loss
    score: Score
    measures: Mapping[str, Measure]
    groups: Mapping[str, Flags] = field(default_factory=dict)
    marks: Sequence[tuple[int, str]] = ()
    lr: float = 1e-3
    first_epochs: int
    batch_size: int = 128
    retrain_every: int
    retrain_epochs: int
    half_life: int = 2000
    window: int

    @property
    def main(self) -> str:
        """The name of the measure that leads."""
        return next(iter(self.measures))

    def part(self, start: int, stop: int, **changes: Any) -> Subject:
        """The same on a part of its stream."""
        return dataclasses.replace(
            self,
            stream=self.stream[start:stop],
            groups={name: flags[start:stop] for name, flags in self.groups.items()},
            marks=[(where - start, what) for where, what in self.marks if start <= where < stop],
            **changes,
        )


def sides_of(where: int, count: int, before: str, after: str) -> dict[str, Flags]:
    """Groups: what is before an example of the stream, and the rest."""
    later = np.arange(count) >= where
    return {before: ~later, after: later}


def mean_of(score: Score) -> Callable[[Array, Array], float]:
    """The mean of a score; NaN of no examples."""
    return lambda outputs, labels: float(score(outputs, labels).mean()) if len(labels) else float("nan")


def root_of(score: Score) -> Callable[[Array, Array], float]:
    """The root of a score's mean."""
    mean = mean_of(score)
    return lambda outputs, labels: float(np.sqrt(mean(outputs, labels)))
