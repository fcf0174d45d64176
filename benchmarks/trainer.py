"""What the trainer costs beyond forward, backward and optimizer, and what checkpoints cost.

    python -m benchmarks.trainer --model lenet5|mobilenetv2|resnet18 [--sampler S] [--density D] [--block N]
                                 [--steps N] [--threads N] [--json]

Copies of one model with Adam (amsgrad) take turns by blocks of consecutive steps, in alternating directions: `plain`
steps on batches of 128 that are ready as tensors; `trainer` takes in new examples and mixes them with old ones out of
10,000 in a history on disk; `prefetch` does so on a thread; `checkpointed` also writes a checkpoint every block, 100
steps, which is waited for inside the block; `published` is `trainer` with a publisher as users have it: the default
loop, which scores both copies of the model on new examples, statistics taken anew every 16 steps, a log on disk written
in the background, and waited for at the end of a block.

- `ratio`, `prefetch_ratio`: median over blocks of trainer against plain.
- `checkpoint_ratio`: all time of `checkpointed` against all of `trainer`; each of its blocks holds one checkpoint.
- `publish_ratio`: all time of `published` against all of `trainer`; `publish_ratio_median`: median over blocks.
- `*_ms`: milliseconds a step, medians over blocks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.machine import machine
from torch import nn

from benchmarks.overhead import SETTINGS, Batch, Plain, Setting, run_block, synthetic
from evergrad import Batch as New
from evergrad import EveryN, History, LossPrioritised, Publisher, Trainer, Uniform
from evergrad.pytorch.checkpoint import Checkpoints

EXAMPLES, BLOCK = 10_000, 100
SAMPLERS = {"uniform": Uniform, "loss_prioritised": LossPrioritised}


class Trained(Plain):
    """A copy that a trainer trains, and publishes where it is told a density; of a batch the first examples are new."""

    def __init__(
        self, start: nn.Module, setting: Setting, sampler: str, stack: ExitStack, density: float | None = None,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(start)
        self._publisher = None
        if density is not None:
            url = f"file:{stack.enter_context(tempfile.TemporaryDirectory())}/log"
            self._publisher = stack.enter_context(
                Publisher(self.model, self.optimizer, url, density=density, background=True)
            )
        self._new, self._now_s = setting.new, 1_700_000_000.0
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        history = stack.enter_context(History(folder))
        x, y = next(synthetic(setting.shape))
        for _ in range(EXAMPLES // len(x)):
            history.append({"x": x.numpy(), "y": y.numpy()})
        self.trainer = stack.enter_context(Trainer(
            model=self.model, loss=nn.functional.cross_entropy, optimizer=self.optimizer, history=history,
            sampler=SAMPLERS[sampler](seed=0), trigger=EveryN(setting.new), batch_size=len(x),
            publisher=self._publisher, **settings,
        ))  # fmt: skip
        list(self.trainer.resume())
        self._checkpoints = settings.get("checkpoints")

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self._now_s += 1
        self.trainer.learn(New(x[: self._new].numpy(), y[: self._new].numpy(), self._now_s))
        self.trainer.checkpoint()

    def end_block(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.wait()
        if self._publisher is not None:
            self._publisher.flush()


def measure(model: str, *, sampler: str, density: float, block: int, steps: int | None) -> dict[str, Any]:
    """All figures of one model; `steps` is rounded up to whole blocks."""
    setting = SETTINGS[model]
    blocks = max(1, -(-(setting.steps if steps is None else steps) // block))
    torch.manual_seed(0)
    start, batches = setting.make(), synthetic(setting.shape)
    with ExitStack() as stack:
        checkpoints = Checkpoints(stack.enter_context(tempfile.TemporaryDirectory()), every=block)
        variants = {
            "plain": Plain(start),
            "trainer": Trained(start, setting, sampler, stack),
            "prefetch": Trained(start, setting, sampler, stack, prefetch=True),
            "checkpointed": Trained(start, setting, sampler, stack, checkpoints=checkpoints),
            "published": Trained(start, setting, sampler, stack, density=density),
        }
        times: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(blocks + 1):
            examples: list[Batch] = list(islice(batches, block if number else 3))
            order = list(variants) if number % 2 else list(reversed(variants))
            for name in order:
                took = run_block(variants[name], examples)
                if number:
                    times[name].append(took)
    plain = np.array(times["plain"])
    return {
        "model": model,
        "sampler": sampler,
        "density": density,
        "steps": blocks * block,
        "block_steps": block,
        "ratio": float(np.median(np.divide(times["trainer"], plain))),
        "prefetch_ratio": float(np.median(np.divide(times["prefetch"], plain))),
        "checkpoint_ratio": sum(times["checkpointed"]) / sum(times["trainer"]),
        "publish_ratio": sum(times["published"]) / sum(times["trainer"]),
        "publish_ratio_median": float(np.median(np.divide(times["published"], times["trainer"]))),
        **{f"{name}_ms": statistics.median(found) for name, found in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SETTINGS, required=True)
    parser.add_argument("--sampler", choices=SAMPLERS, default="uniform")
    parser.add_argument("--steps", type=int, help="of each variant, in whole blocks")
    parser.add_argument("--block", type=int, default=BLOCK, help="steps a block, and from checkpoint to checkpoint")
    parser.add_argument("--density", type=float, default=1e-3, help="of what is published")
    parser.add_argument("--threads", type=int, help="torch's; default: one a core")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    arguments = vars(parser.parse_args())
    only_json, threads = arguments.pop("json"), arguments.pop("threads")
    if threads is not None:
        torch.set_num_threads(threads)
    found = measure(**arguments)
    if not only_json:
        print(f"trainer {found['ratio']:.3f}, prefetch {found['prefetch_ratio']:.3f}, "
              f"checkpoints {found['checkpoint_ratio']:.3f}, publishing {found['publish_ratio']:.3f}")  # fmt: skip
    print(json.dumps({**found, "threads": torch.get_num_threads(), "machine": machine()}))


if __name__ == "__main__":
    main()
