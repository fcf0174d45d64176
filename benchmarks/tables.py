"""What a step costs on an embedding table, by its size: training and publishing, with sparse gradients.

    python -m benchmarks.tables [--small 10000] [--large 10000000] [--width 32] [--steps 100] [--json]

Two models of one table and a perceptron (128, 64, 1) over the mean of a bag learn from batches of 256 bags of 8 random
rows, by plain SGD, and
publish each step to a local log; 1,000 elements move a step, whatever the table's size. They take turns by blocks of
ten steps.

- `ratio`: a step on the large table against one on the small, medians over blocks.
- `plain_ratio`: the same without publishing: what the table's size costs the training itself (cache misses).
- `small_ms`, `large_ms`, `small_plain_ms`, `large_plain_ms`: milliseconds a step.
- `begin_s`: seconds until the large table's first snapshot is in the log, once.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from experiments.machine import machine
from torch import nn

from evergrad import Publisher, Replica

BATCH, BAG, MOVED, BLOCK = 256, 8, 1000, 10


class Bags(nn.Module):
    """Click-through: ids [batch, bag] to a logit [batch]."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width, sparse=True)
        self.out = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.table(ids).mean(1))[:, 0]


class Learner:
    """A model that learns, and publishes where it is given a log."""

    def __init__(self, rows: int, width: int, url: str | None) -> None:
        self._rows, self._model = rows, Bags(rows, width)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.1)
        self._random = torch.Generator().manual_seed(1)
        elements = sum(parameter.numel() for parameter in self._model.parameters())
        self.publisher = url and Publisher(
            self._model, self._optimizer, url, density=MOVED / elements, background=True, snapshot_every=1 << 30
        )

    def block_ms(self) -> float:
        """Takes a block of steps; milliseconds a step, with all that was published in the log."""
        batches = [torch.randint(0, self._rows, (BATCH, BAG), generator=self._random) for _ in range(BLOCK)]
        begun = time.perf_counter()
        for ids in batches:
            self._optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(self._model(ids), (ids[:, 0] % 2).float()).backward()
            self._optimizer.step()
            if self.publisher:
                self.publisher.publish()
        if self.publisher:
            self.publisher.flush()
        return 1000 * (time.perf_counter() - begun) / BLOCK


def measure(small: int, large: int, width: int, steps: int, folder: Path) -> dict[str, Any]:
    """All keys but where it ran."""
    begun = time.perf_counter()
    learners = {"large": Learner(large, width, f"file:{folder / 'large'}")}
    begin_s = time.perf_counter() - begun
    learners["small"] = Learner(small, width, f"file:{folder / 'small'}")
    learners |= {"large_plain": Learner(large, width, None), "small_plain": Learner(small, width, None)}
    times: dict[str, list[float]] = {name: [] for name in learners}
    for turn in range(max(1, steps // BLOCK) + 1):
        for name, learner in learners.items():
            spent = learner.block_ms()
            if turn:  # the first warms up
                times[name].append(spent)
    for name in ("small", "large"):
        publisher, replica = learners[name].publisher, Replica(f"file:{folder / name}")
        replica.sync()
        if not publisher or (replica.version, replica.digest) != (publisher.version, publisher.digest):
            raise RuntimeError(f"the replica of the {name} table is not the trainer's model")
    median = {name: statistics.median(found) for name, found in times.items()}
    return {
        "rows": [small, large],
        "width": width,
        "steps": steps,
        "ratio": median["large"] / median["small"],
        "plain_ratio": median["large_plain"] / median["small_plain"],
        **{f"{name}_ms": value for name, value in median.items()},
        "begin_s": begin_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="one JSON object in the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments.small, arguments.large, arguments.width, arguments.steps, Path(folder))
    found |= {"threads": arguments.threads, "date": dt.datetime.now(dt.UTC).date().isoformat(), "machine": machine()}
    print(json.dumps(found, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
