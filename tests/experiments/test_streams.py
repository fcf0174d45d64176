"""Streams that drift: the command runs the whole grid, goes on where it was stopped, and says what it measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments.streams.__main__ import main
from experiments.streams.cells import back_after
from experiments.streams.grid import Protocol, grid, steps_of
from experiments.streams.subject import Examples, Measure, Subject, mean_of
from experiments.streams.subjects import load

from evergrad.metrics import accuracy
from tests.experiments.runs import DATA, cells_in, needs, run


@pytest.fixture(scope="module")
def bikes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a whole quick run, and what it wrote to the terminal."""
    out = tmp_path_factory.mktemp("bikeshare")
    done = run("streams", "bikeshare", "--quick", "--data", str(DATA), "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@needs("bikeshare")
def test_a_quick_run_finds_that_the_stream_has_to_be_followed(bikes: tuple[Path, str]) -> None:
    cells = cells_in(bikes[0])
    assert set(cells) == {cell.name for cell in grid(1)}
    rmsle = {name: record["measures"]["RMSLE"] for name, record in cells.items() if "measures" in record}
    assert rmsle["proactive-8"] < 0.9 * rmsle["never-updated"]
    assert rmsle["closed-top-1e-2"] < 0.9 * rmsle["never-updated"]
    assert rmsle["open-top-1e-2"] < 0.9 * rmsle["never-updated"]
    for record in cells.values():
        if "measures" in record:
            assert record["score"] == pytest.approx(record["measures"]["RMSLE"] ** 2)
            assert len(record["curve"]) == len(record["points"]) == 13


@needs("bikeshare")
def test_every_run_that_publishes_ends_with_a_real_replica(bikes: tuple[Path, str]) -> None:
    published = [record for record in cells_in(bikes[0]).values() if "digest" in record]
    assert len(published) == 13
    for record in published:
        assert record["digest"] == record["replica_digest"]
        assert record["version"] == record["updates"] <= record["steps"] == 160
        assert 64 < record["update_bytes"] < 300
    assert json.loads((bikes[0] / "summary.json").read_text())["replicas"] == [13, 0]


@needs("bikeshare")
def test_report_summary_and_plots_are_written(bikes: tuple[Path, str]) -> None:
    out, told = bikes
    summary = json.loads((out / "summary.json").read_text())
    assert [row["cell"] for row in summary["rows"]][:3] == ["never-updated", "online", "retrained"]
    assert set(summary["rows"][0]["groups"]) == {"2011", "2012"}
    assert summary["setup"]["machine"]["versions"]["torch"]
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "MAE, bikes by part of the stream" in page
    assert "13 runs ended with a real replica; 13 with the publisher" in page
    assert {path.name for path in out.glob("*.png")} == {"strategies.png", "sparse.png"}
    assert "RMSLE by part of the stream" in told
    assert not list(out.glob("cell-*"))


@needs("bikeshare")
def test_started_again_it_runs_only_what_is_missing(bikes: tuple[Path, str], tmp_path: Path) -> None:
    out = shutil.copytree(bikes[0], tmp_path / "again")
    before = cells_in(out)
    lines = (out / "cells.jsonl").read_text().splitlines(keepends=True)
    (out / "cells.jsonl").write_text("".join(line for line in lines if '"recent-saliency-1e-3"' not in line))
    done = run("streams", "bikeshare", "--quick", "--data", str(DATA), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "[1/1] recent-saliency-1e-3, seed 0: RMSLE" in done.stdout
    after = cells_in(out)
    assert set(after) == set(before)
    assert after["recent-saliency-1e-3"]["digest"] == before["recent-saliency-1e-3"]["digest"]
    assert after["recent-saliency-1e-3"]["measures"] == before["recent-saliency-1e-3"]["measures"]


@needs("movielens-latest-small-2016")
def test_half_stars_are_a_break_and_training_follows(tmp_path: Path) -> None:
    told = ["movielens", "--quick", "--cells", "never-updated,proactive-8,closed-top-1e-2", "--out", str(tmp_path)]
    done = run("streams", *told, "--data", str(DATA))
    assert done.returncode == 0, done.stderr
    groups = {name: record["groups"] for name, record in cells_in(tmp_path).items() if name != "first"}
    assert set(groups) == {"never-updated", "proactive-8", "closed-top-1e-2"}
    for found in groups.values():
        assert found["half stars"]["log loss"] > found["whole stars"]["log loss"] + 0.1
    for name in ("proactive-8", "closed-top-1e-2"):
        assert groups[name]["whole stars"]["log loss"] < groups["never-updated"]["whole stars"]["log loss"] - 0.1
        assert groups[name]["half stars"]["RMSE"] < groups["never-updated"]["half stars"]["RMSE"] - 0.03


@needs("mnist")
@pytest.mark.parametrize("name", ["rotating", "permuted"])
def test_digits_drift_and_training_follows(name: str, tmp_path: Path) -> None:
    done = run(
        "streams", name, "--quick", "--cells", "never-updated,recent-8", "--data", str(DATA), "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    cells = cells_in(tmp_path)
    assert cells["recent-8"]["last"] > cells["never-updated"]["last"] + 0.05
    assert len(cells["recent-8"]["back_after"]) == (name == "permuted")


@needs("mnist")
def test_the_labels_are_exchanged_once_and_the_images_stay() -> None:
    permuted, rotating = load("permuted", DATA), load("rotating", DATA)
    assert len(permuted.stream) == len(rotating.stream) == 20_000
    middle = permuted.marks[0][0]
    assert np.array_equal(permuted.stream.y[:middle], rotating.stream.y[:middle])
    assert not np.any(permuted.stream.y[middle:] == rotating.stream.y[middle:])
    assert sum(flags.sum() for flags in rotating.groups.values()) == 20_000


@needs("movielens-latest-small-2016")
def test_the_recommenders_stream_is_the_one_that_is_described() -> None:
    found = load("movielens", DATA)
    assert (len(found.first), len(found.stream)) == (20_000, 80_004)
    assert found.stream.time_s is not None
    half_stars = np.datetime64(int(found.stream.time_s[found.marks[0][0]]), "s")
    assert str(half_stars.astype("datetime64[D]")) == "2003-05-16"
    assert set(found.groups) == {
        "whole stars", "half stars", "a user's first 20", "users known better", "films never rated",
    }  # fmt: skip


def digits_that_break(accuracies: list[tuple[int, float]]) -> tuple[Subject, np.ndarray[Any, Any]]:
    """A subject, and outputs that are right in these shares of these numbers of examples, one after another."""
    right = np.concatenate([np.arange(count) % 100 < 100 * share for count, share in accuracies])
    y = np.zeros(len(right), np.int64)
    subject = Subject(
        name="some", first=Examples(y, y), stream=Examples(y, y), make_model=NotImplemented, loss=NotImplemented,
        score=accuracy, measures={"accuracy": Measure(mean_of(accuracy), higher_is_better=True, tolerance=0.05)},
        first_epochs=1, retrain_every=1, retrain_epochs=1, window=500,
    )  # fmt: skip
    return subject, np.column_stack([right, ~right]).astype(np.float64)


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([(1000, 0.9), (1000, 0.9)], 500),
        ([(1000, 0.9), (700, 0.2), (1300, 0.9)], 1180),  # 440 right of 500; at 1160, 420 are
        ([(1000, 0.9), (900, 0.8)], None),
    ],
    ids=["at once", "when the window is almost full of the new", "never"],
)
def test_back_is_when_the_last_500_are_as_good_as_before(
    accuracies: list[tuple[int, float]], expected: int | None
) -> None:
    subject, outputs = digits_that_break(accuracies)
    assert back_after(subject, outputs, 1000) == expected


def test_the_grid_holds_the_papers_strategies_for_each_seed() -> None:
    cells = grid(3)
    assert len(cells) == len(set(cells)) == 3 * 22
    names = {cell.name for cell in cells}
    assert {"never-updated", "online", "retrained", *(f"proactive-{n}" for n in (8, 16, 32, 64))} <= names
    assert {f"{kind}-top-1e-{digit}" for kind in ("closed", "open", "auto") for digit in (2, 3, 4)} <= names
    assert {"auto-saliency-1e-2", "auto-saliency-1e-4", "recent-saliency-1e-3"} <= names


def test_retraining_is_reckoned_with_all_examples_so_far() -> None:
    protocol = Protocol(
        subject="some", quick=False, first=100, first_epochs=2, stream=250, retrain_every=100, retrain_epochs=3,
        batch_size=50, lr=1e-3, half_life=10, window=10,
    )  # fmt: skip
    steps = {cell.name: steps_of(cell, protocol) for cell in grid(1)}
    assert steps["retrained"] == 3 * (4 + 6)
    assert (steps["first"], steps["proactive-64"], steps["online"]) == (4, 4, 2)


@pytest.mark.parametrize(
    ("told", "named"),
    [
        (["bikeshare", "--data", "nowhere"], "nowhere/bikeshare/hour.csv.gz is missing"),
        (["movielens", "--seeds", "0"], "seeds"),
        (["rotating", "--threads", "0"], "threads"),
    ],
)
def test_what_cannot_be_is_named(
    told: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*told, "--out", str(tmp_path / "out")]) == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
