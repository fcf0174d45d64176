"""The study of loops: they are the library's where the library has them, and the command runs, resumes and shows."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiments.folder import taken
from experiments.sparsity.__main__ import main
from experiments.sparsity.cells import Setup, make_optimizer, run_cell
from experiments.sparsity.choice import ByLag, ByScore, Pace
from experiments.sparsity.lag import Lag
from experiments.sparsity.loops import Loop
from experiments.sparsity.methods import METHODS, Cell
from experiments.sparsity.subjects import load
from experiments.sparsity.summary import summarise
from torch import nn
from torch.nn.functional import mse_loss

from evergrad import Publisher
from evergrad.errors import NonFiniteWeights
from evergrad.records import read_records

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("EVERGRAD_DATA", ROOT.parent / "shared" / "data"))
RESULTS = ROOT / "experiments" / "sparsity" / "results"
needs_bikes = pytest.mark.skipif(not (DATA / "bikeshare").is_dir(), reason="needs bike sharing in EVERGRAD_DATA")
STEPS = 30


def small() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 1))
    return model, make_optimizer("adam", model, 1e-2)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, 16, 6, generator=random)
    return [(each, each.sum(dim=1, keepdim=True)) for each in x]


def looped(name: str, folder: Path, density: float = 0.05, told: Sequence[tuple[float, float]] = ()) -> Loop:
    """The loop of that method after `STEPS` steps. `told`: losses of both copies instead of its own, in turns."""
    loop = Loop(METHODS[name], small(), mse_loss, density=density, folder=folder, seed=0, steps=STEPS)
    for step, (x, y) in enumerate(batches()):
        outputs = loop.predict(x)
        if told:
            loop._choice.scored(*told[step % len(told)])
        else:
            loop.scored(x, y, outputs)
        loop.step(x, y)
    return loop


def deployed(loop: Loop) -> torch.Tensor:
    return torch.cat([each.reshape(-1) for each in loop._deployed])


def master(loop: Loop) -> torch.Tensor:
    return torch.cat([each.reshape(-1) for each in loop._masters])


def published(
    folder: Path, before: Callable[[int, Publisher], None] = lambda *_: None, **settings: Any
) -> tuple[torch.Tensor, str]:
    """What the library's loop deploys after `STEPS` steps, and its digest. `before`: called before each."""
    model, optimizer = small()
    with Publisher(model, optimizer, f"file:{folder}", density=0.05, **settings) as publisher:
        for step, (x, y) in enumerate(batches()):
            before(step, publisher)
            model.train()
            optimizer.zero_grad()
            mse_loss(model(x), y).backward()
            optimizer.step()
            publisher.publish()
        weights = torch.cat([publisher.published()[each].reshape(-1) for each, _ in model.named_parameters()])
        return weights, f"{publisher.digest:016x}"


@pytest.mark.parametrize(("name", "forward"), [("open", "master"), ("closed", "deployed")])
@pytest.mark.parametrize(("suffix", "selector"), [("", "distance"), ("-saliency", "saliency")])
def test_both_loops_are_the_librarys_bit_for_bit(
    name: str, forward: str, suffix: str, selector: str, tmp_path: Path
) -> None:
    expected, digest = published(tmp_path / "own", forward=forward, selector=selector)
    name += suffix
    found = looped(name, tmp_path / "study")
    assert torch.equal(deployed(found), expected)
    assert found.finish()["digest"] == digest


def test_the_online_choice_is_the_librarys_bit_for_bit(tmp_path: Path) -> None:
    told = [(1.0, 1.0), (2.0, 1.0), (2.0, 1.0), (0.1, 5.0), (0.1, 90.0), (0.1, 90.0), (9.0, 1.0)]
    closed = []

    def score(step: int, publisher: Publisher) -> None:
        publisher.score(*told[step % len(told)])
        closed.append(publisher.closed)

    expected, digest = published(tmp_path / "own", score)
    found = looped("by-score-let-go-saliency", tmp_path / "study", told=told)
    assert torch.equal(deployed(found), expected)
    assert found.finish()["digest"] == digest
    assert {True, False} == {*closed}


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.has_density])
def test_every_method_trains_and_its_replica_is_the_deployed_model(name: str, tmp_path: Path) -> None:
    loop = looped(name, tmp_path / "log", density=0.2)
    first, _ = small()
    x, y = batches()[0]
    assert mse_loss(loop.predict(x), y) < mse_loss(first.eval()(x), y)
    finished = loop.finish()
    assert 0 < finished["sent_bytes"] / finished["updates"] < 1000


def test_masking_sends_the_weights_that_have_a_gradient_and_no_others(tmp_path: Path) -> None:
    loop = Loop(METHODS["masked"], small(), mse_loss, density=0.1, folder=tmp_path / "log", seed=0, steps=STEPS)
    for x, y in batches():
        before = deployed(loop).clone()
        loop.step(x, y)
        moved = before != deployed(loop)
        kept = torch.cat([each.grad.reshape(-1) != 0 for each in loop.master.parameters()])
        assert moved.any()
        assert not (moved & ~kept).any()
        assert torch.equal(deployed(loop)[moved], master(loop)[moved])
    assert not torch.equal(deployed(loop), master(loop))


def test_a_clipped_memory_stays_within_its_bound(tmp_path: Path) -> None:
    free, clipped = looped("closed", tmp_path / "free", 0.01), looped("closed-clip-0.05", tmp_path / "clipped", 0.01)
    ratios = [float((master(loop) - deployed(loop)).norm() / master(loop).norm()) for loop in (free, clipped)]
    assert ratios[0] > 0.1
    assert ratios[1] == pytest.approx(0.05, rel=0.02)


def test_masked_momentum_is_gone_where_an_element_was_sent(tmp_path: Path) -> None:
    loop = looped("closed-momentum-masked", tmp_path / "log")
    before = deployed(loop).clone()
    loop.step(*batches()[0])
    moved = before != deployed(loop)
    momentum = torch.cat([loop._optimizer.state[each]["exp_avg"].reshape(-1) for each in loop.master.parameters()])
    assert moved.any()
    assert not momentum[moved].any()
    assert momentum[~moved].any()


def test_the_copy_is_chosen_by_score_and_by_lag() -> None:
    by_score, by_lag = ByScore(), ByLag()
    assert (by_score.deployed_part(), by_lag.deployed_part()) == (0, 0)
    by_score.scored(deployed=0.6, master=0.5)
    by_lag.lagged(5000)
    assert (by_score.deployed_part(), by_lag.deployed_part()) == (1, 1)
    for _ in range(5):
        by_score.scored(deployed=0.4, master=0.5)
    by_lag.lagged(10)
    assert (by_score.deployed_part(), by_lag.deployed_part()) == (0, 0)


def test_memory_is_let_go_where_the_master_scores_worse() -> None:
    choice = ByScore(margin=0.05, let_go=0.1)
    choice.scored(deployed=0.52, master=0.5)  # worse by less than the margin
    assert choice.deployed_part() == 0
    assert [choice.keep() for _ in range(50)] == [1.0] * 50
    lost = ByScore(let_go=0.1)
    lost.scored(deployed=0.5, master=1.0)  # twice the loss: a tenth of the memory a step
    assert [lost.keep() for _ in range(4)] == pytest.approx([0.9] * 4)
    far = ByScore(let_go=0.1)
    far.scored(deployed=0.5, master=50.0)
    assert far.keep() == 0.5
    assert ByScore().keep() == 1.0


def test_paces_answer_to_what_they_are_named_for() -> None:
    pace = Pace(100)
    for loss in [1.0] * 9 + [1.0] * 41:
        pace.stepped(loss)
    assert pace.cold() == pytest.approx(2 / 3)
    assert Pace(100).cold() == 4
    assert pace.drift() == pytest.approx(1)
    for _ in range(20):
        pace.stepped(3.0)
    assert pace.drift() > 2
    assert pace.memory() == 1
    pace.lagged(0.1)
    assert pace.memory() == 1
    pace.lagged(0.4)
    assert pace.memory() == 4


def test_the_lag_of_what_follows_at_a_distance_is_that_distance() -> None:
    path = [torch.full((4,), float(step)) for step in range(401)]
    own, follower = path[0].clone(), torch.zeros(4)
    lag = Lag([own], [follower])
    for step in range(1, 401):
        own.copy_(path[step])
        follower.copy_(path[max(0, step - 100)])
        lag.look()
    found = lag.found()
    assert found["age"] == 100
    assert found["steps"] == pytest.approx(100)
    assert found["path"] == pytest.approx(1)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quick")
    assert main(told(out)) == 0
    return out


def told(out: Path) -> list[str]:
    methods = "dense,dense-ema,open,closed"
    return f"bikeshare --quick --methods {methods} --densities 1e-1,1e-3 --data {DATA} --out {out}".split()


@needs_bikes
def test_a_quick_run_gives_records_table_picture_and_report(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads((quick / "summary.json").read_text())
    rows = {row["cell"]: row for row in found["rows"]}
    assert set(rows) == {"dense", "dense-ema", "open 1e-1", "open 1e-3", "closed 1e-1", "closed 1e-3"}
    assert rows["dense"]["update_bytes"] == 4 * 7809
    assert rows["dense"]["gains"] == [0.0]
    assert 64 < rows["closed 1e-3"]["update_bytes"] < rows["closed 1e-1"]["update_bytes"] < 2000
    assert rows["closed 1e-1"]["scores"] < rows["closed 1e-3"]["scores"]  # an error: more bytes, less of it
    assert (quick / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (quick / "report.html").read_text()
    assert not list(quick.glob("cell-*"))
    assert main([*told(quick), "--show"]) == 0
    assert "dense-ema" in capsys.readouterr().out


@needs_bikes
def test_started_again_it_runs_only_what_is_missing_and_finds_the_same(quick: Path, tmp_path: Path) -> None:
    out = shutil.copytree(quick, tmp_path / "again")
    lines = (out / "cells.jsonl").read_text().splitlines(keepends=True)
    (out / "cells.jsonl").write_text("".join(line for line in lines if '"cell":"closed 1e-3"' not in line) + "{torn")
    assert main(told(out)) == 0
    before, after = (list(read_records(each / "cells.jsonl")) for each in (quick, out))
    assert [each["event"] for each in after].count("setup") == 2
    digests = [{each["cell"]: each.get("digest") for each in found if "cell" in each} for found in (before, after)]
    assert digests[0] == digests[1]


@needs_bikes
def test_a_folder_that_another_run_writes_to_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half_done = tmp_path / "cell-of-the-other"
    with taken(tmp_path):
        half_done.mkdir()
        assert main(told(tmp_path)) == 1
        assert f"another run writes to {tmp_path}" in capsys.readouterr().err
        assert half_done.exists()
    with taken(tmp_path):  # it was given back
        assert not half_done.exists()


@needs_bikes
def test_another_subject_in_the_same_folder_is_refused(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*told(quick), "--optimizer", "sgd"]) == 1
    assert "has results with optimizer adam, not sgd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [("--methods=none", "methods"), ("--densities=2", "densities"), ("--rates=-1", "rates"), ("--seeds=0", "seeds")],
)
def test_settings_out_of_range_are_named(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bikeshare", option]) == 1
    assert f"sparsity: {message}" in capsys.readouterr().err


def test_data_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bikeshare", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "hour.csv.gz is missing" in capsys.readouterr().err


def test_a_row_is_compared_with_dense_training_of_its_own_seeds() -> None:
    setup = {"event": "setup", "higher_is_better": False, "commit": "abc"}
    common = {
        "event": "cell",
        "rate": 0.1,
        "late": 0.0,
        "sent_bytes": 30,
        "updates": 3,
        "diverged": None,
        "lag": {},
        "density": None,
    }
    scores = [("dense", 0, 0.5), ("dense", 1, 0.7), ("open", 1, 0.6), ("closed", 0, None)]
    cells = [{**common, "cell": name, "method": name, "seed": seed, "score": score} for name, seed, score in scores]
    found = summarise([setup, *cells])
    assert found.rates == {0.1: 0.5}
    assert found.rows[1].gains == pytest.approx([0.1])
    assert found.rows[0].sd == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert found.rows[1].update_bytes == 10
    assert np.isnan([found.rows[2].score, *found.rows[2].gains]).all()


@needs_bikes
@pytest.mark.parametrize("name", ["bikeshare-adam", "bikeshare-adamw", "bikeshare-sgd"])
def test_the_smallest_cell_of_a_table_comes_out_as_it_is_checked_in(name: str, tmp_path: Path) -> None:
    """Within 0.03, more than two seeds differ by; on the same machine and versions it is equal to the last digit."""
    table = json.loads((RESULTS / name / "summary.json").read_text())
    row = next(row for row in table["rows"] if row["cell"] == "dense")
    setup = Setup(load("bikeshare", DATA), table["setup"]["optimizer"])
    torch.set_num_threads(1)
    found = run_cell(Cell(method="dense", density=None, rate=table["rate"], seed=0), setup, tmp_path)
    assert found["score"] == pytest.approx(row["scores"][0], abs=0.03)


def test_what_diverges_raises_and_leaves_what_is_deployed(tmp_path: Path) -> None:
    loop = looped("closed", tmp_path / "log")
    before = deployed(loop).clone()
    loop._masters[0].fill_(float("inf"))
    with pytest.raises(NonFiniteWeights):
        loop.step(*batches()[0])
    assert torch.equal(deployed(loop), before)
