"""Ways to keep a model fresh, side by side on one stream: what proactive training is compared with.

Each is scored as the *composite* model: by what it was serving at each moment (as Böther et al. 2025, "Modyn", call it;
Prapas et al. 2021 score retraining segment by segment). So a retraining counts from when it would have been done, not
from when it was begun. A `Trainer` is a strategy as it stands: with `batch_size=1` it is online training on new
examples only, with a publisher it is sparse, without one dense, and its sampler makes it one of the replay methods.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from evergrad.errors import ConfigError
from evergrad.history import History
from evergrad.metrics import Forms, Prequential, Score
from evergrad.pytorch.bridge import batch_tensors
from evergrad.pytorch.learner import Learner
from evergrad.stream import Batch

Ids = npt.NDArray[np.int64]


class Strategy(Protocol):
    """Serves predictions, and learns from what comes."""

    def predict(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The outputs for a batch of inputs, by the model that is served now."""
        ...

    def learn(self, batch: Batch) -> object:
        """Takes in labelled examples that were predicted before."""
        ...


class Cuda(Protocol):
    """What `finished_s` needs of `torch.cuda`."""

    def is_initialized(self) -> bool:
        """Whether this process has used a GPU."""
        ...

    def synchronize(self) -> None:
        """Waits until the current GPU has done all that it was told."""
        ...


def finished_s(cuda: Cuda = torch.cuda) -> float:
    """Seconds of a clock that only goes forward, read when the current GPU, where one is used, has done its work.

    A step on a GPU is told and not done when `learn` returns; without that wait its time would count as that of
    whoever asks the GPU next.
    """
    if cuda.is_initialized():
        cuda.synchronize()
    return time.perf_counter()


class NeverUpdated:
    """The first model, for ever."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def predict(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """As `Strategy`."""
        return self._learner.predict(x)

    def learn(self, batch: Batch) -> None:
        """Nothing follows from it."""


class Retrained:
    """Trained anew on all examples so far, whenever so many have come; the old model serves until that is done.

    Args:
        make: builds a learner with a fresh model and optimizer.
        served: what serves until the first retraining is done.
        every: examples between two retrainings.
        epochs, batch_size, seed: of a retraining, which goes through all examples in a new order each epoch. An example
            that would be a batch of its own, behind whole ones, is put to the last of these: BatchNorm refuses one.
        warm: goes on from the newest trained weights, with a fresh optimizer, and not from scratch.
        seen: labelled examples from before the stream, which each retraining uses too; x and y. They stay in memory.
        history: takes in, as columns x and y, what comes, and is read batch by batch, so that memory does not grow with
            the stream. What it holds before counts as seen; what is excluded from it, or that its limits remove, is not
            trained on. None: all examples stay in memory.
        took_s: how long a retraining takes where it would run, in seconds of the stream's clock, from how long it took
            here. Default: as long. A stream that is replayed faster than it came takes less of its own time.

    Raises:
        ConfigError: a number is below 1, or both `seen` and `history` are given.
    """

    def __init__(
        self,
        make: Callable[[], Learner],
        served: Learner,
        *,
        every: int,
        epochs: int,
        batch_size: int,
        warm: bool = False,
        seen: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None,
        history: History | None = None,
        seed: int = 0,
        took_s: Callable[[float], float] = float,
    ) -> None:
        for name, value in (("every", every), ("epochs", epochs), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(name, f"must be 1 or more, not {value}")
        if seen is not None and history is not None:
            raise ConfigError("seen", "and history are both given; append what was seen before to the history")
        self._make, self._served, self._newest = make, served, served
        self._every, self._epochs, self._batch_size, self._warm = every, epochs, batch_size, warm
        self._random, self._took_s = np.random.default_rng(seed), took_s
        self._examples: _Examples = _InHistory(history) if history is not None else _InMemory(seen)
        self._waiting = 0
        self._ready: list[tuple[float, Learner]] = []
        self.trainings = 0

    def predict(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """As `Strategy`."""
        return self._served.predict(x)

    def learn(self, batch: Batch) -> None:
        """As `Strategy`."""
        self._examples.append(batch)
        self._waiting += len(batch)
        if self._waiting >= self._every:
            self._waiting = 0
            begun = finished_s()
            self._newest = self._retrained()
            self._ready.append((batch.arrived_s + self._took_s(finished_s() - begun), self._newest))
        while self._ready and self._ready[0][0] <= batch.arrived_s:
            self._served = self._ready.pop(0)[1]

    def _retrained(self) -> Learner:
        learner = self._make()
        if self._warm:
            learner.model.load_state_dict(copy.deepcopy(self._newest.model.state_dict()))
        ids = self._examples.ids()
        for _ in range(self._epochs):
            for rows in _cut(self._random.permutation(ids), self._batch_size):
                learner.learn(*batch_tensors(self._examples.gather(rows)))
        self.trainings += 1
        return learner


def _cut(ids: Ids, size: int) -> list[Ids]:
    """Batches of that size; none of one example, unless the size or all there is says so."""
    ends = list(range(size, len(ids), size))
    if ends and size > 1 and len(ids) - ends[-1] == 1:
        ends.pop()
    return np.split(ids, ends)


class _Examples(Protocol):
    """What a retraining goes through."""

    def append(self, batch: Batch) -> None: ...

    def ids(self) -> Ids: ...

    def gather(self, ids: Ids) -> dict[str, npt.NDArray[Any]]: ...


class _InMemory:
    def __init__(self, seen: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None) -> None:
        self._parts = [seen] if seen is not None else []

    def append(self, batch: Batch) -> None:
        self._parts.append((batch.x, batch.y))

    def ids(self) -> Ids:
        x, y = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        self._parts = [(x, y)]
        return np.arange(len(x))

    def gather(self, ids: Ids) -> dict[str, npt.NDArray[Any]]:
        """Of what the last call of `ids` has put together."""
        x, y = self._parts[0]
        return {"x": x[ids], "y": y[ids]}


class _InHistory:
    def __init__(self, history: History) -> None:
        self._history = history

    def append(self, batch: Batch) -> None:
        self._history.append({"x": batch.x, "y": batch.y}, arrived_s=batch.arrived_s)

    def ids(self) -> Ids:
        ids = np.arange(self._history.first, self._history.end)
        return ids[~self._history.excluded(ids)]

    def gather(self, ids: Ids) -> dict[str, npt.NDArray[Any]]:
        return self._history.gather(ids, ("x", "y"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a strategy stands after a batch.

    Attributes:
        examples: predicted so far.
        scores: see `Prequential.values`.
        predict_s, learn_s: seconds that it has taken in all.
    """

    examples: int
    scores: Mapping[str, float]
    predict_s: float
    learn_s: float


def compare(
    strategies: Mapping[str, Strategy],
    stream: Iterable[Batch],
    scores: Mapping[str, Score | Forms],
    *,
    window: int = 1000,
    half_life: float = 1000.0,
    clock: Callable[[], float] = finished_s,
) -> Iterator[dict[str, Standing]]:
    """Runs strategies side by side: each predicts a batch with what it serves, is scored, and then learns from it.

    Args:
        strategies: by name; each with models and histories of its own.
        stream: oldest first.
        scores, window, half_life: see `Prequential`.
        clock: what time is taken by, in seconds; see `finished_s`. `time.process_time` where others keep the machine
            busy, and no GPU works.

    Returns:
        How all stand, after each batch.
    """
    kept = {name: Prequential(scores, window=window, half_life=half_life) for name in strategies}
    predict_s, learn_s = dict.fromkeys(strategies, 0.0), dict.fromkeys(strategies, 0.0)
    for batch in stream:
        for name, strategy in strategies.items():
            begun = clock()
            outputs = strategy.predict(batch.x)
            predicted = clock()
            kept[name].add(outputs, batch.y)
            scored = clock()
            strategy.learn(batch)
            predict_s[name] += predicted - begun
            learn_s[name] += clock() - scored
        yield {
            name: Standing(
                examples=kept[name].examples, scores=kept[name].values(), predict_s=predict_s[name],
                learn_s=learn_s[name],
            )
            for name in strategies
        }  # fmt: skip
