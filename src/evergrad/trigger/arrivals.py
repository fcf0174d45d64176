"""Triggers that count examples and seconds, and one that waits for room."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evergrad.config import require_kind
from evergrad.errors import ConfigError
from evergrad.trigger.base import News


@dataclass
class EveryN:
    """A step whenever at least `n` new examples have arrived (Prapas et al. 2021: `trigger_size`).

    >>> trigger = EveryN(8)
    >>> [trigger.inform(News(examples=4, now_s=0.0)) for _ in range(3)]
    [False, True, True]
    >>> trigger.taken(0.0); trigger.inform(News(examples=4, now_s=0.0))
    False
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError("trigger.n", f"must be 1 or more, not {self.n}")
        self._waiting = 0

    def inform(self, news: News) -> bool:
        self._waiting += news.examples
        return self._waiting >= self.n

    def taken(self, now_s: float) -> None:  # noqa: ARG002 - time plays no part here
        self._waiting = 0

    def state_dict(self) -> dict[str, Any]:
        return {"kind": "every_n", "waiting": self._waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        require_kind(state, "every_n", "trigger")
        self._waiting = int(state["waiting"])


@dataclass
class EverySeconds:
    """A step when `seconds` have passed since the last one, or since the first examples, however many have arrived."""

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ConfigError("trigger.seconds", f"must be above 0, not {self.seconds}")
        self._last_s: float | None = None
        self._due = False

    def inform(self, news: News) -> bool:
        if self._last_s is None:
            self._last_s = news.now_s
        self._due = self._due or news.now_s - self._last_s >= self.seconds  # a clock set back takes no step back
        return self._due

    def taken(self, now_s: float) -> None:
        self._last_s, self._due = now_s, False

    def state_dict(self) -> dict[str, Any]:
        return {"kind": "every_seconds", "last_s": self._last_s, "due": self._due}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        require_kind(state, "every_seconds", "trigger")
        self._last_s, self._due = state["last_s"], bool(state["due"])


@dataclass(kw_only=True)
class WhenIdle:
    """A step when examples wait and predicting leaves room for it.

    After the dynamic scheduling of Derakhshan et al. 2019, which spaces steps by the rate and latency of prediction;
    here the load itself is asked for, whenever examples arrive.

    Args:
        load: gives the present load of prediction: requests a second, or the part of its time that a server is busy.
        below: there is room where the load is below this, in the same unit.
        n: so many examples must wait.
        at_most_s: but a step is due, whatever the load, so many seconds after the last one (or after the first
            examples).
    """

    load: Callable[[], float]
    below: float
    n: int = 1
    at_most_s: float = math.inf

    def __post_init__(self) -> None:
        if math.isnan(self.below):
            raise ConfigError("trigger.below", "must be a number")
        if not self.at_most_s > 0:
            raise ConfigError("trigger.at_most_s", f"must be above 0, not {self.at_most_s}")
        self._enough, self._latest, self._room = EveryN(self.n), EverySeconds(self.at_most_s), False

    def inform(self, news: News) -> bool:
        enough, late = self._enough.inform(news), self._latest.inform(news)
        self._room = self._room or (enough and self.load() < self.below)
        return self._room or late

    def taken(self, now_s: float) -> None:
        self._enough.taken(now_s)
        self._latest.taken(now_s)
        self._room = False

    def state_dict(self) -> dict[str, Any]:
        parts = {"enough": self._enough.state_dict(), "latest": self._latest.state_dict()}
        return {"kind": "when_idle", "room": self._room, **parts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        require_kind(state, "when_idle", "trigger")
        self._enough.load_state_dict(state["enough"])
        self._latest.load_state_dict(state["latest"])
        self._room = bool(state["room"])
