"""A run that is killed again and again, and one that is not: `python -m tests.pipeline.killed FOLDER KIND SECONDS...`.

Each run is a fork of this process, which has imported everything, and goes on where the one before was killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import evergrad
from evergrad.metrics import accuracy
from evergrad.pytorch.checkpoint import Checkpoints
from tests.pipeline.tasks import make_examples, seeded_model

BATCHES = 240
FLIPPED = range(150, 190)


def stream(flipped: range = range(0)) -> list[evergrad.Batch]:
    x, y = make_examples(8 * BATCHES)
    found = []
    for number in range(BATCHES):
        part = slice(8 * number, 8 * number + 8)
        labels = (y[part] + 1) % 4 if number in flipped else y[part]
        found.append(evergrad.Batch(x[part], labels, 1_700_000_000.0 + number))
    return found


def noisy(columns: dict[str, Any]) -> dict[str, Any]:
    """An augmentation that draws from numpy's and torch's global generators."""
    noise = np.random.normal(size=columns["x"].shape) + torch.randn(columns["x"].shape).numpy()  # noqa: NPY002
    return {"x": (columns["x"] + 0.01 * noise).astype(np.float32), "y": columns["y"]}


class Noise:
    """An augmentation with a generator of its own."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(5)

    def __call__(self, columns: dict[str, Any]) -> dict[str, Any]:
        noise = self._random.normal(size=columns["x"].shape)
        return {"x": (columns["x"] + 0.01 * noise).astype(np.float32), "y": columns["y"]}

    def state_dict(self) -> dict[str, Any]:
        return {"random": self._random.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._random.bit_generator.state = state["random"]


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "closed loop": lambda: {
        "sampler": evergrad.Uniform(seed=3),
        "forward": "deployed",
        "training": {"transform_new": noisy},
    },
    "stateful": lambda: {
        "sampler": evergrad.Mix(evergrad.LossPrioritised(seed=1), evergrad.LeastUsed(seed=2), share=0.5),
        "forward": "master",
        "training": {"prefetch": True, "transform_old": Noise(), "steps_per_trigger": 2, "clip_norm": 1.0},
    },
    "gate": lambda: {
        "sampler": evergrad.Reservoir(500, seed=1),
        "gate": evergrad.Gate(alpha=1e-4, patience=200, reference=400),
        "stream": stream(FLIPPED),
        "trigger": evergrad.EveryN(16),
    },
    "retention": lambda: {
        "sampler": evergrad.Uniform(seed=1),
        "keep_rows": 320,
        "training": {"prefetch": True, "join_new": False},
    },
}


def run(folder: Path, kind: str) -> None:
    np.random.seed(0)  # noqa: NPY002 - the global generator that `noisy` draws from
    model = seeded_model()
    settings: dict[str, Any] = {"stream": stream(), "trigger": evergrad.EveryN(8), **KINDS[kind]()}
    keep_rows = settings.pop("keep_rows", None)
    with evergrad.History(folder / "history", keep_rows=keep_rows) as history:
        evergrad.run(
            model=model,
            loss=cross_entropy,
            optimizer=torch.optim.Adam(model.parameters(), 1e-2, amsgrad=True),
            log=f"file:{folder / 'log'}",
            batch_size=32,
            density=0.05,
            history=history,
            checkpoints=Checkpoints(folder / "checkpoints", every=9),
            records=folder / "records.jsonl",
            score=accuracy,
            **settings,
        )
    torch.save(model.state_dict(), folder / "model.pt")


def run_and_kill(folder: Path, kind: str, after_s: float) -> bool:
    """Whether the run came to its end in that time."""
    child = os.fork()
    if child == 0:
        try:
            run(folder, kind)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    killer = threading.Timer(after_s, os.kill, (child, signal.SIGKILL))
    killer.start()
    _, status = os.waitpid(child, 0)
    killer.cancel()
    killer.join()  # no thread is left when the next child is forked
    if status and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        raise SystemExit(f"the run ended with status {status}")
    return status == 0


def main() -> None:
    torch.set_num_threads(1)
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    run_and_kill(folder / "whole", kind, 120.0)
    kills = 0
    for after_s in map(float, sys.argv[3:]):
        if run_and_kill(folder / "killed", kind, after_s):
            break
        kills += 1
    else:
        run_and_kill(folder / "killed", kind, 120.0)
    sys.stdout.write(f"{kills}\n")


if __name__ == "__main__":
    main()
