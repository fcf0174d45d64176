"""Bike sharing as a stream: the demand of each hour of two years, which has seasons and grows by more than half.

The model is told hour, weekday, month and weather, and neither the year nor what was before: growth has to be learned.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
from torch import nn
from torch.nn.functional import mse_loss

from evergrad.errors import ConfigError
from evergrad.metrics import absolute_error, squared_error
from experiments.data import find
from experiments.streams.subject import Array, Examples, Measure, Subject, mean_of, root_of, sides_of

FIRST = 2160  # hours that were counted: until the 4th of April
_WEATHER = ("temp", "atemp", "hum", "windspeed")
_ONE_OF = {"hr": 24, "weekday": 7, "weathersit": 5, "mnth": 13}
_FEATURES = sum(_ONE_OF.values()) + 2 + len(_WEATHER)


def load_bikeshare(data: Path) -> Subject:
    """The subject, out of hour.csv.gz.

    Inputs are float32 [n, 55]; labels float32 [n, 1], log(1 + count).

    Raises:
        ConfigError: the file is missing, or not of its format.
    """
    examples = read_hours(data)
    second_year = int(np.flatnonzero(_years(examples) == 2012)[0]) - FIRST
    return Subject(
        name="bikeshare",
        first=examples[:FIRST],
        stream=examples[FIRST:],
        make_model=make_mlp,
        loss=mse_loss,
        score=squared_error,
        measures={
            "RMSLE": Measure(root_of(squared_error)),
            "MAE, bikes": Measure(mean_of(lambda outputs, labels: absolute_error(np.expm1(outputs), np.expm1(labels)))),
        },
        groups=sides_of(second_year, len(examples) - FIRST, "2011", "2012"),
        marks=[(second_year, "2012")],
        first_epochs=40,
        retrain_every=2160,
        retrain_epochs=40,
        window=24 * 28,
    )


def read_hours(data: Path) -> Examples:
    """All hours, oldest first. Raises as `load_bikeshare`."""
    path = find(data, "bikeshare/hour.csv.gz")
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        parts = [np.eye(count, dtype=np.float32)[[int(row[name]) for row in rows]] for name, count in _ONE_OF.items()]
        numbers = ("holiday", "workingday", *_WEATHER)
        parts.append(np.array([[float(row[name]) for name in numbers] for row in rows], dtype=np.float32))
        counts = np.array([[float(row["cnt"])] for row in rows])
        days = np.array([row["dteday"] for row in rows], dtype="datetime64[s]")
        time_s = days.astype(np.float64) + 3600 * np.array([int(row["hr"]) for row in rows])
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError("data", f"{path} is not the hourly table of bike sharing: {error!r}") from error
    order = np.argsort(time_s, kind="stable")
    return Examples(np.hstack(parts)[order], np.log1p(counts).astype(np.float32)[order], time_s[order])


def make_mlp() -> nn.Module:
    """[n, 55] to [n, 1], 7,809 parameters."""
    return nn.Sequential(
        nn.Linear(_FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1),
    )  # fmt: skip


def _years(examples: Examples) -> Array:
    seconds = np.asarray(examples.time_s).astype("datetime64[s]")
    return np.asarray(seconds.astype("datetime64[Y]").astype(int) + 1970)
