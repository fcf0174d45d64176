"""The one place where all parts are joined: `run`, and runs that are described in TOML.

stream -> predict and score (prequential) -> gate -> history, sampler, trigger -> step -> publisher -> log
"""

from __future__ import annotations

from evergrad.pipeline.loop import Alert, Predict, Progress, RunSummary
from evergrad.pipeline.run import Observe, retrain, retrain_run, roll_back, run
from evergrad.pipeline.settings import RunConfig, load_run

__all__ = [
    "Alert",
    "Observe",
    "Predict",
    "Progress",
    "RunConfig",
    "RunSummary",
    "load_run",
    "retrain",
    "retrain_run",
    "roll_back",
    "run",
]
