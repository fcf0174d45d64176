"""Which copy the next gradient is taken at, and how many elements a step sends: decided as training goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from evergrad.pytorch.choice import Choice as Online
from evergrad.pytorch.select import GlobalTopK, Indices, Pair

LAG_STEPS = 300.0


class Choice(Protocol):
    """Gives 1 for the deployed copy, 0 for the master, or a point between."""

    def deployed_part(self) -> float:
        """Asked before each step."""
        ...


class Always:
    """The same point at each step."""

    def __init__(self, part: float) -> None:
        self._part = part

    def deployed_part(self) -> float:
        return self._part


class EitherAtRandom:
    """One or the other, with the same chance."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def deployed_part(self) -> float:
        return float(self._random.integers(2))


class ByScore:
    """The deployed copy where it has lately been worse on fresh examples than the master: then it cannot follow.

    It is the library's choice, with other settings.

    Args:
        margin, let_go: see `Method`.
    """

    def __init__(self, margin: float = 0.0, let_go: float = 0.0) -> None:
        self._choice = Online(margin, let_go)

    def wants_score(self) -> bool:
        """Whether this batch is to be scored; asked once for each."""
        return self._choice.wants_score()

    def scored(self, deployed: float, master: float) -> None:
        """Takes note of both copies' losses on a batch that neither has learned from."""
        self._choice.score(deployed, master)

    def deployed_part(self) -> float:
        return float(self._choice.closed)

    def keep(self) -> float:
        """The fraction of the memory to keep at this step."""
        return self._choice.keep()


class ByLag:
    """The deployed copy where sending the memory would take more than `LAG_STEPS` steps at the present rate."""

    def __init__(self) -> None:
        self._steps = 0.0

    def lagged(self, steps: float) -> None:
        """Takes note of the memory, measured in steps."""
        self._steps = steps

    def deployed_part(self) -> float:
        return float(self._steps > LAG_STEPS)


class Paced:
    """The global top-k of `factor()` times as many elements as are due."""

    def __init__(self, factor: Callable[[], float]) -> None:
        self._factor, self._top = factor, GlobalTopK()

    def select(self, pairs: Sequence[Pair], k: int) -> Indices:
        return self._top.select(pairs, max(1, round(k * self._factor())))


class Unmasked:
    """What the paper's masking left of the gradients: those weights that its optimizer saw a gradient of."""

    def select(self, pairs: Sequence[Pair], k: int) -> Indices:  # noqa: ARG002
        found = []
        for pair in pairs:
            gradient = pair.parameter.grad
            if gradient is not None:
                due = (gradient != 0) & (pair.master != pair.deployed)
                found.append(due.reshape(-1).nonzero().squeeze(1).numpy() + pair.offset)
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


class Pace:
    """Factors on the number of elements: of a cold start, of losses that rise, of a memory that is large.

    Each lies between 1/2 and 4.
    """

    def __init__(self, steps: int) -> None:
        self._steps, self._seen = steps, 0
        self._fast, self._slow = 0.0, 0.0
        self._lag, self._usual_lag = 0.0, 0.0

    def stepped(self, loss: float) -> None:
        """Takes note of a step and the loss on fresh examples before it."""
        self._seen += 1
        if self._seen == 1:
            self._fast = self._slow = loss
        self._fast += 0.05 * (loss - self._fast)
        self._slow += 0.005 * (loss - self._slow)

    def lagged(self, ratio: float) -> None:
        """Takes note of |memory| / |master|."""
        self._usual_lag = ratio if not self._lag else self._usual_lag + 0.05 * (ratio - self._usual_lag)
        self._lag = ratio

    def cold(self) -> float:
        """Four times as many in the first tenth, and two thirds behind it: as many in all."""
        return 4.0 if self._seen < self._steps / 10 else 2 / 3

    def drift(self) -> float:
        """Grows with the square of what losses have risen by lately."""
        return _bounded((self._fast / max(self._slow, 1e-12)) ** 2)

    def memory(self) -> float:
        """Grows with the square of the memory, against what it usually is."""
        return _bounded((self._lag / self._usual_lag) ** 2 if self._usual_lag else 1.0)


def _bounded(factor: float) -> float:
    return min(4.0, max(0.5, factor))
