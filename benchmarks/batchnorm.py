"""What BatchNorm's statistics cost in bytes, and what telling them within a tolerance costs in accuracy.

    python -m benchmarks.batchnorm --data DIR [--model resnet18 mobilenetv2] [--steps 200] [--json]

A first training on 10,000 examples of CIFAR-10, then proactive steps (see `benchmarks.traces`) at density 1e-3, each
published, once for each tolerance. At the end the deployed parameters are scored on 4,000 examples that were never
trained on, once with the statistics that replicas hold and once with the trainer's own.

- `accuracy_told`, `accuracy_live`, `loss_told`, `loss_live`: with the one and with the other.
- `bytes`: of an update, median; `statistics_fraction`: the part of all bytes that statistics and counters take.
"""

from __future__ import annotations

import argparse
import copy
import datetime as dt
import json
import statistics
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from experiments.machine import machine
from experiments.models import MobileNetV2
from torch import nn

from benchmarks.traces import BATCH, TASKS, add_arguments, draws
from evergrad import Publisher
from evergrad.codec import encode
from evergrad.demo.lenet import train_dense
from evergrad.log import UpdateLog
from evergrad.update import Steps

TOLERANCES = (0.0, 0.02, 0.05)
HELD_OUT = 4000
RESNET = TASKS["resnet18"]
MODELS = {"resnet18": RESNET, "mobilenetv2": replace(RESNET, name="mobilenetv2", make=MobileNetV2)}


def score(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Accuracy and mean loss, in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        outputs = torch.cat([model(part) for part in x.split(500)])
    model.train()
    accuracy = float((outputs.argmax(1) == y).float().mean())
    return accuracy, float(nn.functional.cross_entropy(outputs, y))


def update_bytes(log: UpdateLog) -> tuple[list[int], int]:
    """The size of each update, and what all of them would take without statistics."""
    sizes, alone = [], 0
    for version in log.updates():
        found = log.read(version)
        if found is not None:
            sizes.append(found[1])
            steps = tuple(section for section in found[0].sections if isinstance(section, Steps))
            alone += len(encode(replace(found[0], sections=steps)))
    return sizes, alone


def measure(name: str, data: Path, steps: int) -> list[dict[str, Any]]:
    """A row for each tolerance."""
    task = MODELS[name]
    torch.manual_seed(0)
    x, y = task.load(data)
    held, x, y = (x[-HELD_OUT:], y[-HELD_OUT:]), x[:-HELD_OUT], y[:-HELD_OUT]
    model = task.make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)
    train_dense(model, optimizer, x[: task.first], y[: task.first], epochs=task.epochs, batch_size=BATCH)
    rows = []
    for tolerance in TOLERANCES:
        twin, adam = copy.deepcopy((model, optimizer))
        torch.manual_seed(1)
        with tempfile.TemporaryDirectory() as folder:
            publisher = Publisher(twin, adam, f"file:{folder}/log", density=1e-3, buffer_tolerance=tolerance)
            for batch in islice(draws(x, y, task.first, task.new), steps):
                adam.zero_grad()
                nn.functional.cross_entropy(twin(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
                adam.step()
                publisher.publish()
            live = score(twin, *held)
            with publisher.deployed() as shown:
                told = score(shown, *held)
            sizes, alone = update_bytes(publisher.log)
            publisher.detach()
        rows.append(
            {
                "model": name,
                "tolerance": tolerance,
                "accuracy_told": told[0],
                "accuracy_live": live[0],
                "loss_told": told[1],
                "loss_live": live[1],
                "bytes": statistics.median(sizes),
                "statistics_fraction": 1 - alone / sum(sizes),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.set_defaults(steps=200)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--json", action="store_true", help="one JSON object in the last line")
    arguments = parser.parse_args()
    rows = [row for name in arguments.model for row in measure(name, arguments.data, arguments.steps)]
    found = {"steps": arguments.steps, "results": rows, "date": dt.datetime.now(dt.UTC).date().isoformat()}
    print(json.dumps(found | {"machine": machine()}, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
