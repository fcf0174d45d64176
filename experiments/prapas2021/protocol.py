"""What the authors' experiments were, as their published code has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.data import Images, load_cifar10, load_mnist

LOADERS: dict[str, Callable[[Path], Images]] = {"mnist": load_mnist, "cifar10": load_cifar10}
DENSITIES = (1e-2, 1e-3, 1e-4)
TRIGGERS = (8, 16, 32, 64)
PRIORITISED = (32, 40, 64)  # about a ninth, an eleventh and an eighteenth of full retraining's time, on MNIST


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The sizes of one data set's experiments; examples are taken in file order.

    Attributes:
        first, first_epochs: examples and epochs of the initial training; the stream begins behind them.
        stream: its examples. test: test examples, after the stream.
        retrain_every, retrain_epochs: of full retraining, from scratch on all examples so far.
        online: new examples of a step of the online baseline, which has no old ones. batch_size: of all other steps.
        sparse_trigger: new examples of a step of sparse training. lr: of Adam with amsgrad.
        point: examples between two points of a curve, a multiple of all trigger sizes.
    """

    data: str
    model: str
    first: int = 10_000
    first_epochs: int
    stream: int
    test: int = 10_000
    retrain_every: int = 10_000
    retrain_epochs: int
    online: int = 128
    sparse_trigger: int = 8
    batch_size: int = 128
    lr: float = 1e-3
    point: int = 640


PROTOCOLS = {
    "mnist": Protocol(data="mnist", model="lenet5", first_epochs=10, stream=50_000, retrain_epochs=10),
    "cifar10": Protocol(data="cifar10", model="resnet18", first_epochs=25, stream=40_000, retrain_epochs=25),
}
MODELS_OF = {"mnist": ("lenet5",), "cifar10": ("resnet18", "mobilenetv2", "resnet50", "densenet161")}


def quick(protocol: Protocol) -> Protocol:
    """The same in less than two minutes, on the first examples."""
    if protocol.data == "mnist":
        return dataclasses.replace(
            protocol, first=1000, first_epochs=4, stream=640, test=1000, retrain_every=320, retrain_epochs=4, online=64,
            batch_size=64, point=320,
        )  # fmt: skip
    return dataclasses.replace(
        protocol, first=128, first_epochs=1, stream=64, test=64, retrain_every=64, retrain_epochs=1, online=32,
        batch_size=32, point=64,
    )  # fmt: skip
