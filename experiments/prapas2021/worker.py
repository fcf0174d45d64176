"""A process that runs cells, one after another: cells come as JSON lines, and so go the answers.

    {"steps": 640}        so many training steps of the cell are done
    {"record": {...}}     it is done

It ends when its input does, and, wherever it is, when nobody reads its output any more.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from experiments.prapas2021.cells import Setup, run_cell
from experiments.prapas2021.grid import Cell
from experiments.prapas2021.protocol import Protocol

_TELL_EVERY_S = 0.5


def _wall() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


_CLOCKS = {"cpu": time.process_time, "wall": _wall}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    setup = Setup(
        protocol=Protocol(**settings["protocol"]),
        data=Path(settings["data"]),
        out=Path(settings["out"]),
        device=settings["device"],
        clock=_CLOCKS[settings["seconds"]],
        weights=Path(settings["weights"]) if settings["weights"] else None,
    )
    for line in sys.stdin:
        _tell(record=run_cell(Cell(**json.loads(line)), setup, _Progress()))


class _Progress:
    """Tells steps, not too often."""

    def __init__(self) -> None:
        self._told_s = 0.0

    def __call__(self, steps: int) -> None:
        if time.monotonic() - self._told_s > _TELL_EVERY_S:
            self._told_s = time.monotonic()
            _tell(steps=steps)


def _tell(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
