"""Streams that lie on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evergrad.errors import ConfigError
from evergrad.stream import Batch


@dataclass(frozen=True, kw_only=True)
class NpzStream:
    """The arrays `x` and `y` of an .npz file, in file order, `batch` examples at a time.

    Args:
        path: the file; only plain arrays are read, never pickled objects.
        batch: examples that arrive together.

    Raises:
        ConfigError: no such file, or it does not hold x and y of one length.
    """

    path: str
    batch: int = 8
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError("stream.batch", f"must be 1 or more, not {self.batch}")
        if not Path(self.path).is_file():
            raise ConfigError("stream.path", f"no file at {self.path}")

    def __iter__(self) -> Iterator[Batch]:
        return self.starting_at(0)

    def starting_at(self, number: int) -> Iterator[Batch]:
        """All but the first `number` batches."""
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                x, y = np.asarray(arrays["x"]), np.asarray(arrays["y"])
        except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds for what they cannot read
            raise ConfigError("stream.path", f"{self.path} must hold plain arrays x and y: {error}") from error
        if x.ndim < 1 or y.ndim < 1 or len(x) != len(y):
            raise ConfigError("stream.path", f"{self.path} holds x of shape {x.shape} and y of shape {y.shape}")
        for start in range(number * self.batch, len(x), self.batch):
            part = slice(start, start + self.batch)
            yield Batch(x[part], y[part], self.clock())
