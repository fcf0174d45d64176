"""Where new labelled examples come from.

A source is any iterable of batches, oldest first. `batches` takes what users have (pairs of arrays, torch loaders,
`Batch`es) and gives `Batch`es; `files` reads them from disk; `late` joins labels that come later with what was
predicted. A further source is one more file here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from evergrad.errors import ConfigError

__all__ = ["Batch", "Rewindable", "Source", "batches", "starting_at"]


@dataclass(frozen=True, slots=True)
class Batch:
    """New labelled examples that arrived together.

    Attributes:
        x: inputs, [examples, ...].
        y: labels, [examples, ...].
        arrived_s: when the newest of them arrived, seconds since 1970.
        outputs: what was served for them, [examples, ...], where that is known.
    """

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    arrived_s: float
    outputs: npt.NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.x)


@runtime_checkable
class Rewindable(Protocol):
    """A source that can begin anywhere."""

    def starting_at(self, number: int) -> Iterable[Batch | tuple[Any, Any] | list[Any]]:
        """All but the first `number` batches, none of which may be empty."""
        ...


Source = Iterable[Batch | tuple[Any, Any] | list[Any]]


def batches(source: Source, clock: Callable[[], float]) -> Iterator[Batch]:
    """Each item of `source` as a `Batch`; a pair (x, y) of arrays or tensors has just arrived.

    Raises:
        ConfigError: an item is neither, or its arrays differ in length.
    """
    for number, item in enumerate(source):
        if not isinstance(item, Batch):
            if not isinstance(item, (tuple, list)) or len(item) != 2:
                raise ConfigError(
                    "stream", f"item {number} is {type(item).__name__}; expected a pair (x, y) or a Batch"
                )
            x, y = (np.asarray(part) for part in item)
            item = Batch(x, y, clock())  # noqa: PLW2901 - the item, in its uniform shape
        if item.x.ndim < 1 or item.y.ndim < 1 or len(item.x) != len(item.y):
            raise ConfigError("stream", f"item {number} has x of shape {item.x.shape} and y of shape {item.y.shape}")
        if item.outputs is not None and (item.outputs.ndim < 1 or len(item.outputs) != len(item.x)):
            raise ConfigError(
                "stream", f"item {number} has x of shape {item.x.shape} and outputs of {item.outputs.shape}"
            )
        if len(item):
            yield item


def starting_at(source: Source, number: int, clock: Callable[[], float]) -> Iterator[Batch]:
    """As `batches`, without the first `number` of them, where the source is a sequence or `Rewindable`.

    Any other is taken for one that goes on where it was, whoever asks.
    """
    if number and isinstance(source, Rewindable):
        return batches(source.starting_at(number), clock)
    if number and isinstance(source, Sequence):
        return itertools.islice(batches(source, clock), number, None)
    return batches(source, clock)
