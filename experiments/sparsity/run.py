"""Runs what is not done yet, one cell after another, and keeps what they find in OUT/cells.jsonl.

First dense training with each learning rate and the first seed; all methods then have the rate that was best there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evergrad.errors import ConfigError
from evergrad.records import Record, RecordWriter, read_records
from experiments.folder import taken
from experiments.machine import where_run
from experiments.sparsity.cells import Setup, run_cell
from experiments.sparsity.methods import METHODS, Cell
from experiments.sparsity.subjects import Ground, load

CELLS = "cells.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line says."""

    subject: str
    optimizer: str
    rates: Sequence[float]
    methods: Sequence[str]
    densities: Sequence[float]
    seeds: int
    data: Path
    out: Path
    quick: bool = False


class Cells:
    """The cells of a folder: those that are done, and what does the others."""

    def __init__(self, settings: Settings, tell: Callable[[str], None]) -> None:
        self._settings, self._tell = settings, tell
        self._path = settings.out / CELLS
        found = records_in(settings.out)
        self.done = {_key(record): record for record in found if record["event"] == "cell"}
        self._setup: Setup | None = None
        self._ground: Ground | None = None
        for record in found:
            self._check(record)

    def _check(self, record: Record) -> None:
        for key, value in self.fixed.items():
            if record["event"] == "setup" and record[key] != value:
                raise ConfigError(
                    "out", f"{self._path} has results with {key} {record[key]}, not {value}; name another"
                )

    @property
    def fixed(self) -> dict[str, Any]:
        """What all results in one folder have in common."""
        settings = self._settings
        return {"subject": settings.subject, "optimizer": settings.optimizer, "quick": settings.quick}

    @property
    def ground(self) -> Ground:
        """Loaded when it is asked for first."""
        if self._ground is None:
            self._ground = load(self._settings.subject, self._settings.data, quick=self._settings.quick)
        return self._ground

    def get(self, cell: Cell) -> Record:
        """What is known of the cell; it is run where it was not yet."""
        key = (cell.name, cell.rate, cell.seed)
        if key not in self.done:
            with RecordWriter(self._path) as writer:
                if self._setup is None:
                    self._setup = Setup(self.ground, self._settings.optimizer)
                    writer.write("setup", **self.fixed, **_facts(self.ground), **where_run())
                record = run_cell(cell, self._setup, self._settings.out)
                writer.write("cell", **record)
            self.done[key] = record
            self._tell(f"{cell.name}, rate {cell.rate:g}, seed {cell.seed}: {record['score']:.4f}")
        return self.done[key]


def run(settings: Settings, tell: Callable[[str], None]) -> None:
    """Runs all cells that are not done.

    Raises:
        ConfigError: data is missing, or the folder is another run's, or of another subject or optimizer.
    """
    torch.set_num_threads(1)
    with taken(settings.out):
        cells = Cells(settings, tell)
        rate = best_rate(cells, settings.rates)
        for seed in range(settings.seeds):
            for cell in _of_seed(settings, rate, seed):
                cells.get(cell)


def best_rate(cells: Cells, rates: Sequence[float]) -> float:
    """The one with which dense training scores best, of the first seed."""
    if len(rates) == 1:
        return rates[0]
    subject = cells.ground.subject
    sign = 1 if subject.measures[subject.main].higher_is_better else -1
    found = {rate: cells.get(Cell(method="dense", density=None, rate=rate, seed=0)) for rate in rates}
    scores = {rate: record["score"] for rate, record in found.items() if record["diverged"] is None}
    if not scores:
        raise ConfigError("rates", f"dense training diverges with each of {', '.join(map(str, rates))}; try lower ones")
    return max(scores, key=lambda rate: sign * scores[rate])


def _of_seed(settings: Settings, rate: float, seed: int) -> list[Cell]:
    return [
        Cell(method=name, density=density, rate=rate, seed=seed)
        for name in settings.methods
        for density in (settings.densities if METHODS[name].has_density else (None,))
    ]


def records_in(out: Path) -> list[Record]:
    """All records in the folder."""
    path = out / CELLS
    return list(read_records(path)) if path.exists() else []


def _key(record: Record) -> tuple[str, float, int]:
    return record["cell"], record["rate"], record["seed"]


def _facts(ground: Ground) -> dict[str, Any]:
    subject = ground.subject
    measure = subject.measures[subject.main]
    return {
        "first": len(subject.first),
        "first_epochs": subject.first_epochs,
        "steps": ground.steps,
        "trigger": ground.trigger,
        "batch_size": subject.batch_size,
        "measure": subject.main,
        "higher_is_better": measure.higher_is_better,
        "percent": measure.percent,
    }
