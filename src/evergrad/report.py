"""Records to one self-contained HTML page and PNGs. Needs matplotlib; nothing else of the library does."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evergrad.errors import MissingDependency

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#1b7837", "#b2182b", "#2166ac", "#7f7f7f")
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}
h1{font-size:1.6rem}table{border-collapse:collapse;margin:1rem 0}td{padding:.3rem 1rem .3rem 0;border-bottom:1px solid
#ddd} td:last-child{font-variant-numeric:tabular-nums;text-align:right}img{max-width:100%;margin:.5rem 0}
p.note{color:#555;font-size:.9rem}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Curves over one axis.

    Attributes:
        curves: name to values, each as long as `x`; NaN leaves a gap.
        marks: moments to mark with a vertical line, by what happened there.
    """

    title: str
    x: Sequence[float]
    x_label: str
    y_label: str
    curves: Mapping[str, Sequence[float]]
    log_y: bool = False
    marks: Sequence[tuple[float, str]] = ()


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
    for (name, values), colour in zip(plot.curves.items(), _COLOURS, strict=False):
        axes.plot(plot.x, values, label=name, color=colour, linewidth=1.8)
    for where, what in plot.marks:
        axes.axvline(where, color="#7f7f7f", linestyle="--", linewidth=1)
        axes.annotate(what, (where, 1), xycoords=("data", "axes fraction"), xytext=(4, -12), textcoords="offset points")
    axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
    if plot.log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(plot.curves) > 1:
        axes.legend(frameon=False)
    return figure


def write_report(path: Path, *, title: str, summary: Mapping[str, str], plots: Sequence[Plot], note: str = "") -> None:
    """Writes one HTML file with everything inside: a table of the summary, the plots, a note. All text is escaped."""
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>" for key, value in summary.items()
    )
    images = "".join(
        f'<img alt="{html.escape(plot.title)}" src="data:image/png;base64,{base64.b64encode(draw(plot)).decode()}">'
        for plot in plots
    )
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1><table>{rows}</table>{images}"
        f'<p class="note">{html.escape(note)}</p></body></html>\n',
        encoding="utf-8",
    )
