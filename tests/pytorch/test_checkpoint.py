"""Checkpoints: what goes in comes out, whole or not at all."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evergrad.errors import CheckpointDamaged, ConfigError, HistoryUnavailable
from evergrad.pytorch.checkpoint import Checkpoints


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        return same and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and (a == b or repr(a) == repr(b) == "nan")


TREE = {
    "tensors": [torch.randn(3, 4).t(), torch.randn(5).bfloat16(), torch.tensor(2.5), torch.tensor([True, False])],
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "not finite": torch.tensor([float("nan"), float("-inf")]),
    "arrays": (np.arange(4, dtype=np.uint16), np.ones((2, 2))),
    "numbers": [1, -(1 << 63), (1 << 128) - 1, 0.1, float("inf"), float("nan"), True, None],
    0: {"nested": ((), [], {}, "text", b"bytes")},
    "generators": (np.random.default_rng(1).bit_generator.state, random.getstate()),
}


@pytest.mark.parametrize("background", [False, True])
def test_what_goes_in_comes_out(background: bool, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, background=background)
    checkpoints.save(7, TREE)
    checkpoints.wait()
    found = Checkpoints(tmp_path).newest()
    assert found is not None
    assert found[0] == 7
    assert equal(found[1], TREE)


def test_numpy_scalars_become_numbers_and_empty_tensors_stay_empty(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, background=False)
    checkpoints.save(1, {"scalar": np.float32(0.5), "empty": torch.empty(0, 3)})
    found = checkpoints.newest()
    assert found is not None
    assert found[1]["scalar"] == 0.5
    assert found[1]["empty"].shape == (0, 3)


def test_optimizer_goes_on_from_it_bit_for_bit(tmp_path: Path) -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 3, 5, 5)).square().mean().backward()
            optimizer.step()

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 2)).to(memory_format=torch.channels_last)
        return model, torch.optim.Adam(model.parameters(), amsgrad=True, fused=True)

    model, optimizer = make()
    steps(model, optimizer, 1)
    checkpoints = Checkpoints(tmp_path, background=False)
    checkpoints.save(1, (model.state_dict(), optimizer.state_dict()))
    steps(model, optimizer, 2)
    again, anew = make()
    found = checkpoints.newest()
    assert found is not None
    again.load_state_dict(found[1][0])
    anew.load_state_dict(found[1][1])
    steps(again, anew, 2)
    assert equal(dict(again.state_dict()), dict(model.state_dict()))


def test_it_is_of_copies_made_at_once(tmp_path: Path) -> None:
    tensor = torch.zeros(1000)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"it": tensor})
    tensor.fill_(1)
    checkpoints.wait()
    found = checkpoints.newest()
    assert found is not None
    assert not found[1]["it"].any()


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in (5, 10, 2000):
        checkpoints.save(number, TREE)
    checkpoints.wait()
    assert [path.name[:12] for path in sorted(tmp_path.iterdir())] == ["000000000010", "000000002000"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_newest_one_falls_back_to_the_one_before(damage: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, background=False)
    for number in (1, 2):
        checkpoints.save(number, {"number": number, "tensor": torch.randn(100)})
    newest = sorted(tmp_path.iterdir())[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes({"flipped": data, "cut": data[:-1], "empty": b""}[damage])
    found = checkpoints.newest()
    assert found is not None
    assert (found[0], found[1]["number"]) == (1, 1)


def test_nothing_but_damage_is_an_error_and_nothing_at_all_is_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, background=False)
    assert checkpoints.newest() is None
    checkpoints.save(1, TREE)
    next(tmp_path.iterdir()).write_bytes(b"no")
    with pytest.raises(CheckpointDamaged, match="checksum"):
        checkpoints.newest()


def test_what_a_crash_left_unfinished_is_removed(tmp_path: Path) -> None:
    stray = tmp_path / ".000000000001-0123.safetensors-abc"
    stray.write_bytes(b"unfinished")
    Checkpoints(tmp_path)
    assert not stray.exists()


def test_what_was_asked_for_before_happens_before(tmp_path: Path) -> None:
    checkpoints, seen = Checkpoints(tmp_path, background=False), []
    checkpoints.save(1, TREE, before=lambda: seen.append(list(tmp_path.iterdir())))
    assert seen == [[]]
    assert list(tmp_path.iterdir())


def test_one_of_the_same_number_is_replaced(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, background=False)
    for number, content in ((1, "first"), (2, "second"), (2, "third"), (2, "fourth")):
        checkpoints.save(number, content)
        found = checkpoints.newest()
        assert found == (number, content)
    assert sorted(path.name[:12] for path in tmp_path.iterdir()) == ["000000000001", "000000000002"]


@pytest.mark.parametrize("error", [OSError("no"), HistoryUnavailable("history", "no space is left")])
def test_what_must_happen_before_and_fails_leaves_no_checkpoint_and_is_told(error: Exception, tmp_path: Path) -> None:
    def fails() -> None:
        raise error

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, TREE)
    checkpoints.save(2, TREE, before=fails)
    checkpoints.wait()
    assert checkpoints.failure is error
    found = checkpoints.newest()
    assert found is not None
    assert found[0] == 1
    checkpoints.save(3, TREE)
    checkpoints.wait()
    assert checkpoints.failure is None


def test_a_full_disk_keeps_what_is_there_and_says_so(tmp_path: Path) -> None:
    code = """
import resource, sys, torch
from evergrad.pytorch.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], background=False)
checkpoints.save(1, {"it": torch.zeros(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
checkpoints.save(2, {"it": torch.zeros(10_000)})
print(checkpoints.newest()[0], type(checkpoints.failure).__name__)
checkpoints.save(3, {"it": torch.zeros(10)})
print(checkpoints.newest()[0], checkpoints.failure)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1 OSError", "3 None"]
    assert "no checkpoint was written at 2" in done.stderr


@pytest.mark.parametrize(("setting", "value"), [("every", 0), ("keep", 0)])
def test_settings_out_of_range_are_refused(setting: str, value: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=setting):
        Checkpoints(tmp_path, **{setting: value})


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="file cannot be used"):
        Checkpoints(tmp_path / "file")


def test_what_cannot_be_kept_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, background=False)
    with pytest.raises(ConfigError, match="a object cannot be kept"):
        checkpoints.save(1, {"it": [object()]})
    assert checkpoints.newest() is None


def test_state_may_be_loaded_twice(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, background=False)
    checkpoints.save(1, TREE)
    first, second = checkpoints.newest(), checkpoints.newest()
    assert first is not None
    assert second is not None
    first[1]["tensors"][0].add_(1)
    assert equal(second[1], copy.deepcopy(TREE))
