"""Records to rows: one for each method at each density, over all seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evergrad.errors import ConfigError
from evergrad.records import Record
from experiments.shown import setup_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method at one density.

    Attributes:
        scores, lates: of each seed, in their order: over the whole stream, over its second half.
        gains: of each seed, what its score is better by than dense training of the same seed; positive is better.
        update_bytes: of an update, the mean over updates and seeds. diverged: seeds
            whose training ended in weights that are not finite. lag: see `lag.Lag.found`, means over seeds.
    """

    cell: str
    method: str
    density: float | None
    seeds: list[int]
    scores: list[float]
    lates: list[float]
    gains: list[float]
    update_bytes: float
    diverged: int
    lag: dict[str, float | None]

    @property
    def score(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def sd(self) -> float:
        """Sample standard deviation over seeds; that of one seed is 0. NaN where a score is beyond measure."""
        if not all(map(math.isfinite, self.scores)):
            return math.nan
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All that was found in a folder.

    Attributes:
        setup: the newest start's. commits: of all starts. rate: all rows' learning rate. rates: dense training's score
            with each rate that was tried.
    """

    setup: Record
    commits: list[str]
    rate: float
    rates: dict[float, float]
    rows: list[Row]

    def row(self, cell: str) -> Row | None:
        """The row of that name, where there is one."""
        return next((row for row in self.rows if row.cell == cell), None)

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self) | {"rates": {f"{rate:g}": score for rate, score in self.rates.items()}}


def summarise(records: Sequence[Record]) -> Summary:
    """All records of a folder, at the rate that most cells have.

    Raises:
        ConfigError: there are none of cells.
    """
    cells = [record for record in records if record["event"] == "cell"]
    if not cells:
        raise ConfigError("out", "there are no results yet; run the experiment first")
    setup, commits = setup_of(records)
    rate = statistics.mode(record["rate"] for record in reversed(cells))
    mine: dict[str, list[Record]] = {}
    for record in cells:
        if record["rate"] == rate:
            mine.setdefault(record["cell"], []).append(record)
    sign = 1 if setup["higher_is_better"] else -1
    dense = {record["seed"]: sign * _number(record["score"]) for record in mine.get("dense", [])}
    tried = [
        record for record in cells if record["cell"] == "dense" and record["seed"] == 0 and record["diverged"] is None
    ]
    return Summary(
        setup=setup,
        commits=commits,
        rate=rate,
        rates={record["rate"]: record["score"] for record in tried},
        rows=[_row(name, sorted(found, key=_seed), dense, sign) for name, found in mine.items()],
    )


def _number(value: float | None) -> float:
    """NaN for what records have as null: a diverged model's outputs can be beyond any measure."""
    return math.nan if value is None else value


def _seed(record: Record) -> int:
    return int(record["seed"])


def _row(cell: str, found: list[Record], dense: dict[int, float], sign: int) -> Row:
    lags = {name: [record["lag"][name] for record in found] for name in found[0]["lag"]}
    return Row(
        cell=cell,
        method=found[0]["method"],
        density=found[0]["density"],
        seeds=[record["seed"] for record in found],
        scores=[_number(record["score"]) for record in found],
        lates=[_number(record["late"]) for record in found],
        gains=[sign * _number(record["score"]) - dense[record["seed"]] for record in found if record["seed"] in dense],
        update_bytes=statistics.fmean(record["sent_bytes"] / max(1, record["updates"]) for record in found),
        diverged=sum(record["diverged"] is not None for record in found),
        lag={name: statistics.fmean(values) if None not in values else None for name, values in lags.items()},
    )
