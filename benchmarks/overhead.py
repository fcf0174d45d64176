"""What publishing every step costs the training: time per step, beside plain training and beside the paper's way.

    python -m benchmarks.overhead --model lenet5|mobilenetv2|resnet18 --density D [--inline] [--steps N] [--data DIR]
                                  [--device cuda]

Three copies of one model, each with its own Adam (amsgrad), take the same batches of 128: `plain` trains, `published`
trains and publishes each step to a local log, `paper` trains on gradients that were made sparse
(`experiments.prapas2021.masking`) and deploys nothing. They take turns by blocks of consecutive steps, plain in the
middle, in alternating directions. A block of `published` ends with a flush inside its time: what publishing does in the
background is paid for there, and never runs beside the others.

- `ratio`, `paper_ratio`: the median over the blocks of their time against the plain block beside it. Other work on the
  machine comes and goes more slowly than blocks do, and so falls on both of a pair; what falls on one is an outlier to
  the median. A ratio of the two medians would compare blocks of different minutes. `*_quartiles`: 25 and 75%.
- `ratio_of_totals`: all time of `published` against all of `plain`. It holds what is rarer than a block, longer folds
  and snapshots, which a median does not see, and it holds every disturbance.
- `step_ms`, `published_step_ms`, `paper_step_ms`: milliseconds a step, medians over blocks.
- `select_ms`, `encode_ms`, `append_ms`: means per step, as the publisher counts them. In the background the last two
  lie beside the training, and their sum is not what a step gets longer by.

Blocks are whole multiples of the 16 versions of a fold, so that each holds the same number of them; a run with fewer
steps is one block. Before the first block each copy takes a few steps that do not count. Batches are ready before a
block starts: fetching them would flatter the ratios. Without --data they are random numbers.

With --device cuda the models and the batches are on the GPU, and each block waits for it inside its time.

On cores that others use too, give --threads fewer than cores: torch's threads wait for each other, and a step of LeNet5
took seven times as long with two threads where one of the two cores was busy.
"""

from __future__ import annotations

import argparse
import copy
import datetime as dt
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.machine import machine
from experiments.models import MobileNetV2, ResNet18
from experiments.prapas2021.masking import GradientMemory
from torch import nn

from benchmarks.traces import BATCH, FIRST, cifar10, draws, mnist
from evergrad import Publisher, Replica
from evergrad.demo.lenet import make_lenet5

Batch = tuple[torch.Tensor, torch.Tensor]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
WARM_UP = 3


@dataclass(frozen=True)
class Setting:
    """A model, the shape of an example, real examples, new ones a step, steps a block, and steps by default."""

    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    load: Callable[[Path], Batch]
    new: int
    block: int
    steps: int


SETTINGS = {
    "lenet5": Setting(make_lenet5, (1, 28, 28), mnist, new=8, block=32, steps=960),
    "mobilenetv2": Setting(MobileNetV2, (3, 32, 32), cifar10, new=32, block=16, steps=128),
    "resnet18": Setting(ResNet18, (3, 32, 32), cifar10, new=32, block=16, steps=128),
}


class Plain:
    """A copy of a model that trains, and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, amsgrad=True)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        self._backward(x, y)
        self.optimizer.step()

    def end_block(self) -> None:
        """Waits until all that the block's steps began is done."""
        if next(self.model.parameters()).is_cuda:
            torch.cuda.synchronize()

    def _backward(self, x: torch.Tensor, y: torch.Tensor) -> None:
        nn.functional.cross_entropy(self.model(x), y).backward()  # type: ignore[no-untyped-call]


class Published(Plain):
    """The same, publishing every step."""

    def __init__(self, model: nn.Module, url: str, density: float, background: bool) -> None:
        super().__init__(model)
        self.publisher = Publisher(self.model, self.optimizer, url, density=density, background=background)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        super().step(x, y)
        self.publisher.publish()

    def end_block(self) -> None:
        self.publisher.flush()
        super().end_block()

    def spent_ms(self) -> dict[str, float]:
        """Milliseconds spent so far, by the publisher's own count."""
        stats = self.publisher.stats()
        seconds = {"select_ms": stats.select_s, "encode_ms": stats.encode_s, "append_ms": stats.append_s}
        return {key: 1000 * value for key, value in seconds.items()}


class Paper(Plain):
    """The same, with the paper's sparse gradients."""

    def __init__(self, model: nn.Module, density: float) -> None:
        super().__init__(model)
        self.memory = GradientMemory(self.model.parameters(), density)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.memory.restore()
        self._backward(x, y)
        self.memory.sparsify()
        self.optimizer.step()


def synthetic(shape: tuple[int, int, int]) -> Iterator[Batch]:
    """Random examples with random labels, without end."""
    while True:
        yield torch.randn(BATCH, *shape), torch.randint(10, (BATCH,))


def run_block(variant: Plain, examples: list[Batch]) -> float:
    """Milliseconds a step."""
    start = time.perf_counter()
    for x, y in examples:
        variant.step(x, y)
    variant.end_block()
    return 1000 * (time.perf_counter() - start) / len(examples)


def time_blocks(variants: list[Plain], batches: Iterator[Batch], blocks: int, size: int) -> list[list[float]]:
    """Milliseconds a step, [variant][block]; the variants take turns, there and back."""
    times: list[list[float]] = [[] for _ in variants]
    for block in range(blocks):
        examples = list(islice(batches, size))
        order = range(len(variants))
        for number in order if block % 2 == 0 else reversed(order):
            times[number].append(run_block(variants[number], examples))
    return times


def measure(
    model: str,
    *,
    density: float,
    background: bool,
    steps: int | None = None,
    data: Path | None = None,
    memory_format: str = "contiguous",
    device: str = "cpu",
) -> dict[str, Any]:
    """All figures of one model at one density; `steps` is rounded down to whole blocks."""
    setting, layout = SETTINGS[model], FORMATS[memory_format]
    steps = setting.steps if steps is None else steps
    size = min(setting.block, steps)
    torch.manual_seed(0)
    start = setting.make().to(device=device, memory_format=layout)
    source = draws(*setting.load(data), FIRST, setting.new) if data else synthetic(setting.shape)
    batches = ((x.to(device).contiguous(memory_format=layout), y.to(device)) for x, y in source)
    return {
        "model": model,
        "density": density,
        "background": background,
        "data": setting.load.__name__ if data else "synthetic",
        "memory_format": memory_format,
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(device),
        "steps": steps // size * size,
        "block_steps": size,
        **_compare(start, batches, steps // size, size, density, background),
    }


def _compare(
    start: nn.Module, batches: Iterator[Batch], blocks: int, size: int, density: float, background: bool
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        url = f"file:{folder}/log"
        published = Published(start, url, density, background)
        variants = [published, Plain(start), Paper(start, density)]
        time_blocks(variants, batches, 1, WARM_UP)
        before = published.spent_ms()
        times = time_blocks(variants, batches, blocks, size)
        spent = {key: (value - before[key]) / (blocks * size) for key, value in published.spent_ms().items()}
        published.publisher.close()
        replica = Replica(url)
        if (replica.sync(), replica.digest) != (published.publisher.version, published.publisher.digest):
            raise RuntimeError("a replica of the log is not the published model")
    return {**_summary(*times), **spent}


def _summary(published: list[float], plain: list[float], paper: list[float]) -> dict[str, Any]:
    ratios = np.divide(published, plain)
    paper_ratios = np.divide(paper, plain)
    return {
        "ratio": float(np.median(ratios)),
        "ratio_quartiles": np.quantile(ratios, (0.25, 0.75)).tolist(),
        "ratio_of_totals": sum(published) / sum(plain),
        "paper_ratio": float(np.median(paper_ratios)),
        "paper_ratio_quartiles": np.quantile(paper_ratios, (0.25, 0.75)).tolist(),
        "step_ms": statistics.median(plain),
        "published_step_ms": statistics.median(published),
        "paper_step_ms": statistics.median(paper),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SETTINGS, required=True)
    parser.add_argument("--density", type=float, default=1e-3)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--background", action="store_true", default=True, help="publish beside the training; default")
    where.add_argument("--inline", action="store_false", dest="background", help="publish between two steps")
    parser.add_argument("--steps", type=int, help="of each variant, in whole blocks")
    parser.add_argument("--data", type=Path, help="holds mnist/, cifar-10-batches-bin/; default: random numbers")
    parser.add_argument("--memory-format", choices=FORMATS, default="contiguous")
    parser.add_argument("--device", default="cpu", help="of the models: cpu or cuda")
    parser.add_argument("--threads", type=int, help="torch's; default: one a core")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    arguments = vars(parser.parse_args())
    only_json, threads = arguments.pop("json"), arguments.pop("threads")
    if arguments["steps"] is not None and arguments["steps"] < 1:
        parser.error("--steps must be 1 or more")
    if threads is not None:
        torch.set_num_threads(threads)
    found = measure(**arguments)
    if not only_json:
        print({key: round(value, 4) for key, value in found.items() if isinstance(value, float)})
    today = dt.datetime.now(dt.UTC).date().isoformat()
    print(json.dumps({**found, "threads": torch.get_num_threads(), "machine": machine(), "date": today}))


if __name__ == "__main__":
    main()
