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

from evergrad.errors import ConfigError
from evergrad.metrics import Forms, Prequential, Score
from evergrad.pytorch.bridge import batch_tensors
from evergrad.pytorch.learner import Learner
from evergrad.stream import Batch


class Strategy(Protocol):
    """Serves predictions, and learns from what comes."""

    def predict(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The outputs for a batch of inputs, by the model that is served now."""
        ...

    def learn(self, batch: Batch) -> object:
        """Takes in labelled examples that were predicted before."""
        ...


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
        epochs, batch_size, seed: of a retraining, which goes through all examples in a new order each epoch.
        warm: goes on from the newest trained weights, with a fresh optimizer, and not from scratch.
        seen: labelled examples from before the stream, which each retraining uses too; x and y.
        took_s: how long a retraining takes where it would run, in seconds of the stream's clock, from how long it took
            here. Default: as long. A stream that is replayed faster than it came takes less of its own time.
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
        seed: int = 0,
        took_s: Callable[[float], float] = float,
    ) -> None:
        for name, value in (("every", every), ("epochs", epochs), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(name, f"must be 1 or more, not {value}")
        self._make, self._served, self._newest = make, served, served
        self._every, self._epochs, self._batch_size, self._warm = every, epochs, batch_size, warm
        self._random, self._took_s = np.random.default_rng(seed), took_s
        self._examples = [seen] if seen is not None else []
        self._waiting = 0
        self._ready: list[tuple[float, Learner]] = []
        self.trainings = 0

    def predict(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """As `Strategy`."""
        return self._served.predict(x)

    def learn(self, batch: Batch) -> None:
        """As `Strategy`."""
        self._examples.append((batch.x, batch.y))
        self._waiting += len(batch)
        if self._waiting >= self._every:
            self._waiting = 0
            begun = time.perf_counter()
            self._newest = self._retrained()
            self._ready.append((batch.arrived_s + self._took_s(time.perf_counter() - begun), self._newest))
        while self._ready and self._ready[0][0] <= batch.arrived_s:
            self._served = self._ready.pop(0)[1]

    def _retrained(self) -> Learner:
        learner = self._make()
        if self._warm:
            learner.model.load_state_dict(copy.deepcopy(self._newest.model.state_dict()))
        x, y = (np.concatenate(parts) for parts in zip(*self._examples, strict=True))
        for _ in range(self._epochs):
            order = self._random.permutation(len(x))
            for start in range(0, len(x), self._batch_size):
                rows = order[start : start + self._batch_size]
                learner.learn(*batch_tensors({"x": x[rows], "y": y[rows]}))
        self.trainings += 1
        return learner


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
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[dict[str, Standing]]:
    """Runs strategies side by side: each predicts a batch with what it serves, is scored, and then learns from it.

    Args:
        strategies: by name; each with models and histories of its own.
        stream: oldest first.
        scores, window, half_life: see `Prequential`.
        clock: what time is taken by, in seconds. `time.process_time` where others keep the machine busy; on a GPU, one
            that waits for it first.

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
