"""Shows what was found: a table in the terminal, and report.html, summary.json and frontier.png in the folder."""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
from pathlib import Path

import msgspec
from matplotlib.figure import Figure
from rich.console import Console

from experiments.shown import Spread, print_table
from experiments.sparsity.summary import Row, Summary

HEADER = (
    "method and density", "seeds", "score", "second half", "better than dense by", "bytes an update",
    "lag, part of weights", "lag, steps to send", "lag, age in steps", "path against master's",
)  # fmt: skip
_COLOURS = ("#1b7837", "#b2182b", "#2166ac", "#e08214", "#762a83", "#01665e", "#8c510a", "#c51b7d", "#4d4d4d")
_MARKERS = "os^vDPX*<>"
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
table{border-collapse:collapse;font-size:.85rem}td,th{padding:.25rem .8rem .25rem 0;border-bottom:1px solid #ddd;
text-align:left;font-variant-numeric:tabular-nums}img{max-width:100%}"""


def cells_of(row: Row, found: Summary) -> tuple[str, ...]:
    """A row in words, as long as `HEADER`."""
    return (
        row.cell + (f" ({row.diverged} diverged)" if row.diverged else ""),
        str(len(row.seeds)),
        _spread(row.scores, found),
        _spread(row.lates, found),
        _spread(row.gains, found) if row.gains else "",
        f"{row.update_bytes:,.0f}",
        *("" if row.lag[name] is None else f"{row.lag[name]:{form}}" for name, form in _LAGS.items()),
    )


_LAGS = {"ratio": ".3f", "steps": ",.0f", "age": ",.0f", "path": ".2f"}


def print_rows(console: Console, found: Summary) -> None:
    """All rows, best first."""
    print_table(console, title_of(found), HEADER, [cells_of(row, found) for row in ranked(found)])


def write_all(found: Summary, out: Path) -> Path:
    """Writes summary.json, frontier.png and report.html to `out`; gives the report."""
    (out / "summary.json").write_text(
        msgspec.json.format(msgspec.json.encode(found.as_json()), indent=1).decode() + "\n"
    )
    picture = frontier(found)
    (out / "frontier.png").write_bytes(picture)
    facts = "".join(_tr("td", (name, value)) for name, value in facts_of(found).items())
    rows = "".join(_tr("td", cells_of(row, found)) for row in ranked(found))
    title = html.escape(title_of(found))
    image = f'<img alt="score against bytes" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
    report = out / "report.html"
    report.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><table>{facts}</table>{image}"
        f"<table>{_tr('th', HEADER)}{rows}</table></body></html>\n",
        encoding="utf-8",
    )
    return report


def title_of(found: Summary) -> str:
    """Subject, optimizer and rate."""
    setup = found.setup
    return f"{setup['subject']}, {setup['optimizer']}, rate {found.rate:g}: {setup['measure']} of the deployed model"


def ranked(found: Summary) -> list[Row]:
    """Rows by density, best first."""
    sign = -1 if found.setup["higher_is_better"] else 1
    return sorted(found.rows, key=lambda row: (-(row.density or 1.0), math.isnan(row.score), sign * row.score))


def facts_of(found: Summary) -> dict[str, str]:
    """What was run, and on what."""
    setup, where = found.setup, found.setup["machine"]
    return {
        "initial training": f"{setup['first']:,} examples, {setup['first_epochs']} epochs",
        "stream": f"{setup['steps']:,} steps of {setup['trigger']} new examples in batches of {setup['batch_size']}",
        "dense training's score by rate": ", ".join(f"{rate:g}: {score:.4f}" for rate, score in found.rates.items()),
        "processor": f"{where['processor']}, one thread",
        "versions": ", ".join(f"{name} {version}" for name, version in where["versions"].items()),
        "commit": ", ".join(found.commits),
    }


def frontier(found: Summary) -> bytes:
    """Score against bytes an update, as a PNG: a line a method, its densities' points with the spread over seeds.

    What is more than three times as far off as dense training lies outside.
    """
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    scale = 100 if found.setup["percent"] else 1
    methods: dict[str, list[Row]] = {}
    for row in sorted(found.rows, key=lambda row: row.update_bytes):
        methods.setdefault(row.method, []).append(row)
    looks = itertools.cycle(zip(_COLOURS * len(_MARKERS), _MARKERS * len(_COLOURS), strict=True))
    for (name, rows), (colour, marker) in zip(methods.items(), looks, strict=False):
        axes.errorbar(
            [row.update_bytes for row in rows], [scale * row.score for row in rows], [scale * row.sd for row in rows],
            label=name, color=colour, marker=marker, capsize=3, linewidth=1.2, markersize=6,
        )  # fmt: skip
    dense = found.row("dense")
    if dense is not None:
        axes.axhline(scale * dense.score, color="#7f7f7f", linestyle="--", linewidth=1)
    unit = ", percent" if found.setup["percent"] else ""
    axes.set(
        title=title_of(found), xscale="log", xlabel="bytes an update (one each step)",
        ylabel=f"prequential {found.setup['measure']}{unit}",
    )  # fmt: skip
    if not found.setup["higher_is_better"]:
        if dense is not None and math.isfinite(dense.score):
            best = min(scale * row.score for row in found.rows if math.isfinite(row.score))
            axes.set_ylim(0.95 * best, min(axes.get_ylim()[1], 3 * scale * dense.score))
        axes.invert_yaxis()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def _spread(values: list[float], found: Summary) -> str:
    scale, digits = (100, 2) if found.setup["percent"] else (1, 4)
    if not all(map(math.isfinite, values)):
        return "beyond measure"
    return Spread.of([scale * value for value in values]).plain(digits)


def _tr(tag: str, cells: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
