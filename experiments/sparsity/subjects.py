"""The streams of the study: those of `experiments.streams`, cut to lengths that a core goes through in a minute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from evergrad.demo.lenet import make_lenet5
from evergrad.metrics import accuracy
from experiments.data import Images, load_cifar10, load_mnist, normalising
from experiments.models import MODELS
from experiments.streams.bikeshare import load_bikeshare
from experiments.streams.digits import load_permuted, load_rotating
from experiments.streams.movielens import load_movielens
from experiments.streams.subject import Examples, Measure, Subject, mean_of

STEPS, BATCH = 1500, 32  # of digits
_FIRST, _QUICK_FIRST, _QUICK_STEPS = 10_000, 1000, 60


@dataclass(frozen=True, slots=True)
class Ground:
    """A subject, and how many new examples each step has."""

    subject: Subject
    trigger: int

    @property
    def steps(self) -> int:
        """Steps of its stream; what is left of it is not used."""
        return len(self.subject.stream) // self.trigger


def _mnist(data: Path) -> Ground:
    return Ground(_images("mnist", load_mnist(data), make_lenet5, 8 * STEPS).part(0, 8 * STEPS, batch_size=BATCH), 8)


def _cifar10(data: Path) -> Ground:
    def make() -> nn.Module:
        return MODELS["resnet18"]().to(memory_format=torch.channels_last)

    return Ground(_images("cifar10", load_cifar10(data), make, 20_000), 32)


def _rotating(data: Path) -> Ground:
    """By 48 degrees: the first 12,000 of a stream that turns by 120."""
    return Ground(load_rotating(data).part(0, 8 * STEPS, batch_size=BATCH), 8)


def _permuted(data: Path) -> Ground:
    """Labels change their meaning in the middle."""
    subject = load_permuted(data)
    middle = subject.marks[0][0]
    return Ground(subject.part(middle - 4 * STEPS, middle + 4 * STEPS, batch_size=BATCH), 8)


GROUNDS: dict[str, Callable[[Path], Ground]] = {
    "mnist": _mnist,
    "rotating": _rotating,
    "permuted": _permuted,
    "bikeshare": lambda data: Ground(load_bikeshare(data), 8),
    "movielens": lambda data: Ground(load_movielens(data), 32),
    "cifar10": _cifar10,
}


def load(name: str, data: Path, *, quick: bool = False) -> Ground:
    """The ground of that name; `quick`: its first examples, in seconds.

    Raises:
        ConfigError: a file is missing, or not of its format.
    """
    ground = GROUNDS[name](data)
    if not quick:
        return ground
    first = ground.subject.first[-_QUICK_FIRST:]
    small = ground.subject.part(0, _QUICK_STEPS * ground.trigger, first=first)
    return Ground(dataclasses.replace(small, first_epochs=min(4, small.first_epochs)), ground.trigger)


def _images(name: str, images: Images, make: Callable[[], nn.Module], stream: int) -> Subject:
    """In file order, as in the paper."""
    later = slice(_FIRST, _FIRST + stream)
    return Subject(
        name=name,
        first=Examples(images.x[:_FIRST], images.y[:_FIRST]),
        stream=Examples(images.x[later], images.y[later]),
        make_model=lambda: normalising(make(), images.mean, images.sd),
        loss=cross_entropy,
        score=accuracy,
        measures={"accuracy": Measure(mean_of(accuracy), higher_is_better=True, percent=True)},
        first_epochs=10,
        retrain_every=_FIRST,
        retrain_epochs=10,
        window=1000,
    )
