"""The public surface, frozen: a change here is a change for every user."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import evergrad

LAZY = {"Checkpoints", "Publisher", "Trainer", "attach", "run"}
PUBLIC = {
    "evergrad": {
        "AllOf", "AnyOf", "Batch", "Checkpoints", "ClassBalanced", "EveryN", "EverySeconds", "Gate", "History",
        "LeastUsed", "LossPrioritised", "Mix", "News", "OnDrift", "OnLoss", "Publisher", "Replica", "Reservoir",
        "Schema", "TimeBiased", "Trainer", "Uniform", "WhenIdle", "Window", "__version__", "attach", "errors",
        "open_log", "run",
    },
    "evergrad.log": {"ObjectStore", "StoreReader", "UpdateLog", "Watch", "open_log"},
    "evergrad.metrics": {
        "AUC", "BinnedAUC", "Fading", "Forms", "Metric", "Prequential", "Running", "Score", "Windowed", "WindowedAUC",
        "absolute_error", "accuracy", "log_loss", "log_loss_from_probabilities", "ndcg", "squared_error",
    },
    "evergrad.pytorch": {"Attached", "attach", "module_of"},
    "evergrad.sampling": {
        "ClassBalanced", "Examples", "Feedback", "LeastUsed", "LossPrioritised", "Mix", "Reservoir", "Sampler",
        "TimeBiased", "Uniform", "Window",
    },
    "evergrad.stream": {"Batch", "Rewindable", "Source", "batches", "starting_at"},
    "evergrad.trigger": {
        "AllOf", "AnyOf", "EveryN", "EverySeconds", "News", "OnDrift", "OnLoss", "Trigger", "WhenIdle",
    },
}  # fmt: skip
DOUBLES = {
    "FakeClock", "FakeExamples", "FaultyStore", "check_object_store", "check_sampler", "check_store_reader",
    "check_trigger",
}  # fmt: skip


@pytest.mark.parametrize("module", PUBLIC)
def test_exported_names_are_these(module: str) -> None:
    exported = importlib.import_module(module).__all__
    assert set(exported) == PUBLIC[module]
    assert len(exported) == len(PUBLIC[module])


@pytest.mark.parametrize("module", PUBLIC)
def test_exported_names_are_there_without_torch(module: str) -> None:
    found = vars(importlib.import_module(module))
    assert PUBLIC[module] - set(found) <= LAZY


def test_public_test_doubles_are_there() -> None:
    assert set(vars(importlib.import_module("evergrad.testing"))) >= DOUBLES


def test_torch_backed_names_are_told_to_type_checkers_from_where_they_are_loaded() -> None:
    tree = ast.parse(Path(evergrad.__file__).read_text(encoding="utf-8"))
    for_types = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert for_types == evergrad._TORCH_BACKED
    assert set(for_types) == LAZY


def test_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'evergrad' has no attribute 'nothing'"):
        _ = evergrad.nothing  # type: ignore[attr-defined]


def test_import_loads_no_optional_package_and_prints_nothing() -> None:
    optional = {
        "torch",
        "kserve",
        "fastapi",
        "matplotlib",
        "sklearn",
        "scipy",
        "typer",
        "rich",
        "pandas",
        "onnxruntime",
        "river",
        "pyarrow",
    }
    code = f"import sys, evergrad; print(*sorted({optional!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_version_is_the_one_of_the_package() -> None:
    pyproject = Path(evergrad.__file__).parents[2] / "pyproject.toml"
    assert f'version = "{evergrad.__version__}"' in pyproject.read_text(encoding="utf-8")
