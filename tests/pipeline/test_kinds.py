"""Triggers and samplers by their names in TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import evergrad
from evergrad.config import build_one_of
from evergrad.pipeline.settings import _SAMPLERS, _TRIGGERS
from evergrad.sampling import Sampler
from evergrad.trigger import Trigger
from tests.pipeline.tasks import pairs, seeded_model

SAMPLERS: dict[str, dict[str, Any]] = {
    "uniform": {"seed": 1},
    "window": {"seconds": 60},
    "time_biased": {"half_life_s": 3600},
    "reservoir": {"capacity": 50},
    "class_balanced": {},
    "least_used": {"used_before": 10},
    "loss_prioritised": {"alpha": 0.5, "epsilon": 0.01},
}
TRIGGERS: dict[str, dict[str, Any]] = {
    "every_n": {"n": 8},
    "every_seconds": {"seconds": 1e-9},
    "on_loss": {"above": 0.1, "half_life": 16},
    "on_drift": {"detector": "page-hinkley", "steps": 20, "options": {"threshold": 0.5, "min_instances": 5}},
}


def stateful(kinds: dict[str, type[Any]], name: str, table: dict[str, Any]) -> Sampler | Trigger:
    made = build_one_of(kinds, {"kind": name, **table}, "x")
    made.load_state_dict(made.state_dict())
    assert made.state_dict()["kind"] == name
    return made


def run(folder: Path, **changes: Any) -> int:
    model = seeded_model()
    settings = {
        "model": model,
        "loss": cross_entropy,
        "optimizer": torch.optim.Adam(model.parameters(), 1e-2),
        "stream": pairs(400),
        "batch_size": 32,
        "history": folder,
        "trigger": evergrad.EveryN(8),
        "sampler": evergrad.Uniform(),
    }
    return evergrad.run(**(settings | changes)).steps


def test_every_kind_is_tried() -> None:
    assert SAMPLERS.keys() == _SAMPLERS.keys()
    assert TRIGGERS.keys() == _TRIGGERS.keys()


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_of_each_kind_feeds_a_run(tmp_path: Path, name: str) -> None:
    assert run(tmp_path, sampler=stateful(_SAMPLERS, name, SAMPLERS[name])) == 50


@pytest.mark.parametrize("name", TRIGGERS)
def test_trigger_of_each_kind_drives_a_run(tmp_path: Path, name: str) -> None:
    if name == "on_drift":
        pytest.importorskip("river")
    assert 5 < run(tmp_path, trigger=stateful(_TRIGGERS, name, TRIGGERS[name])) <= 50
