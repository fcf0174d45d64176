"""Killed by SIGKILL at any instant, a run that is started again ends as one that was not."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evergrad
from evergrad.records import read_records
from tests.pipeline.killed import KINDS


def updates(log: Path) -> list[Any]:
    """All that the updates of a log say, but for the random name of who wrote them."""
    opened = evergrad.open_log(f"file:{log}")
    found = []
    for version in opened.updates():
        read = opened.read(version)
        assert read is not None
        update = read[0]
        sections = [
            (type(section).__name__, section.indices.tolist(), section.dtype, section.moved(np.zeros(1)).tobytes())
            if isinstance(section, evergrad.update.Values)
            else (type(section).__name__, section.indices.tolist())
            for section in update.sections
        ]
        found.append((version, update.digest_before, update.digest_after, update.newest_us, update.examples, sections))
    return found


def first_of(folder: Path) -> int:
    """The oldest example that is held: where a checkpoint was still being written, more than otherwise."""
    with evergrad.History(folder, read_only=True) as history:
        return history.first


def columns(folder: Path, first: int) -> dict[str, Any]:
    with evergrad.History(folder, read_only=True) as history:
        ids = np.arange(first, history.end)
        found = history.gather(ids)
        return {
            **{name: values.tobytes() for name, values in found.items()},
            "arrived": history.arrived_us(ids).tolist(),
            "batches": history.batches,
            "excluded": history.excluded_ranges,
        }


def records(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "time_s"} for record in read_records(path)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_killed_ends_as_one_that_was_not(kind: str, tmp_path: Path) -> None:
    after = random.Random(kind)  # noqa: S311
    kills = [f"{after.uniform(0.15, 0.8):.3f}" for _ in range(4)]
    command = [sys.executable, "-m", "tests.pipeline.killed", str(tmp_path), kind, *kills]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1, "it was hardly killed"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    models = [torch.load(folder / "model.pt", weights_only=True) for folder in (whole, killed)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    firsts = [first_of(folder / "history") for folder in (whole, killed)]
    assert kind == "retention" or firsts[0] == firsts[1]
    first = max(firsts)
    assert columns(killed / "history", first) == columns(whole / "history", first)
    assert updates(killed / "log") == updates(whole / "log")
    assert len(updates(whole / "log")) > 80
    assert records(killed / "records.jsonl") == records(whole / "records.jsonl")
