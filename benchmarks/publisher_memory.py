"""What a publisher takes of memory beside training: in units of the model's own bytes.

    python -m benchmarks.publisher_memory [--density D] [--json]

ResNet18 trains with SGD (no momentum) on random images in a process of its own, with a publisher to a local log and
without. `resident` and `peak` are the differences of the two processes' resident and peak resident memory after the
same steps, in copies of the model's weights; numba's compiled code and imports are measured by a publisher of a tiny
model and taken off.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import torch
from experiments.machine import machine
from experiments.models import ResNet18
from torch import nn

from benchmarks.memory import peak_mb, resident_mb

STEPS = 40


def train(tiny: bool, density: float | None, log: str) -> None:
    """What the measured process does; prints one JSON line."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)) if tiny else ResNet18()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    publisher = None
    if density is not None:
        from evergrad import Publisher

        publisher = Publisher(model, optimizer, log, density=density)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.randint(10, (4,))).backward()
        optimizer.step()
        if publisher:
            publisher.publish()
    model_mb = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
    print(json.dumps({"resident_mb": resident_mb(), "peak_mb": peak_mb(), "model_mb": model_mb}))


def measure(tiny: bool, density: float | None) -> dict[str, float]:
    """The medians of three processes."""
    runs = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            options = ["--train", "tiny" if tiny else "model", "--log", f"file:{folder}/log"]
            options += [] if density is None else ["--density", str(density)]
            command = [sys.executable, "-m", "benchmarks.publisher_memory", *options]
            runs.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def compare(density: float) -> dict[str, Any]:
    """Both processes, and what they differ in."""
    found: dict[str, Any] = {"density": density}
    alone, published = measure(False, None), measure(False, density)
    fixed = {key: value - measure(True, None)[key] for key, value in measure(True, density).items()}
    for key in ("resident", "peak"):
        extra_mb = published[f"{key}_mb"] - alone[f"{key}_mb"] - fixed[f"{key}_mb"]
        found[key] = extra_mb / alone["model_mb"]
        found[f"{key}_extra_mb"] = extra_mb
    return {**found, "fixed_mb": fixed["resident_mb"], "model_mb": alone["model_mb"], "machine": machine()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float)
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    parser.add_argument("--train", choices=["tiny", "model"], help=argparse.SUPPRESS)
    parser.add_argument("--log", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train == "tiny", arguments.density, arguments.log)
        return
    print(json.dumps(compare(arguments.density or 1e-3)))


if __name__ == "__main__":
    main()
