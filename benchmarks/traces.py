"""Real traces: the update logs of closed-loop training, as the library does it.

    python -m benchmarks.traces [--data DIR] [--steps 300] [--out build/traces]
    python -m benchmarks.traces --small DIR          the small one that the tests keep: scikit-learn's digits

A first training on 10,000 examples, then proactive steps of 128: new ones from the stream and a uniform draw from those
before, one Adam (amsgrad) step, one published update. LeNet5 learns MNIST from the four idx files (`mnist/`), 8 new
examples a step; ResNet18 learns CIFAR-10 from the authors' binary version (`cifar-10-batches-bin/`), 32 a step.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from experiments.data import IMAGENET_MEAN, IMAGENET_SD, find, read_cifar10
from experiments.models import ResNet18
from torch import nn

from evergrad import Publisher
from evergrad.demo.digits import load_digits
from evergrad.demo.lenet import make_lenet5, make_lenet5_8x8, train_dense

DENSITIES = (1e-2, 1e-3, 1e-4)
FIRST = 10_000
BATCH = 128


@dataclass(frozen=True)
class Task:
    """What is trained: a model, examples in stream order, epochs of the first training, new examples a step."""

    name: str
    make: Callable[[], nn.Module]
    load: Callable[[Path], tuple[torch.Tensor, torch.Tensor]]
    epochs: int
    new: int
    first: int = FIRST


def mnist(data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, 1, 28, 28], normalised, and labels, in file order."""
    find(data, "mnist/train-images-idx3-ubyte.gz")
    return digits(data)


def cifar10(data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, 3, 32, 32] in channels_last, normalised as ImageNet, and labels, of the first three files."""
    pixels, labels = read_cifar10(data, *(f"data_batch_{number}.bin" for number in (1, 2, 3)))
    x = torch.from_numpy(pixels.astype(np.float32) / 255)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_SD))
    x = ((x - mean) / deviation).contiguous(memory_format=torch.channels_last)
    return x, torch.from_numpy(labels)


def digits(data: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    """MNIST where `data` holds it, scikit-learn's digits [n, 1, 8, 8] otherwise."""
    found = load_digits(data)
    return torch.from_numpy(found.inputs(np.arange(len(found.labels)))), torch.from_numpy(found.labels)


TASKS = {
    "lenet5": Task("lenet5", make_lenet5, mnist, epochs=10, new=8),
    "resnet18": Task("resnet18", lambda: ResNet18().to(memory_format=torch.channels_last), cifar10, epochs=4, new=32),
}
SMALL = Task("digits", make_lenet5_8x8, lambda _: digits(None), epochs=4, new=8, first=1000)


def draws(x: torch.Tensor, y: torch.Tensor, first: int, new: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Proactive batches of 128 from the `first` example on: `new` ones of the stream, the others drawn from before."""
    for step in itertools.count():
        seen = first + step * new % (len(x) - first - new)
        rows = torch.cat((torch.arange(seen, seen + new), torch.randperm(seen)[: BATCH - new]))
        yield x[rows], y[rows]


def record(task: Task, data: Path, logs: dict[float, Path], steps: int, seed: int = 0) -> None:
    """Trains once, and from there once for each density, publishing every step into its log."""
    torch.manual_seed(seed)
    x, y = task.load(data)
    model = task.make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)
    train_dense(model, optimizer, x[: task.first], y[: task.first], epochs=task.epochs, batch_size=BATCH)
    for density, path in logs.items():
        shutil.rmtree(path, ignore_errors=True)
        twin, adam = copy.deepcopy((model, optimizer))
        with Publisher(
            twin, adam, f"file:{path}.part", density=density, forward="deployed", snapshot_every=1 << 30
        ) as publisher:
            for inputs, labels in itertools.islice(draws(x, y, task.first, task.new), steps):
                adam.zero_grad()
                nn.functional.cross_entropy(twin(inputs), labels).backward()  # type: ignore[no-untyped-call]
                adam.step()
                publisher.publish()
        Path(f"{path}.part").rename(path)


def traces(model: str, data: Path, out: Path, steps: int) -> dict[float, Path]:
    """The logs of a model by density; made where they are not there yet."""
    logs = {density: out / f"{model}-{density:g}-{steps}" for density in DENSITIES}
    missing = {density: path for density, path in logs.items() if not path.exists()}
    if missing:
        out.mkdir(parents=True, exist_ok=True)
        record(TASKS[model], data, missing, steps)
    return logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where data and traces are, for every benchmark that uses them."""
    default = os.environ.get("EVERGRAD_DATA", "data")
    parser.add_argument("--data", type=Path, default=Path(default), help="holds mnist/, cifar-10-batches-bin/")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("build/traces"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--small", type=Path, metavar="DIR", help="only the small trace, to DIR")
    arguments = parser.parse_args()
    if arguments.small:
        record(SMALL, arguments.data, {1e-2: arguments.small}, 48)
        return
    for name in TASKS:
        print(name, *traces(name, arguments.data, arguments.out, arguments.steps).values())


if __name__ == "__main__":
    main()
