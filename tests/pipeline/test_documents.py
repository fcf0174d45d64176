"""What the README and the examples say, run as written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import evergrad
from evergrad.cli import app
from tests.pipeline.tasks import make_examples, pairs, seeded_model

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def names_for_readme() -> dict[str, object]:
    model = seeded_model()
    return {
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), 1e-2),
        "loader": [tuple(map(torch.from_numpy, pair)) for pair in pairs(80)],
        "loss_function": torch.nn.functional.cross_entropy,
    }


def test_the_readme_shows_training_loop_replica_and_pipeline() -> None:
    assert len(BLOCKS) == 3
    assert ["Publisher(" in BLOCKS[0], "Replica(" in BLOCKS[1], "evergrad.run(" in BLOCKS[2]] == [True] * 3


def test_the_readmes_training_loop_feeds_its_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    loop, follower = names_for_readme(), {}
    exec(BLOCKS[0], loop)  # noqa: S102 - our own README
    exec(BLOCKS[1], follower)  # noqa: S102
    publisher, replica = loop["publisher"], follower["replica"]
    assert (replica.version, replica.digest) == (10, publisher.digest)
    assert set(follower["w"]) == set(loop["model"].state_dict())
    assert capsys.readouterr().out.startswith(f"10 {publisher.digest:016x} 0.")


def test_the_readmes_replica_runs_where_torch_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[0], names_for_readme())  # noqa: S102
    blocker = "import sys\nsys.modules['torch'] = None\n"
    done = subprocess.run([sys.executable, "-c", blocker + BLOCKS[1]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10 ")


def test_the_readmes_pipeline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[2], names_for_readme())  # noqa: S102
    assert evergrad.Replica("file:updates").sync() == 10


def test_the_example_configuration_runs(tmp_path: Path) -> None:
    x, y = make_examples(80)
    np.savez(tmp_path / "stream.npz", x=x, y=y)
    (tmp_path / "my_model.py").write_text("from tests.pipeline.tasks import make_model\n")
    (tmp_path / "run.toml").write_text((ROOT / "examples" / "run.toml").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "evergrad", "run", "run.toml"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert evergrad.Replica(f"file:{tmp_path / 'updates'}").sync() == 10
    assert len(evergrad.History(tmp_path / "history")) == 80


def test_every_command_that_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text()
    for command in re.findall(r"`evergrad ([a-z]+(?: show)?)[ `]", text):
        assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0, command
