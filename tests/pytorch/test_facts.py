"""What torch says of itself arrives where it is asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from evergrad.doctor import Torch, in_a_fresh_process
from evergrad.pytorch import cuda, facts, kernels, mover


def test_facts_are_those_of_this_process() -> None:
    found = facts.facts()
    assert found["threads"] == torch.get_num_threads()
    assert (found["cuda"], found["compiler_error"]) == (torch.version.cuda, None)
    assert found["device_kernels"] == cuda.runs_on(torch.device("cuda"))
    assert found["cache"] == kernels.scan.stats.cache_path  # type: ignore[attr-defined]


def test_a_fresh_process_tells_them_and_obeys_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    found = in_a_fresh_process()
    assert isinstance(found, Torch)
    assert (found.threads, found.compiler_error) == (1, None)
    assert found.cache is not None
    assert Path(found.cache).parent == tmp_path


def test_a_compiler_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("evergrad.pytorch.kernels")
    monkeypatch.setitem(sys.modules, "evergrad.pytorch.kernels", None)
    found = facts.facts()
    assert "ModuleNotFoundError" in found["compiler_error"]
    assert found["cache"] is None
    monkeypatch.setitem(sys.modules, "evergrad.pytorch.triton_kernels", None)
    monkeypatch.delattr("evergrad.pytorch.triton_kernels", raising=False)
    assert facts.facts()["device_kernels"] is False
    monkeypatch.setattr(facts, "COMPILED", False)
    assert facts.facts()["compiler_error"] is None
    assert mover.COMPILED
