"""Numbers over seeds, and how they, tables and the machine are shown, in any experiment."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as TerminalTable

from evergrad.records import Record
from evergrad.report import Plot, draw


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation over seeds; that of one seed is 0."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)

    def points(self) -> str:
        """As percentage points."""
        return f"{100 * self.mean:.2f}" + (f" ± {100 * self.sd:.2f}" if self.sd else "")

    def plain(self, decimals: int) -> str:
        """With so many digits behind the point."""
        return f"{self.mean:.{decimals}f}" + (f" ± {self.sd:.{decimals}f}" if self.sd else "")


def mean(found: Iterable[Record], field: Callable[[Record], float | None]) -> float | None:
    """Of a field over records, those without it left out."""
    values = [value for value in map(field, found) if value is not None]
    return statistics.fmean(values) if values else None


_ORDER = (
    "never-updated", "online", "retrained", "proactive", "recent-8", "prioritised",
    "masked", "closed", "open", "auto-top", "auto-saliency", "recent-saliency", "prioritised-saliency",
)  # fmt: skip


def place(cell: str) -> tuple[int, bool, int]:
    """Baselines first, then by kind, top-k before random-k, and as in the grid."""
    fitting = (number for number, name in enumerate(_ORDER) if cell.startswith(name))
    kind = max(fitting, key=lambda number: len(_ORDER[number]), default=len(_ORDER))
    tail = cell.rpartition("-")[2]
    return kind, "random" in cell, int(tail) if tail.isdigit() else 0


def number(value: float | None, form: str) -> str:
    """In that form; nothing where there is none."""
    return "" if value is None else format(value, form)


def print_table(console: Console, title: str | None, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table of which the first column is words."""
    table = TerminalTable(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(header):
        table.add_column(name, justify="right" if column else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write_plots(plots: Mapping[str, Plot], out: Path) -> None:
    """A PNG for each, by its name."""
    for name, plot in plots.items():
        (out / f"{name}.png").write_bytes(draw(plot))


def setup_of(records: Iterable[Record]) -> tuple[Record, list[str]]:
    """The newest start's settings and machine, and the commits of all starts."""
    setups = [record for record in records if record["event"] == "setup"]
    newest = {key: value for key, value in setups[-1].items() if key not in ("event", "time_s")}
    return newest, sorted({str(record["commit"]) for record in setups})


def cells_of(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each cell, in the order in which cells first came."""
    cells: dict[str, list[Record]] = {}
    for record in records:
        if record["event"] == "cell":
            cells.setdefault(record["cell"], []).append(record)
    return cells


def replicas_of(cells: Mapping[str, list[Record]]) -> tuple[int, int]:
    """How many cells ended with a replica, and how many of those with one of another digest than the publisher's."""
    ended = [record for found in cells.values() for record in found if "digest" in record]
    return len(ended), sum(record["digest"] != record["replica_digest"] for record in ended)


def where(setup: Record, commits: Sequence[str]) -> dict[str, str]:
    """What it was measured on."""
    machine = setup["machine"]
    return {
        "seconds": {"cpu": "of the processor", "wall": "that passed"}[setup["seconds"]],
        "processor": f"{machine['processor']}, {machine['cores']} cores; {setup['jobs']} processes of "
        f"{setup['threads']} threads on {setup['device']}",
        "versions": ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        "commit": ", ".join(commits),
    }
