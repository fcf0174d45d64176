"""Newer examples more than older ones, by the time of their arrival."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import ConfigError
from evergrad.sampling.base import LONGEST_US, Examples, Ids, choose, first_of_each, restore, save

Floats = npt.NDArray[np.float64]
_LN2 = math.log(2)


@dataclass
class TimeBiased:
    """An example counts half as much as one that arrived `half_life_s` later; without replacement.

    Exactly: successive sampling. Each next example is one of those not yet drawn, with probability proportional to
    2 ** -(age / half_life_s), whatever the rate of arrival was. (Where the clock was set back, an example counts as at
    least as old as any that came after it.) Nothing is kept for it: a draw reads the times of the newest 2 * `count`
    examples and of about as many older ones, and asks the history for log2 n places in time.

    How: let each example ring at its first event of a Poisson process with its weight as the rate; the first `count`
    to ring are such a draw (Efraimidis and Spirakis 2006). The newest 2 * `count` get their times one by one. All older
    ones together are one process, cut into classes a half-life wide: an event picks a class, then an example in it, and
    is let pass with what its weight is of its class's bound, which is at least a half (thinning, Lewis and Shedler
    1979). An older example weighs no more than any of the newest, so events that fall on one again are few.

    Args:
        half_life_s: seconds.
        seed: equal seeds draw equal examples.
    """

    half_life_s: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1e-6 <= self.half_life_s < math.inf:
            raise ConfigError("sampler.half_life_s", f"must be a microsecond or more, not {self.half_life_s}")
        self._rng = np.random.default_rng(self.seed)

    def draw(self, examples: Examples, before: int, count: int) -> Ids:
        first = examples.first
        if count >= before - first or count < 1:
            return choose(self._rng, first, before, count)
        head = np.arange(max(first, before - 2 * count), before)
        ages = _Ages(examples, int(examples.arrived_us(head[-1:])[0]), self.half_life_s * 1e6)
        head_ages = np.maximum.accumulate(ages.of(head)[::-1])[::-1]
        rings = head_ages * _LN2 - self._rng.gumbel(size=len(head))  # logarithms: ages may be thousands of half-lives
        if head[0] > first:
            latest = float(np.partition(rings, count - 1)[count - 1])
            older = _Older(ages, first, int(head[0]), float(head_ages[0]))
            ids, times = older.ring(self._rng, count, latest)
            head, rings = np.concatenate((head, ids)), np.concatenate((rings, times))
        return head[np.argsort(rings, kind="stable")[:count]]

    def state_dict(self) -> dict[str, Any]:
        return save("time_biased", self._rng)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restore("time_biased", self._rng, state)


@dataclass(frozen=True, slots=True)
class _Ages:
    """How old examples are, in half-lives before `now_us`."""

    examples: Examples
    now_us: int
    half_life_us: float

    def of(self, ids: Ids) -> Floats:
        return np.asarray((self.now_us - self.examples.arrived_us(ids)) / self.half_life_us, dtype=np.float64)

    def since(self, age: float) -> int:
        return self.examples.since(math.floor(self.now_us - min(age * self.half_life_us, LONGEST_US)))


class _Older:
    """The examples in [first, end) as one Poisson process; none counts as younger than `least_age`."""

    def __init__(self, ages: _Ages, first: int, end: int, least_age: float) -> None:
        self._ages, self._least_age = ages, max(least_age, float(ages.of(np.array([end - 1]))[0]))
        edges = [end]
        # Beyond log2 n half-lives all that is left weighs less than one example of the newest class.
        for halvings in range(1, (end - first).bit_length() + 1):
            edges.append(min(edges[-1], max(first, ages.since(self._least_age + halvings))))
            if edges[-1] == first:
                break
        edges.append(first)
        self._low = np.array(edges[1:], dtype=np.int64)
        self._sizes = np.array(edges[:-1], dtype=np.int64) - self._low
        self._rates = np.cumsum(self._sizes * np.exp2(-np.arange(len(self._low))))

    def ring(self, rng: np.random.Generator, count: int, latest: float) -> tuple[Ids, Floats]:
        """The first `count` different examples to ring, or all that do before `latest`, and when (logarithms)."""
        found, times = np.empty(0, dtype=np.int64), np.empty(0)
        events, now = 2 * count, 0.0
        while len(found) < count and (now == 0.0 or self._log_time(now) <= latest):
            at = now + np.cumsum(rng.standard_exponential(events))
            now = float(at[-1])
            classes = np.searchsorted(self._rates, rng.random(events) * self._rates[-1], side="right")
            classes = np.minimum(classes, len(self._rates) - 1)
            ids = self._low[classes] + (rng.random(events) * self._sizes[classes]).astype(np.int64)
            beyond_bound = np.maximum(self._ages.of(ids) - self._least_age - classes, 0.0)
            passed = rng.random(events) < np.exp2(-beyond_bound)
            together = np.concatenate((found, ids[passed]))
            firsts = np.sort(np.unique(together, return_index=True)[1])
            times = np.concatenate((times, self._log_time(at[passed])))[firsts]
            found = first_of_each(together)
        return found, times

    def _log_time(self, at: Any) -> Any:
        return np.log(at / self._rates[-1]) + self._least_age * _LN2
