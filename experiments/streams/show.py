"""Shows what was found: tables in the terminal, and report.html, summary.json and PNGs in the folder."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from evergrad.records import Record
from evergrad.report import Plot, Table, write_report
from experiments.shown import Spread, number, print_table, where, write_plots
from experiments.streams.subject import Measure, Subject
from experiments.streams.summary import Row, Summary


def headline(subject: Subject, record: Record) -> str:
    """A word on a cell that is done."""
    if "measures" not in record:
        return ""
    return f"{subject.main} {worth(subject.measures[subject.main], Spread(record['measures'][subject.main], 0.0))}"


def worth(measure: Measure, spread: Spread | None) -> str:
    """A number as its measure is shown."""
    if spread is None:
        return ""
    return spread.points() if measure.percent else spread.plain(2 if abs(spread.mean) >= 10 else 4)


def header_of(subject: Subject) -> list[str]:
    """The columns of `cells_of`."""
    back = [f"back after {subject.marks[-1][1]}"] if _tells_back(subject) else []
    return [
        "strategy", *subject.measures, f"{subject.main}, last {subject.window:,}", *back, "training s", "ms an update",
        "updates", "weights changed", "bytes an update", "bytes in all",
    ]  # fmt: skip


def cells_of(subject: Subject, row: Row) -> list[str]:
    """A row in words."""
    times, examples = row.back
    came_back = f"{examples:,.0f}" + (f" in {times} of {row.seeds}" if times < row.seeds else "") if examples else "no"
    return [
        row.cell,
        *(worth(measure, row.measures[name]) for name, measure in subject.measures.items()),
        worth(subject.measures[subject.main], row.last),
        *([came_back] if _tells_back(subject) else []),
        f"{row.learn_s:,.1f}",
        number(row.update_ms, ".1f"),
        f"{row.updates:,}",
        number(row.changed, ",.0f"),
        number(row.update_bytes, ",.0f"),
        number(row.updates * row.update_bytes if row.update_bytes else None, ",.0f"),
    ]


def _tells_back(subject: Subject) -> bool:
    return bool(subject.marks) and subject.measures[subject.main].tolerance is not None


def tables_of(subject: Subject, found: Summary) -> list[Table]:
    """Everything over the whole stream, then each measure by group."""
    rows = [cells_of(subject, row) for row in found.rows]
    tables = [Table(title=title_of(subject, found), header=header_of(subject), rows=rows)]
    for name, measure in subject.measures.items() if subject.groups else ():
        by_group = [[row.cell, *(worth(measure, each[name]) for each in row.groups.values())] for row in found.rows]
        shares = [f"{group} ({flags.mean():.0%})" for group, flags in subject.groups.items()]
        tables.append(Table(title=f"{name} by part of the stream", header=["strategy", *shares], rows=by_group))
    return tables


def print_tables(console: Console, subject: Subject, found: Summary) -> None:
    """All rows; of the groups, the first measure's."""
    for table in tables_of(subject, found)[:2]:
        print_table(console, table.title, table.header, table.rows)


def write_all(subject: Subject, found: Summary, out: Path) -> Path:
    """Writes summary.json, report.html and a PNG for each plot to `out`; gives the report."""
    (out / "summary.json").write_text(json.dumps(found.as_json(), indent=1) + "\n")
    plots = plots_of(subject, found)
    write_plots(plots, out)
    report = out / "report.html"
    runs, differing = found.replicas
    write_report(
        report,
        title=title_of(subject, found),
        summary={
            "parameters": f"{found.parameters:,}; a full push: {found.full_push_bytes:,} bytes",
            "initial training": f"{len(subject.first):,} examples, {subject.first_epochs} epochs, "
            f"{found.first_s:,.1f} s",
            "stream": f"{len(subject.stream):,} examples in the order of time",
            "full retraining": f"each {subject.retrain_every:,} examples, {subject.retrain_epochs} epochs",
            "replicas": f"{runs} runs ended with a real replica; {runs - differing} with the publisher's digest",
            **where(found.setup, found.commits),
        },
        plots=list(plots.values()),
        tables=tables_of(subject, found),
        note="Means over seeds ± sample standard deviation. Each example is predicted before it is trained on. "
        "Training seconds have publishing in them, and no predictions. Bytes of sparse training (-top-, -saliency-) "
        "are those of real files; those of all others are what a full push would take.",
    )
    return report


def title_of(subject: Subject, found: Summary) -> str:
    """Stream and seeds."""
    return f"{subject.name}, {found.seeds} seeds" if found.seeds > 1 else f"{subject.name}, 1 seed"


def plots_of(subject: Subject, found: Summary) -> dict[str, Plot]:
    """By file name; only what the records can tell."""
    dense = ["never-updated", "online", "retrained", "proactive-8", "proactive-64", "recent-8"]
    sparse = ["never-updated", "proactive-8", *(f"auto-saliency-1e-{digit}" for digit in (2, 3, 4))]
    sparse += ["closed-top-1e-3", "open-top-1e-3", "auto-top-1e-3", "recent-saliency-1e-3"]
    plots = {
        "strategies": _over_stream(subject, found, "", dense),
        "sparse": _over_stream(subject, found, ", sparse", sparse),
    }
    return {name: plot for name, plot in plots.items() if plot.curves}


def _over_stream(subject: Subject, found: Summary, what: str, names: list[str]) -> Plot:
    rows = {row.cell: row for row in found.rows}
    scale = 100 if subject.measures[subject.main].percent else 1
    unit = ", percent" if scale == 100 else ""
    return Plot(
        title=f"{subject.name}{what}: {subject.main} over the last {subject.window:,} examples",
        x=found.rows[0].points if found.rows else [],
        x_label="examples of the stream",
        y_label=f"{subject.main}{unit}",
        curves={name: [scale * value for value in rows[name].curve] for name in names if name in rows},
        marks=subject.marks,
    )
