"""The command, as a user types it: real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import evergrad
from evergrad.cli import app
from evergrad.demo.server import ServerProcess
from tests.pipeline.commands import evergrad_command
from tests.pipeline.tasks import make_examples

MODEL = """
from torch import nn

def make():
    return nn.Linear(8, 4)
"""
CONFIG = """
model = "mine:make"
loss = "torch.nn.functional:cross_entropy"
log = "file:updates"
batch_size = 32
density = 0.1
score = "accuracy"
records = "records.jsonl"

[optimizer]
factory = "torch.optim:Adam"
lr = 0.01

[stream]
path = "stream.npz"
batch = 8

[trigger]
kind = "every_n"
n = 8

[sampler]
kind = "uniform"
"""


KEPT = """
history = "history"
checkpoints = {path = "checkpoints", every = 5}
publishing = {snapshot_every = 7}
training = {clip_norm = 10.0}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return prepare(tmp_path)


def prepare(folder: Path, config: str = CONFIG) -> Path:
    x, y = make_examples(160)
    np.savez(folder / "stream.npz", x=x, y=y)
    (folder / "mine.py").write_text(MODEL)
    (folder / "config.toml").write_text(config)
    return folder


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder where `run config.toml` has ended, and what it said; started as a shell would."""
    folder = prepare(tmp_path_factory.mktemp("run"))
    command = [sys.executable, "-m", "evergrad", "run", "config.toml"]
    return folder, subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def after_run(first_run: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> Path:
    """A copy of that folder, to go on in."""
    assert first_run[1].returncode == 0, first_run[1].stderr
    return shutil.copytree(first_run[0], tmp_path / "place")


@pytest.fixture(scope="module")
def first_kept_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("kept"), KEPT + CONFIG)
    assert evergrad_command(folder, "run", "config.toml").returncode == 0
    return folder


@pytest.fixture
def after_kept_run(first_kept_run: Path, tmp_path: Path) -> Path:
    """A copy of a folder where a run with checkpoints and history has ended."""
    return shutil.copytree(first_kept_run, tmp_path / "place")


def test_run_then_show_agree_on_version_and_digest(
    first_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    place, done = first_run
    assert done.returncode == 0, done.stderr
    replica = evergrad.Replica(f"file:{place / 'updates'}")
    replica.sync()
    assert replica.version == 20
    assert f"20, digest {replica.digest:016x}" in done.stdout
    shown = evergrad_command(place, "log", "show", "updates", "--last", "3")
    assert shown.returncode == 0, shown.stderr
    assert f"{replica.digest:016x}" in shown.stdout
    assert "mine:make" in shown.stdout
    assert [line.split()[0] for line in shown.stdout.splitlines()[-3:]] == ["18", "19", "20"]


def test_a_run_with_checkpoints_goes_on_where_the_stream_was(after_kept_run: Path) -> None:
    place = after_kept_run
    x, y = make_examples(240)
    np.savez(place / "stream.npz", x=x, y=y)
    done = evergrad_command(place, "run", "config.toml")
    assert done.returncode == 0, done.stderr
    replica = evergrad.Replica(f"file:{place / 'updates'}")
    assert replica.sync() == 30
    assert len(evergrad.History(place / "history", read_only=True)) == 240
    assert len(list((place / "checkpoints").iterdir())) == 2
    assert len((place / "records.jsonl").read_text().splitlines()) == 30


def test_after_a_rollback_a_run_goes_on_from_there_and_not_from_its_checkpoint(after_kept_run: Path) -> None:
    place = after_kept_run
    assert evergrad_command(place, "log", "rollback", "updates", "--to", "9", "--yes").returncode == 0
    replica = evergrad.Replica(f"file:{place / 'updates'}")
    replica.sync()
    digest = replica.digest
    done = evergrad_command(place, "run", "config.toml")
    assert done.returncode == 0, done.stderr
    assert "others have written" in done.stderr
    assert (replica.sync(), replica.digest) == (21, digest)


def test_retrain_without_examples_is_one_version_and_the_run_goes_on_from_it(after_kept_run: Path) -> None:
    place = after_kept_run
    done = evergrad_command(place, "retrain", "config.toml", "--from", "5", "--without", "64:80", "--without", "96:104")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("version 21: trained again from version 5, ")
    assert evergrad.History(place / "history", read_only=True).excluded_ranges == ((64, 80), (96, 104))
    replica = evergrad.Replica(f"file:{place / 'updates'}")
    replica.sync()
    digest = replica.digest
    assert evergrad_command(place, "run", "config.toml").returncode == 0
    assert (replica.sync(), replica.digest) == (21, digest)


@pytest.mark.parametrize("wrong", ["5", "9:3", "a:b", ":"])
def test_a_range_that_is_none_is_refused(wrong: str, place: Path) -> None:
    found = CliRunner().invoke(app, ["retrain", str(place / "config.toml"), "--from", "5", "--without", wrong])
    assert found.exit_code == 1
    assert "must be first:last" in found.output


def test_a_run_that_is_started_again_continues_from_the_logs_weights(after_run: Path) -> None:
    place = after_run
    replica = evergrad.Replica(f"file:{place / 'updates'}")
    before = replica.sync(), replica.digest
    (place / "config.toml").write_text(CONFIG.replace("lr = 0.01", "lr = 0.0"))
    done = evergrad_command(place, "run", "config.toml")
    assert done.returncode == 0, done.stderr
    assert (replica.sync(), replica.digest) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("batch_size = 32", "batch_sise = 32"), ["ConfigError", "batch_sise", "did you mean 'batch_size'"]),
        (("n = 8", "m = 8"), ["ConfigError", "trigger.m", "unknown key"]),
        (("batch_size = 32", 'batch_size = "many"'), ["ConfigError", "batch_size"]),
        (("mine:make", "mine:nothing"), ["ConfigError", "model", "mine:nothing"]),
        (("mine:make", "mine.make"), ["ConfigError", "package.module:name"]),
        (("stream.npz", "missing.npz"), ["ConfigError", "stream.path", "missing.npz"]),
        (('kind = "every_n"', 'kind = "sometimes"'), ["ConfigError", "trigger.kind", "every_n, every_seconds"]),
        (("lr = 0.01", "learning = 0.01"), ["ConfigError", "optimizer"]),
        (("log =", "log"), ["ConfigError", "config.toml"]),
        (("file:updates", "s4:updates"), ["ConfigError", "s4"]),
        (("density = 0.1", "density = 1.5"), ["ConfigError", "density"]),
        (('score = "accuracy"', 'score = "auc"'), ["ConfigError", "score", "log_loss,", "'auc'"]),
    ],
)
def test_a_wrong_configuration_is_one_line_and_touches_nothing(
    place: Path, change: tuple[str, str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "config.toml").write_text(CONFIG.replace(*change, 1))
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = CliRunner().invoke(app, ["run", "config.toml"])
    sys.modules.pop("mine", None)  # it is this folder's
    assert found.exit_code == 1
    assert all(word in found.output for word in words), found.output
    assert len(found.output.splitlines()) == 1
    assert not (place / "updates").exists()


def test_a_process_with_a_wrong_configuration_ends_with_one_line(place: Path) -> None:
    (place / "config.toml").write_text(CONFIG.replace("n = 8", "m = 8"))
    done = evergrad_command(place, "run", "config.toml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("evergrad: ConfigError: ")
    assert len(done.stderr.splitlines()) == 1


def test_show_of_a_missing_log_says_so(tmp_path: Path) -> None:
    done = evergrad_command(tmp_path, "log", "show", "nowhere")
    assert done.returncode == 1
    assert "LogNotFound: no update log at nowhere" in done.stderr


def truncate_the_last_update(log: Path) -> None:
    """And no snapshot but the first, as a larger model would have by then, so that nothing heals it."""
    path = log / "updates" / "000000000020.eg"
    path.write_bytes(path.read_bytes()[:-5])
    for snapshot in (log / "snapshots").iterdir():
        if snapshot.stem != "0" * 12:
            snapshot.unlink()
    latest = json.loads((log / "latest.json").read_bytes())
    (log / "latest.json").write_text(json.dumps({**latest, "snapshot": 0}))


def test_show_of_a_truncated_log_names_the_record_and_keeps_the_rest(after_run: Path) -> None:
    place = after_run
    truncate_the_last_update(place / "updates")
    done = evergrad_command(place, "log", "show", "updates")
    assert done.returncode == 1
    assert "CorruptRecord: updates/000000000020.eg" in done.stderr
    again = evergrad_command(place, "run", "config.toml")
    assert again.returncode == 0, again.stderr
    replica = evergrad.Replica(f"file:{place / 'updates'}")
    assert replica.sync() == 41
    assert evergrad_command(place, "log", "show", "updates").returncode == 0


def test_serve_starts_with_the_last_good_version_of_a_truncated_log_and_heals(
    after_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = after_run
    monkeypatch.chdir(place)
    truncate_the_last_update(place / "updates")
    with ServerProcess("file:updates") as server:
        x, _ = make_examples(4)
        assert server.predict(x).shape == (4, 4)
        assert server.last is not None
        assert server.last.version == 19
        assert "000000000020.eg is damaged" in server.wait_for(19, timeout_s=30)["error"]
        assert evergrad_command(place, "run", "config.toml").returncode == 0
        replica = evergrad.Replica("file:updates")
        found = server.wait_for(replica.sync(), timeout_s=30)
    assert (found["version"], found["digest"]) == (replica.version, f"{replica.digest:016x}")
    assert server.restarts == 0


@pytest.mark.parametrize(("package", "command"), [("torch", "serve"), ("torch", "run"), ("kserve", "serve")])
def test_a_missing_package_is_named_with_what_installs_it(
    first_run: tuple[Path, subprocess.CompletedProcess[str]], package: str, command: str
) -> None:
    blocked = f"import sys; sys.modules[{package!r}] = None; from evergrad.__main__ import main; main()"
    target = "updates" if command == "serve" else "config.toml"
    done = subprocess.run(
        [sys.executable, "-c", blocked, command, target], cwd=first_run[0], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"MissingDependency: this needs the package '{package}'" in done.stderr


def test_without_the_command_lines_own_packages_it_says_what_to_install(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['typer'] = None; from evergrad.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "evergrad[cli]" in done.stderr


def test_serve_of_a_log_that_does_not_say_its_model_asks_for_it(tmp_path: Path) -> None:
    import torch
    from torch import nn, optim

    model = nn.Linear(2, 2)
    optimizer = optim.SGD(model.parameters(), 0.1)
    with evergrad.Publisher(model, optimizer, f"file:{tmp_path / 'updates'}", density=1.0):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    done = evergrad_command(tmp_path, "serve", "updates")
    assert done.returncode == 1
    assert "ModuleUnknown: the log at updates does not say how to build its module; name it" in done.stderr


def test_serve_of_another_model_names_the_tensor(after_run: Path) -> None:
    place = after_run
    (place / "other.py").write_text("from torch import nn\n\ndef make():\n    return nn.Linear(8, 5)\n")
    done = evergrad_command(place, "serve", "updates", "--model", "other:make")
    assert done.returncode == 1
    assert "SchemaMismatch: tensor 'weight': expected F32 [4, 8], found F32 [5, 8]" in done.stderr
