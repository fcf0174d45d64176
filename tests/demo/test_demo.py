"""The demo end to end: a real server process, real HTTP, on scikit-learn's digits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.demo import dense_accuracy

import evergrad
from evergrad.demo.digits import RotatingStream, load_digits, read_idx, rotate
from evergrad.demo.show import SETTINGS, Demo
from evergrad.errors import ConfigError
from evergrad.records import read_records

DATA = Path(os.environ.get("EVERGRAD_DATA", "../shared/data"))


def test_the_demo_stays_near_dense_training_and_far_above_no_updates(tmp_path: Path) -> None:
    demo = Demo(tmp_path, examples=9600)
    result = demo.run()
    assert result.equal
    assert result.served_end >= dense_accuracy(demo, 0, tmp_path)[1] - 0.02
    assert result.served_end >= result.frozen_end + 0.30
    assert result.restarts == 0
    assert result.run.fraction_of_full_pushes < 0.01
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http://" not in page.replace("over HTTP", "")
    assert "https://" not in page
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_a_server_killed_in_mid_stream_comes_back_to_the_same_digest(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "evergrad", "demo", "--out", str(tmp_path), "--examples", "2400"]
    environment = {key: value for key, value in os.environ.items() if key != "EVERGRAD_DATA"}
    done = subprocess.run(
        [*command, "--kill-server-at", "0.5"], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    replica = evergrad.Replica(f"file:{tmp_path / 'updates'}")
    replica.sync()
    digests = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("digest, ")]
    assert digests == [f"{replica.digest:016x}"] * 2
    restarts = [record["restarts"] for record in read_records(tmp_path / "records.jsonl") if record["event"] == "batch"]
    assert (restarts[0], restarts[-1]) == (0, 1)
    served = [record["served_version"] for record in read_records(tmp_path / "records.jsonl")]
    assert served[-1] > served[len(served) // 2] > served[0]


def test_a_kill_outside_the_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kill-server-at"):
        Demo(tmp_path, kill_server_at=1.5)


def test_the_stream_turns_from_nothing_to_its_angle_and_starts_after_the_first_part() -> None:
    digits = load_digits(None)
    stream = list(RotatingStream(digits=digits, first=600, examples=1600, batch=8, degrees=60))
    assert len(stream) == 200
    assert np.array_equal(stream[0][0], digits.inputs(np.arange(600, 608)))
    last_rows = 600 + np.arange(1592, 1600) % (len(digits.labels) - 600)
    assert np.array_equal(stream[-1][1], digits.labels[last_rows])
    assert np.array_equal(stream[-1][0], digits.inputs(last_rows, 60 * 1592 / 1600))


def test_a_quarter_turn_moves_the_corners_counter_clockwise() -> None:
    image = np.zeros((1, 1, 8, 8), dtype=np.float32)
    image[0, 0, 1, 6] = 1.0  # upper right
    assert rotate(image, 90)[0, 0, 1, 1] == pytest.approx(1.0)  # upper left


def test_a_damaged_idx_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(b"not gzip")
    with pytest.raises(ConfigError, match="IDX"):
        read_idx(path)


@pytest.mark.skipif(not (DATA / "mnist").is_dir(), reason="needs MNIST in EVERGRAD_DATA")
def test_mnist_is_read_where_a_folder_has_it(tmp_path: Path) -> None:
    digits = load_digits(DATA)
    assert digits.images.shape == (60_000, 1, 28, 28)
    assert digits.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert float(digits.images.mean()) == pytest.approx(digits.mean, abs=1e-3)
    result = Demo(tmp_path, data=DATA, examples=800).run()
    assert result.data == "MNIST"
    assert result.equal
    assert result.served > 0.6


def test_settings_name_the_data_that_loaders_give() -> None:
    assert load_digits(None).name in SETTINGS
