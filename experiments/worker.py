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
from collections.abc import Callable
from typing import Any

import torch

from evergrad.pytorch.strategies import finished_s
from evergrad.records import Record
from experiments.cell import Cell

_TELL_EVERY_S = 0.5


CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": finished_s}
RunCell = Callable[[Cell, Callable[[int], None]], Record]
"""Runs a cell; it tells how many training steps are done."""


def work(run_by: Callable[[dict[str, Any]], RunCell]) -> None:
    """Runs what comes until nothing comes any more.

    Args:
        run_by: gives what runs cells, by the settings: `Settings.fixed` and a few more of the grid's.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    run_cell = run_by(settings)
    for line in sys.stdin:
        _tell(record=run_cell(Cell(**json.loads(line)), _Progress()))


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
