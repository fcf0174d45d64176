"""Runs the cells of a grid that are not done yet, in processes side by side, and keeps what they find.

OUT/cells.jsonl     a `setup` line for each start, a `cell` line for each cell that is done
OUT/first/          the models as their initial trainings left them
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergrad.errors import ConfigError
from evergrad.records import Record, RecordWriter, read_records
from experiments.cell import Cell
from experiments.folder import taken
from experiments.machine import where_run
from experiments.watch import Watch

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_CELLS = "cells.jsonl"
Process = subprocess.Popen[str]
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line says; `threads` are torch's in each of `jobs` processes.

    Attributes:
        package: whose `worker` module runs cells.
        protocol: all that results depend on; goes to the worker as a dict.
    """

    package: str
    protocol: DataclassInstance
    data: Path
    out: Path
    jobs: int
    threads: int
    device: str = "cpu"
    weights: Path | None = None

    @property
    def fixed(self) -> dict[str, Any]:
        """What all results in one folder must have in common.

        Seconds are those of the processor where that tells how long a quiet machine would take, whoever else uses it.
        """
        weights = self.weights.name if self.weights else None
        seconds = "cpu" if self.device == "cpu" and self.threads == 1 else "wall"
        return {
            "protocol": dataclasses.asdict(self.protocol),
            "device": self.device,
            "seconds": seconds,
            "weights": weights,
        }


class CellFailed(Exception):
    """The process that ran a cell has ended; its last words are on the terminal."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.cell = cell

    def __str__(self) -> str:
        return f"{self.cell.name}, seed {self.cell.seed}, failed; what was done before is kept"


def run_grid(settings: Settings, cells: list[Cell], steps_of: Callable[[Cell], int], watch: Watch) -> list[Record]:
    """Runs what is not done yet; gives all records in the folder.

    Args:
        steps_of: about how many training steps a cell takes.

    Raises:
        ConfigError: the folder is another run's, or holds results of other settings. CellFailed.
    """
    with taken(settings.out):
        _run_missing(settings, cells, steps_of, watch)
    return records_in(settings)


def _run_missing(settings: Settings, cells: list[Cell], steps_of: Callable[[Cell], int], watch: Watch) -> None:
    path = settings.out / _CELLS
    done = _done(settings, path)
    waiting = [cell for cell in cells if (cell.name, cell.seed) not in done]
    seeds = {cell.seed for cell in waiting}
    first = [cell for cell in cells if cell.kind == "first" and cell.seed in seeds]
    first = [cell for cell in first if cell in waiting or not (settings.out / "first" / f"seed-{cell.seed}").exists()]
    others = [cell for cell in waiting if cell.kind != "first"]
    if not waiting:
        return
    with RecordWriter(path) as writer, _workers(settings, min(settings.jobs, len(waiting))) as workers:
        writer.write("setup", **settings.fixed, jobs=settings.jobs, threads=settings.threads, **where_run())
        watch.begin({cell: steps_of(cell) for cell in [*first, *others]})
        for part in (first, others):  # the others begin with what the first ones leave
            for cell, event in _events(workers, part):
                if "record" in event:
                    writer.write("cell", **event["record"])
                    watch.done(cell, event["record"])
                else:
                    watch.steps(cell, event["steps"])


def records_in(settings: Settings) -> list[Record]:
    """All records in the folder. Raises ConfigError where not even an initial training is done."""
    path = settings.out / _CELLS
    found = list(read_records(path)) if path.exists() else []
    if not any(record["event"] == "cell" and record["cell"] == "first" for record in found):
        raise ConfigError("out", f"{settings.out} holds no results yet; run the experiments first")
    return found


def _done(settings: Settings, path: Path) -> set[tuple[str, int]]:
    found = list(read_records(path)) if path.exists() else []
    for record in found:
        if record["event"] != "setup":
            continue
        for key, value in settings.fixed.items():
            if record[key] != value:
                raise ConfigError(
                    "out", f"{settings.out} holds results with {key} {record[key]}, not {value}; name another folder"
                )
    return {(record["cell"], record["seed"]) for record in found if record["event"] == "cell"}


@contextlib.contextmanager
def _workers(settings: Settings, count: int) -> Iterator[list[Process]]:
    """Processes that run cells; ended with the block, whatever they are at."""
    workers: list[Process] = []
    try:
        workers.extend(_started(settings) for _ in range(count))
        yield workers
    finally:
        for each in workers:
            each.terminate()
        for each in workers:
            each.communicate()


def _events(workers: list[Process], cells: list[Cell]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """What the workers tell, as it comes."""
    waiting, told = deque(cells), queue.SimpleQueue[tuple[Cell, dict[str, Any] | None]]()
    for each in workers:
        threading.Thread(target=_work, args=(each, waiting, told), daemon=True).start()
    left = len(cells)
    while left:
        cell, event = told.get()
        if event is None:
            raise CellFailed(cell)
        left -= "record" in event
        yield cell, event


def _work(process: Process, waiting: deque[Cell], told: queue.SimpleQueue[Any]) -> None:
    """Hands one cell after another to a process, and passes on what it tells; None: it has ended."""
    while True:
        try:
            cell = waiting.popleft()
        except IndexError:
            return
        event: dict[str, Any] | None = {}
        try:
            print(json.dumps(dataclasses.asdict(cell)), file=process.stdin, flush=True)
            while event is not None and "record" not in event:
                line = process.stdout.readline()
                event = json.loads(line) if line.endswith("\n") else None
                told.put((cell, event))
        except (OSError, ValueError):  # the pipe is broken, or closed
            told.put((cell, None))
            return
        if event is None:
            return


def _started(settings: Settings) -> Process:
    told = {**settings.fixed, "data": str(settings.data.resolve()), "out": str(settings.out.resolve())}
    told |= {"threads": settings.threads, "weights": str(settings.weights.resolve()) if settings.weights else None}
    # Torch's threads wait for each other actively: more of them than cores take many times as long.
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads)}
    return subprocess.Popen(
        [sys.executable, "-m", f"{settings.package}.worker", json.dumps(told)],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
