"""Records to rows: one for each strategy, over all seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evergrad.records import Record
from experiments.shown import Spread, cells_of, mean, place, replicas_of, setup_of

Measures = dict[str, Spread | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One strategy.

    Attributes:
        seeds: how many.
        measures: over the whole stream; None where the records have none. groups: the same of each group.
        last: the leading one over the last window.
        back: seeds in which the leading measure came back after the last break, and the mean of examples that took.
        learn_s: in all; publishing included, prediction not. update_ms: of that, per update (or retraining).
        updates, steps: how many, and how many training steps led to them.
        changed: parameters that really changed at an update.
        update_bytes: of an update; real files where there is a publisher, a full push for all others.
        points, curve: examples, and the leading measure over the window up to there.
    """

    cell: str
    seeds: int
    measures: Measures
    groups: dict[str, Measures]
    last: Spread
    back: tuple[int, float | None]
    learn_s: float
    update_ms: float | None
    updates: int
    steps: int
    changed: float | None
    update_bytes: float | None
    points: list[int]
    curve: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All that was found in a folder.

    Attributes:
        setup: the newest start's. commits: of all starts.
        replicas: how many runs with a publisher there were, and how many ended with a replica of another digest.
    """

    setup: Record
    commits: list[str]
    seeds: int
    parameters: int
    full_push_bytes: int
    first_s: float
    rows: list[Row]
    replicas: tuple[int, int]

    def as_json(self) -> dict[str, Any]:
        """For a file; rounded, and points once for all rows."""
        told = dataclasses.asdict(self)
        points = [row.pop("points") for row in told["rows"]]
        rounded: dict[str, Any] = _rounded(told)
        return {**rounded, "points": points[0] if points else []}


def summarise(records: Iterable[Record]) -> Summary:
    """All records of a folder."""
    records = list(records)
    setup, commits = setup_of(records)
    cells = cells_of(records)
    first = cells.pop("first")
    return Summary(
        setup=setup,
        commits=commits,
        seeds=len({record["seed"] for record in first}),
        parameters=first[0]["parameters"],
        full_push_bytes=first[0]["full_push_bytes"],
        first_s=mean(first, lambda record: record["learn_s"]) or 0.0,
        rows=[_row(name, found) for name, found in sorted(cells.items(), key=lambda item: place(item[0]))],
        replicas=replicas_of(cells),
    )


def _row(cell: str, found: list[Record]) -> Row:
    updates = round(mean(found, lambda record: record.get("updates", 0)) or 0)
    learn_s = mean(found, lambda record: record["learn_s"]) or 0.0
    back = [record["back_after"][-1] for record in found if record["back_after"]]
    came_back = [examples for examples in back if examples is not None]
    return Row(
        cell=cell,
        seeds=len(found),
        measures=_spreads([record["measures"] for record in found]),
        groups={name: _spreads([record["groups"][name] for record in found]) for name in found[0]["groups"]},
        last=Spread.of([record["last"] for record in found]),
        back=(len(came_back), statistics.fmean(came_back) if came_back else None),
        learn_s=learn_s,
        update_ms=1000 * learn_s / updates if updates else None,
        updates=updates,
        steps=round(mean(found, lambda record: record.get("steps", 0)) or 0),
        changed=mean(found, lambda record: record["changed"]),
        update_bytes=mean(found, lambda record: record.get("update_bytes")),
        points=found[0]["points"],
        curve=[statistics.fmean(values) for values in zip(*(record["curve"] for record in found), strict=True)],
    )


def _spreads(found: list[Mapping[str, float | None]]) -> Measures:
    spreads: Measures = {}
    for name in found[0]:
        values = [value for measures in found if (value := measures[name]) is not None]
        spreads[name] = Spread.of(values) if len(values) == len(found) else None
    return spreads


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.5g}")
    return value
