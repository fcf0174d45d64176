"""Reports: everything is in the page, nothing in it is taken for markup, and no curve is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from evergrad.report import Plot, Table, _figure, draw, write_report

pytest.importorskip("matplotlib")


def plot(curves: int, **options: bool) -> Plot:
    shown = {f"curve {number}": [1.0 + number, 2.0 + number, 4.0 + number] for number in range(curves)}
    return Plot(title="<Curves>", x=[1, 10, 100], x_label="x", y_label="y", curves=shown, **options)  # type: ignore[arg-type]


def test_a_page_holds_plots_and_tables_and_escapes_all_text(tmp_path: Path) -> None:
    table = Table(title="A & B", header=("name", "<value>"), rows=[("a", "1 < 2"), ("b", "<script>")])
    write_report(
        tmp_path / "page.html", title="<t>", summary={"<key>": "<v>"}, plots=[plot(2)], tables=[table], note="<note>"
    )
    page = (tmp_path / "page.html").read_text()
    for part in ("<t>", "<key>", "<v>", "<note>", "<value>", "<script>", "<Curves>", "A & B"):
        assert part not in page
    assert "<th>&lt;value&gt;</th>" in page
    assert "<td>1 &lt; 2</td>" in page
    assert "<h2>A &amp; B</h2>" in page
    assert page.count("data:image/png;base64,") == 1


def test_many_curves_are_all_drawn_and_look_different() -> None:
    lines = _figure(plot(20)).axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20


def test_axes_are_logarithmic_where_that_is_asked_for() -> None:
    pictures = {
        draw(plot(1)),
        draw(plot(1, log_x=True)),
        draw(plot(1, log_y=True)),
        draw(plot(1, log_x=True, log_y=True)),
    }
    assert len(pictures) == 4
