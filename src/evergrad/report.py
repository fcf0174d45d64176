"""Records to one self-contained HTML page and PNGs. Needs matplotlib; nothing else of the library does."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evergrad.errors import MissingDependency

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#1b7837", "#b2182b", "#2166ac", "#7f7f7f", "#e08214", "#762a83", "#01665e", "#8c510a")
_LINES = ("-", "--", ":")
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
h1{font-size:1.6rem}table{border-collapse:collapse;margin:1rem 0}td{padding:.3rem 1rem .3rem 0;border-bottom:1px solid
#ddd} td:last-child{font-variant-numeric:tabular-nums;text-align:right}img{max-width:100%;margin:.5rem 0}
p.note{color:#555;font-size:.9rem}h2{font-size:1.2rem;margin-top:2rem}
table.wide{font-size:.85rem}table.wide th{text-align:left;vertical-align:bottom;padding-right:1rem}
table.wide td{vertical-align:top}table.wide td:last-child{text-align:left}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Curves over one axis.

    Attributes:
        curves: name to values, each as long as `x`; NaN leaves a gap.
        log_x, log_y: whether the axis is logarithmic.
        marks: moments to mark with a vertical line, by what happened there.
    """

    title: str
    x: Sequence[float]
    x_label: str
    y_label: str
    curves: Mapping[str, Sequence[float]]
    log_y: bool = False
    log_x: bool = False
    marks: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text under a header, each as long as it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def draw(plot: Plot) -> bytes:
    """The plot as a PNG.

    Raises:
        MissingDependency: matplotlib is absent.
    """
    figure = _figure(plot)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _figure(plot: Plot) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependency("matplotlib", "report") from error
    figure = Figure(figsize=(9, 4), layout="constrained")  # no pyplot: no window, no global state
    axes = figure.subplots()
    looks = itertools.cycle(itertools.product(_LINES, _COLOURS))
    for (name, values), (line, colour) in zip(plot.curves.items(), looks, strict=False):
        axes.plot(plot.x, values, line, label=name, color=colour, linewidth=1.8)
    for where, what in plot.marks:
        axes.axvline(where, color="#7f7f7f", linestyle="--", linewidth=1)
        axes.annotate(what, (where, 1), xycoords=("data", "axes fraction"), xytext=(4, -12), textcoords="offset points")
    axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
    if plot.log_x:
        axes.set_xscale("log")
    if plot.log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(plot.curves) > 1:
        axes.legend(frameon=False)
    return figure


def write_report(
    path: Path,
    *,
    title: str,
    summary: Mapping[str, str],
    plots: Sequence[Plot],
    tables: Sequence[Table] = (),
    note: str = "",
) -> None:
    """Writes one HTML file with everything inside: summary, plots, tables, a note. All text is escaped."""
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>" for key, value in summary.items()
    )
    images = "".join(
        f'<img alt="{html.escape(plot.title)}" src="data:image/png;base64,{base64.b64encode(draw(plot)).decode()}">'
        for plot in plots
    )
    images += "".join(_as_html(table) for table in tables)
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1><table>{rows}</table>{images}"
        f'<p class="note">{html.escape(note)}</p></body></html>\n',
        encoding="utf-8",
    )


def _as_html(table: Table) -> str:
    def row(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = "".join(row("td", cells) for cells in table.rows)
    return f'<h2>{html.escape(table.title)}</h2><table class="wide">{row("th", table.header)}{rows}</table>'
