"""A process that runs cells of a stream's grid: see `experiments.worker`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from experiments.streams.cells import Setup, run_cell
from experiments.streams.subjects import load
from experiments.worker import CLOCKS, RunCell, work


def run_by(settings: dict[str, Any]) -> RunCell:
    protocol = settings["protocol"]
    subject = load(protocol["subject"], Path(settings["data"]), quick=protocol["quick"])
    return functools.partial(run_cell, Setup(subject, Path(settings["out"]), CLOCKS[settings["seconds"]]))


if __name__ == "__main__":
    work(run_by)
