"""A process that runs cells of the paper's grid: see `experiments.worker`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from experiments.prapas2021.cells import Setup, run_cell
from experiments.prapas2021.protocol import Protocol
from experiments.worker import CLOCKS, RunCell, work


def run_by(settings: dict[str, Any]) -> RunCell:
    setup = Setup(
        protocol=Protocol(**settings["protocol"]),
        data=Path(settings["data"]),
        out=Path(settings["out"]),
        device=settings["device"],
        clock=CLOCKS[settings["seconds"]],
        weights=Path(settings["weights"]) if settings["weights"] else None,
    )
    return functools.partial(run_cell, setup)


if __name__ == "__main__":
    work(run_by)
