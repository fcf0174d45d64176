"""Shows what was found: tables in the terminal, and report.html, summary.json and PNGs in the folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as TerminalTable

from evergrad.report import Plot, Table, write_report
from experiments.cell import LOOPS
from experiments.prapas2021.claims import DENSITIES, Claim, claims
from experiments.prapas2021.protocol import PRIORITISED
from experiments.prapas2021.summary import Row, Summary
from experiments.shown import number, print_table, where, write_plots

HEADER = (
    "strategy", "prequential", "last 1,000", "test", "training s", "ms an update", "updates", "weights changed",
    "bytes an update", "bytes in all",
)  # fmt: skip
CLAIMS = ("claim", "paper says", "we measured", "holds here")
_HOLDS = {True: "yes", False: "no", None: ""}


def cells_of(row: Row) -> tuple[str, ...]:
    """A row in words, as long as `HEADER`."""
    sent = row.updates * row.update_bytes if row.update_bytes else None
    return (
        row.name,
        row.accuracy.points(),
        row.last.points(),
        row.test.points(),
        f"{row.learn_s:,.1f}",
        number(row.update_ms, ".1f"),
        f"{row.updates:,}",
        number(row.changed, ",.0f"),
        number(row.update_bytes, ",.0f"),
        number(sent, ",.0f"),
    )


def print_tables(console: Console, found: Summary) -> None:
    """All rows, and what the paper says beside what was measured."""
    print_table(console, title_of(found), HEADER, [cells_of(row) for row in found.rows])
    told = TerminalTable(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for name in CLAIMS:
        told.add_column(name, overflow="fold")
    for claim in claims(found):
        told.add_row(*_told(claim))
    console.print(told)


def write_all(found: Summary, out: Path) -> Path:
    """Writes summary.json, report.html and a PNG for each plot to `out`; gives the report."""
    told = [dataclasses.asdict(claim) for claim in claims(found)]
    (out / "summary.json").write_text(json.dumps({**found.as_json(), "claims": told}, indent=1) + "\n")
    plots = plots_of(found)
    write_plots(plots, out)
    report = out / "report.html"
    write_report(
        report,
        title=title_of(found),
        summary=_facts(found),
        plots=list(plots.values()),
        tables=[
            Table(title="Paper says, we measured", header=CLAIMS, rows=[_told(claim) for claim in claims(found)]),
            Table(title="Everything", header=HEADER, rows=[cells_of(row) for row in found.rows]),
        ],
        note="Accuracies in percent, means over seeds ± sample standard deviation. Each example is predicted before it "
        "is trained on. Training seconds have publishing in them, and no predictions. Bytes of closed and open are "
        "those of real files; those of all others are what a full push, or a 4-byte index beside each 4-byte value, "
        "would take. 'trained' is the authors' model as they score it, 'replica' one that gets the selected weights "
        "and nothing else.",
    )
    return report


def title_of(found: Summary) -> str:
    """Data set, model and seeds."""
    protocol = found.setup["protocol"]
    seeds = f"{found.seeds} seeds" if found.seeds > 1 else "1 seed"
    return f"Prapas et al. 2021 on {protocol['data']}, {protocol['model']}, {seeds}"


def plots_of(found: Summary) -> dict[str, Plot]:
    """By file name; only what the records can tell."""
    curves = {row.name: row for row in found.rows}
    dense = ["never-updated", "online", "retrained", *(name for name in curves if name.startswith("proactive"))]
    dense += [f"prioritised-{trigger}" for trigger in PRIORITISED]
    sparse = ["never-updated", *([found.dense.name] if found.dense else [])]
    sparse += [f"masked-top-1e-3, {scored}" for scored in ("trained", "replica", "replica with statistics")]
    sparse += [*(f"{loop}-top-1e-3" for loop in LOOPS), "auto-saliency-1e-3"]
    plots = {
        "strategies": _over_stream(found, "Prequential accuracy", dense),
        "sparse": _over_stream(found, "Prequential accuracy, density 1e-3", sparse),
        "density": _over_density(found),
    }
    return {name: plot for name, plot in plots.items() if plot.curves}


def _over_stream(found: Summary, title: str, names: list[str]) -> Plot:
    rows = {row.name: row for row in found.rows if row.curve}
    shown = {name: [100 * value for value in rows[name].curve] for name in names if name in rows}
    longest = max((row.points for row in rows.values()), key=len, default=[])
    curves = {name: curve for name, curve in shown.items() if len(curve) == len(longest)}
    return Plot(title=title, x=longest, x_label="examples of the stream", y_label="accuracy, percent", curves=curves)


def _over_density(found: Summary) -> Plot:
    kinds = {
        "authors' way, as they score it": ("masked-top", "trained"),
        "authors' way, as a replica stands": ("masked-top", "replica"),
        "ours, closed loop": ("closed-top", ""),
        "ours, open loop": ("open-top", ""),
        "ours, auto, by distance": ("auto-top", ""),
        "ours, auto, by saliency (the default)": ("auto-saliency", ""),
    }
    curves = {}
    for label, (kind, scored) in kinds.items():
        rows = [found.row(f"{kind}-{density}", scored) for density in DENSITIES]
        if any(rows):
            curves[label] = [100 * row.accuracy.mean if row else float("nan") for row in rows]
    if curves and found.dense:
        curves["dense"] = [100 * found.dense.accuracy.mean] * len(DENSITIES)
    return Plot(
        title="Prequential accuracy by density", x=[float(density) for density in DENSITIES], log_x=True,
        x_label="part of the parameters that is sent at a step", y_label="accuracy, percent", curves=curves,
    )  # fmt: skip


def _facts(found: Summary) -> dict[str, str]:
    setup, protocol = found.setup, found.setup["protocol"]
    return {
        "parameters": f"{found.parameters:,}; a full push: {found.full_push_bytes:,} bytes",
        "initial training": f"{protocol['first']:,} examples, {protocol['first_epochs']} epochs, "
        f"{found.first_s:,.1f} s",
        "stream": f"{protocol['stream']:,} examples in file order",
        "full retraining": f"each {protocol['retrain_every']:,} examples, {protocol['retrain_epochs']} epochs",
        "begins with": setup["weights"] or "random weights",
        **where(setup, found.commits),
    }


def _told(claim: Claim) -> tuple[str, ...]:
    return claim.claim, claim.paper, claim.measured, _HOLDS[claim.holds]
