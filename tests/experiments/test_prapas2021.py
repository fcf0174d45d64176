"""The paper's experiments: the protocol is the authors', the command runs all of it, and says what it measured."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from experiments.cell import Cell
from experiments.prapas2021.__main__ import main
from experiments.prapas2021.grid import grid, steps_of
from experiments.prapas2021.protocol import PROTOCOLS, quick

from tests.experiments.runs import DATA, cells_in, needs, run

needs_mnist = needs("mnist")


@pytest.fixture(scope="module")
def quick_mnist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a whole quick run, and what it wrote to the terminal."""
    out = tmp_path_factory.mktemp("mnist")
    done = run("prapas2021", "mnist", "--quick", "--data", str(DATA), "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def random_cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files in the binary version's form, of random pixels and labels."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar-10-batches-bin").mkdir()
    random = np.random.default_rng(1)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        rows = random.integers(0, 256, (64, 3073), dtype=np.uint8)
        rows[:, 0] %= 10
        rows.tofile(folder / "cifar-10-batches-bin" / f"{name}.bin")
    return folder


@needs_mnist
def test_a_quick_run_finds_what_the_full_one_finds(quick_mnist: tuple[Path, str]) -> None:
    cells = cells_in(quick_mnist[0])
    assert set(cells) == {cell.name for cell in grid(PROTOCOLS["mnist"], 1)}
    accuracy = {
        f"{name} {scored}".strip(): score["accuracy"]
        for name, record in cells.items()
        for scored, score in record.get("scores", {}).items()
    }
    assert accuracy["proactive-8"] > accuracy["never-updated"] + 0.02
    assert accuracy["proactive-8"] > accuracy["online"] + 0.02
    assert accuracy["closed-top-1e-2"] > accuracy["never-updated"] + 0.02
    assert accuracy["open-top-1e-2"] > accuracy["never-updated"] + 0.02
    assert accuracy["closed-top-1e-2"] > accuracy["closed-random-1e-2"]


@needs_mnist
def test_the_authors_way_changes_most_weights_and_ours_as_many_as_it_says(quick_mnist: tuple[Path, str]) -> None:
    cells = cells_in(quick_mnist[0])
    theirs = cells["masked-top-1e-3"]
    assert theirs["told"] < 100
    assert theirs["changed"] > 40_000
    assert {name: cells[f"closed-top-{name}"]["changed"] for name in ("1e-2", "1e-3", "1e-4")} == {
        "1e-2": 617, "1e-3": 62, "1e-4": 6,
    }  # fmt: skip
    assert cells["proactive-8"]["changed"] > 40_000


@needs_mnist
def test_updates_are_real_files_and_the_replica_is_the_deployed_model(quick_mnist: tuple[Path, str]) -> None:
    cells = cells_in(quick_mnist[0])
    ours = {name: record for name, record in cells.items() if name.startswith(("closed", "open"))}
    assert len(ours) == 12
    for record in ours.values():
        assert record["digest"] == record["replica_digest"]
        assert record["version"] == record["updates"] <= record["steps"] == 80
    assert cells["auto-saliency-1e-3"]["digest"] != cells["auto-top-1e-3"]["digest"]
    assert 64 < ours["closed-top-1e-4"]["update_bytes"] < ours["closed-top-1e-2"]["update_bytes"] < 2000
    assert cells["proactive-8"]["update_bytes"] == 4 * 61_706


@needs_mnist
def test_retraining_takes_the_steps_that_were_reckoned_with(quick_mnist: tuple[Path, str]) -> None:
    found = cells_in(quick_mnist[0])["retrained"]
    assert (found["updates"], found["steps"]) == (2, 4 * (21 + 26))
    assert found["steps"] == steps_of(Cell(kind="retrained", seed=0), quick(PROTOCOLS["mnist"]))


@needs_mnist
def test_report_summary_and_plots_are_written(quick_mnist: tuple[Path, str]) -> None:
    out, told = quick_mnist
    summary = json.loads((out / "summary.json").read_text())
    assert summary["seeds"] == 1
    assert summary["replicas"] == [19, 0]
    assert {row["cell"] for row in summary["rows"]} | {"first"} >= {"retrained", "proactive-64", "masked-random-1e-4"}
    claims = [claim["claim"] for claim in summary["claims"]]
    assert len(claims) == len(set(claims)) == 17
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "Paper says, we measured" in page
    assert all(claim in page for claim in claims)
    assert {path.name for path in out.glob("*.png")} == {"strategies.png", "sparse.png", "density.png"}
    assert "Proactive training is as good as full retraining" in told
    assert summary["setup"]["machine"]["versions"]["torch"]
    assert not list(out.glob("cell-*"))


@needs_mnist
def test_started_again_it_runs_only_what_is_missing(quick_mnist: tuple[Path, str], tmp_path: Path) -> None:
    out = shutil.copytree(quick_mnist[0], tmp_path / "again")
    before = cells_in(out)
    lines = (out / "cells.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"closed-top-1e-3"' not in line]
    (out / "cells.jsonl").write_text("".join(kept) + lines[-1][:40])  # and a torn line
    done = run("prapas2021", "mnist", "--quick", "--data", str(DATA), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "[1/1] closed-top-1e-3, seed 0" in done.stdout
    after = cells_in(out)
    assert set(after) == set(before)
    assert after["closed-top-1e-3"]["digest"] == before["closed-top-1e-3"]["digest"]


@needs_mnist
def test_a_cell_that_fails_is_named_and_the_others_stay(quick_mnist: tuple[Path, str], tmp_path: Path) -> None:
    out = shutil.copytree(quick_mnist[0], tmp_path / "damaged")
    lines = (out / "cells.jsonl").read_text().splitlines(keepends=True)
    (out / "cells.jsonl").write_text("".join(line for line in lines if '"cell":"online"' not in line))
    for file in (out / "first" / "seed-0").iterdir():
        file.write_bytes(b"damaged")
    done = run("prapas2021", "mnist", "--quick", "--data", str(DATA), "--out", str(out))
    assert done.returncode == 1
    assert "online, seed 0, failed; what was done before is kept" in done.stderr
    assert "CheckpointDamaged" in done.stderr
    assert len(cells_in(out)) == len(lines) - 2


def test_models_with_statistics_are_scored_with_and_without_them(random_cifar10: Path, tmp_path: Path) -> None:
    told = ["cifar10", "--model", "mobilenetv2", "--quick", "--cells", "masked-top-1e-2,closed-top-1e-2"]
    done = run("prapas2021", *told, "--data", str(random_cifar10), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    cells = cells_in(tmp_path)
    assert set(cells) == {"first", "masked-top-1e-2", "closed-top-1e-2"}
    assert set(cells["masked-top-1e-2"]["scores"]) == {"replica", "replica with statistics", "trained"}
    assert cells["closed-top-1e-2"]["changed"] == pytest.approx(22_367, rel=0.01)
    assert cells["closed-top-1e-2"]["digest"] == cells["closed-top-1e-2"]["replica_digest"]
    statistics = json.loads((tmp_path / "summary.json").read_text())["claims"]
    assert "BatchNorm's statistics need not be sent" in {claim["claim"] for claim in statistics}


def test_the_protocol_is_the_papers() -> None:
    mnist, cifar10 = PROTOCOLS["mnist"], PROTOCOLS["cifar10"]
    assert (mnist.first, mnist.first_epochs, mnist.stream, mnist.retrain_epochs) == (10_000, 10, 50_000, 10)
    assert (cifar10.first, cifar10.first_epochs, cifar10.stream, cifar10.retrain_epochs) == (10_000, 25, 40_000, 25)
    for protocol in (mnist, cifar10):
        assert (protocol.online, protocol.batch_size, protocol.lr, protocol.retrain_every) == (128, 128, 1e-3, 10_000)
        assert protocol.test == 10_000


def test_the_grid_holds_every_experiment_for_each_seed() -> None:
    cells = grid(PROTOCOLS["mnist"], 3)
    assert len(cells) == len(set(cells)) == 3 * 39
    names = {cell.name for cell in cells}
    assert {"never-updated", "online", "retrained", *(f"proactive-{n}" for n in (8, 16, 32, 64))} <= names
    assert {"prioritised-32", "prioritised-40", "prioritised-64", "prioritised-saliency-1e-3"} <= names
    for density in ("1e-2", "1e-3", "1e-4"):
        assert {
            f"{kind}-{how}-{density}" for kind in ("masked", "closed", "open") for how in ("top", "random")
        } <= names
        assert {f"auto-top-{density}", f"auto-saliency-{density}"} <= names
    assert not any("random" in cell.name for cell in grid(PROTOCOLS["cifar10"], 1))


def test_sparse_training_can_have_another_trigger_size() -> None:
    cells = grid(dataclasses.replace(PROTOCOLS["cifar10"], sparse_trigger=64), 1)
    sparse = [cell for cell in cells if cell.density is not None]
    assert len(sparse) == 6 * 3 + 1
    assert {cell.trigger for cell in sparse} == {64}
    assert steps_of(sparse[0], PROTOCOLS["cifar10"]) == 625


def test_a_full_retraining_is_reckoned_as_in_the_protocol() -> None:
    retrained = Cell(kind="retrained", seed=0)
    assert steps_of(retrained, PROTOCOLS["mnist"]) == 10 * (157 + 235 + 313 + 391 + 469)


@pytest.mark.parametrize(
    ("told", "named"),
    [
        (["mnist", "--data", "nowhere"], "nowhere/mnist/train-images-idx3-ubyte.gz is missing"),
        (["cifar10", "--data", "nowhere"], "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"),
        (["cifar10", "--model", "lenet5"], "must be one of resnet18, mobilenetv2, resnet50, densenet161"),
        (["mnist", "--seeds", "0"], "seeds"),
        (["mnist", "--jobs", "0"], "jobs"),
        (["mnist", "--weights", "nowhere.pth"], "there is no file nowhere.pth"),
    ],
    ids=["no mnist", "no cifar10", "another model", "no seeds", "no jobs", "no weights"],
)
def test_what_cannot_be_is_named(
    told: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*told, "--out", str(tmp_path / "out")]) == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_name_of_no_cell_is_answered_with_those_that_there_are(
    random_cifar10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cifar10", "--cells", "other-*", "--data", str(random_cifar10), "--out", str(tmp_path)]) == 1
    assert "none is called 'other-*'; there are first, never-updated, online" in capsys.readouterr().err


def test_a_folder_with_results_of_other_settings_is_refused(
    random_cifar10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = {"event": "setup", "protocol": {"data": "mnist"}, "device": "cpu", "seconds": "cpu", "weights": None}
    (tmp_path / "cells.jsonl").write_text(json.dumps(setup) + "\n")
    assert main(["cifar10", "--data", str(random_cifar10), "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "holds results with protocol {'data': 'mnist'}" in told
    assert "name another folder" in told


@needs_mnist
def test_what_is_done_so_far_is_shown_and_nothing_is_run(
    quick_mnist: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (quick_mnist[0] / "cells.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cells.jsonl").write_text("".join(lines[:6]))
    told = ["mnist", "--quick", "--show", "--data", str(DATA), "--out", str(tmp_path)]
    assert main(told) == 0
    assert "never-updated" in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "cells.jsonl").read_text() == "".join(lines[:6])
    (tmp_path / "cells.jsonl").write_text(lines[0])
    assert main(told) == 1
    assert "holds no results yet" in capsys.readouterr().err


def test_a_file_of_a_wrong_length_is_named(
    random_cifar10: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(random_cifar10, tmp_path / "data")
    with open(data / "cifar-10-batches-bin" / "test_batch.bin", "ab") as file:
        file.write(b"1")
    assert main(["cifar10", "--data", str(data), "--out", str(tmp_path / "out")]) == 1
    assert "test_batch.bin has 196673 bytes, no whole rows of 3073" in capsys.readouterr().err
