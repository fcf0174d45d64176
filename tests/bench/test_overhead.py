"""The overhead benchmark takes turns fairly and says what it measured; no test asserts a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.overhead import SETTINGS, Plain, Setting, measure, time_blocks
from torch import nn

from evergrad.log.folds import FOLD_BASE

MEASURED = {
    "ratio", "ratio_quartiles", "ratio_of_totals", "paper_ratio", "paper_ratio_quartiles",
    "step_ms", "published_step_ms", "paper_step_ms", "select_ms", "encode_ms", "append_ms",
}  # fmt: skip
DESCRIBED = {"model", "density", "background", "data", "memory_format", "device", "steps", "block_steps"}


class Noted(Plain):
    """Notes what it is asked to do, and does not train."""

    def __init__(self, name: str, notes: list[tuple[str, object]]) -> None:
        super().__init__(nn.Linear(1, 1))
        self.name, self.notes = name, notes

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.notes.append((self.name, int(x)))

    def end_block(self) -> None:
        self.notes.append((self.name, "end"))


def test_variants_take_turns_by_blocks_of_the_same_batches_there_and_back() -> None:
    notes: list[tuple[str, object]] = []
    batches = ((torch.tensor(number), torch.tensor(0)) for number in range(100))
    times = time_blocks([Noted(name, notes) for name in "abc"], batches, blocks=2, size=2)
    first = [(name, what) for name in "abc" for what in (0, 1, "end")]
    second = [(name, what) for name in "cba" for what in (2, 3, "end")]
    assert notes == first + second
    assert [len(row) for row in times] == [2, 2, 2]


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_every_block_holds_as_many_folds_as_any_other(setting: Setting) -> None:
    assert setting.block % FOLD_BASE == 0
    assert setting.steps % setting.block == 0


@pytest.mark.parametrize("background", [False, True], ids=["inline", "background"])
def test_a_short_run_measures_everything(background: bool) -> None:
    found = measure("lenet5", density=1e-2, background=background, steps=2, memory_format="channels_last")
    assert found.keys() == MEASURED | DESCRIBED
    assert (found["steps"], found["block_steps"], found["background"]) == (2, 2, background)
    assert found["device"] == "cpu"
    times = ("ratio", "paper_ratio", "step_ms", "published_step_ms", "paper_step_ms", "select_ms", "encode_ms")
    assert all(found[key] > 0 for key in times)


def test_the_command_ends_with_one_json_object() -> None:
    command = [sys.executable, "-m", "benchmarks.overhead", "--model", "lenet5", "--density", "1e-3", "--inline"]
    done = subprocess.run(
        [*command, "--steps", "1", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == MEASURED | DESCRIBED | {"threads", "machine", "date"}
    assert (found["model"], found["density"], found["threads"]) == ("lenet5", 1e-3, 1)
