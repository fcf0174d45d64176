"""Records to rows: one for each model that was scored, over all seeds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from evergrad.records import Record
from experiments.shown import Spread, cells_of, mean, place, replicas_of, setup_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One scored model.

    Attributes:
        cell, scored: which one; `scored` tells several of one cell apart.
        seeds: how many.
        accuracy: prequential, over the whole stream. last: over its last 1,000 examples. test: after it.
        learn_s: in all; publishing included, prediction not. update_ms: of that, per update (or retraining).
        updates, steps: how many, and how many training steps led to them.
        changed: parameters that really changed at an update. told: gradients that were not masked.
        update_bytes: of an update; real files for ours, what they would take for all others.
        points, curve: examples, and prequential accuracy up to there.
    """

    cell: str
    scored: str
    seeds: int
    accuracy: Spread
    last: Spread
    test: Spread
    learn_s: float
    update_ms: float | None
    updates: int
    steps: int
    changed: float | None
    told: float | None
    update_bytes: float | None
    points: list[int]
    curve: list[float]

    @property
    def name(self) -> str:
        return f"{self.cell}, {self.scored}" if self.scored else self.cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """What sparsity costs: time of a step against that of a dense one beside it, medians over blocks and seeds.

    Attributes:
        masked, published: the authors' way, which sends nothing, and ours, in the log.
        dense_ms: of a dense step.
    """

    cell: str
    masked: float
    published: float
    dense_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All that was found in a folder.

    Attributes:
        setup: the newest start's. commits: of all starts.
        replicas: how many runs of ours there were, and how many ended with a replica of another digest.
    """

    setup: Record
    commits: list[str]
    seeds: int
    parameters: int
    full_push_bytes: int
    first_s: float
    rows: list[Row]
    overheads: list[Overhead]
    replicas: tuple[int, int]

    def row(self, cell: str, scored: str = "") -> Row | None:
        """The row of that name, where there is one."""
        return next((row for row in self.rows if (row.cell, row.scored) == (cell, scored)), None)

    @property
    def dense(self) -> Row | None:
        """Dense training of the trigger size that sparse training has."""
        return self.row(f"proactive-{self.setup['protocol']['sparse_trigger']}")

    def as_json(self) -> dict[str, Any]:
        """For a file; curves rounded."""
        told = dataclasses.asdict(self)
        for row in told["rows"]:
            row["curve"] = [round(value, 4) for value in row["curve"]]
        points = {tuple(row.pop("points")) for row in told["rows"]}
        return {**told, "points": [list(each) for each in sorted(points)]}


def summarise(records: Iterable[Record]) -> Summary:
    """All records of a folder, in the order in which cells first came."""
    records = list(records)
    setup, commits = setup_of(records)
    cells = cells_of(records)
    first = cells.pop("first")
    overheads = {name: found for name, found in cells.items() if "ratios" in found[0]}
    return Summary(
        setup=setup,
        commits=commits,
        seeds=len({record["seed"] for record in first}),
        parameters=first[0]["parameters"],
        full_push_bytes=first[0]["full_push_bytes"],
        first_s=mean(first, lambda record: record["learn_s"]) or 0.0,
        rows=[
            _row(name, scored, found)
            for name, found in sorted(cells.items(), key=lambda item: place(item[0]))
            if name not in overheads
            for scored in found[0]["scores"]
        ],
        overheads=[_overhead_of(name, overheads[name]) for name in sorted(overheads)],
        replicas=replicas_of(cells),
    )


def _row(cell: str, scored: str, found: list[Record]) -> Row:
    scores = [record["scores"][scored] for record in found]
    updates = round(mean(found, lambda record: record.get("updates", 0)) or 0)
    learn_s = mean(found, lambda record: record["learn_s"]) or 0.0
    return Row(
        cell=cell,
        scored=scored,
        seeds=len(found),
        accuracy=Spread.of([score["accuracy"] for score in scores]),
        last=Spread.of([score["last"] for score in scores]),
        test=Spread.of([score["test"] for score in scores]),
        learn_s=learn_s,
        update_ms=1000 * learn_s / updates if updates else None,
        updates=updates,
        steps=round(mean(found, lambda record: record.get("steps", 0)) or 0),
        changed=mean(found, lambda record: record["changed"]),
        told=mean(found, lambda record: record["told"]),
        update_bytes=mean(found, lambda record: record.get("update_bytes")),
        points=found[0]["points"],
        curve=[statistics.fmean(values) for values in zip(*(score["curve"] for score in scores), strict=True)],
    )


def _overhead_of(cell: str, found: list[Record]) -> Overhead:
    return Overhead(
        cell=cell,
        masked=statistics.median(record["ratios"]["masked"] for record in found),
        published=statistics.median(record["ratios"]["published"] for record in found),
        dense_ms=statistics.median(record["step_ms"]["dense"] for record in found),
    )
