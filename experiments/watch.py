"""What a person sees while the grid runs: bars with the time left; where there is no terminal, a line a cell."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from evergrad.records import Record
from experiments.cell import Cell


class Watch:
    """Counts training steps, which is what time goes into; `headline` gives the words for the record of a cell."""

    def __init__(self, console: Console, headline: Callable[[Record], str]) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TaskProgressColumn())
        self._bars = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._console, self._headline = console, headline
        self._all: TaskID | None = None
        self._running: dict[Cell, TaskID] = {}
        self._of: dict[Cell, int] = {}
        self._steps: dict[Cell, int] = {}
        self._finished, self._begun_s = 0, 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, steps: dict[Cell, int]) -> None:
        """All cells that will be run, and how many training steps each takes."""
        self._of, self._begun_s = steps, time.monotonic()
        self._all = self._bars.add_task(f"{len(steps)} cells", total=sum(steps.values()))

    def steps(self, cell: Cell, steps: int) -> None:
        """A cell has taken so many steps."""
        if cell not in self._running:
            self._running[cell] = self._bars.add_task(f"{cell.name}, seed {cell.seed}", total=self._of[cell])
        self._steps[cell] = min(steps, self._of[cell])
        self._bars.update(self._running[cell], completed=self._steps[cell])
        if self._all is not None:
            self._bars.update(self._all, completed=sum(self._steps.values()))

    def done(self, cell: Cell, record: Record) -> None:
        """A cell is done."""
        self.steps(cell, self._of[cell])
        self._bars.remove_task(self._running.pop(cell))
        self._finished += 1
        spent_s, taken, total = time.monotonic() - self._begun_s, sum(self._steps.values()), sum(self._of.values())
        left_min = spent_s * (total - taken) / max(1, taken) / 60
        self._console.print(
            f"[{self._finished}/{len(self._of)}] {cell.name}, seed {cell.seed}: {self._headline(record) or 'done'}; "
            f"{left_min:.0f} min left",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
