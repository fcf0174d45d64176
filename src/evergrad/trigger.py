"""When to take a proactive training step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from evergrad.errors import ConfigError


class Trigger(Protocol):
    """Decides, batch by batch, whether a training step is due."""

    def inform(self, examples: int, now_s: float) -> bool:
        """Tells that `examples` new ones have arrived at `now_s` (seconds); True: a step is due, counting restarts."""
        ...


@dataclass(kw_only=False)
class EveryN:
    """A step whenever at least `n` new examples have arrived (Prapas et al. 2021: `trigger_size`).

    >>> trigger = EveryN(8)
    >>> [trigger.inform(4, 0.0) for _ in range(4)]
    [False, True, False, True]
    """

    n: int
    _waiting: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError("trigger.n", f"must be 1 or more, not {self.n}")

    def inform(self, examples: int, now_s: float) -> bool:  # noqa: ARG002 - time plays no part here
        self._waiting += examples
        due = self._waiting >= self.n
        if due:
            self._waiting = 0
        return due


@dataclass
class EverySeconds:
    """A step when `seconds` have passed since the last one, with whatever examples have arrived.

    >>> trigger = EverySeconds(60)
    >>> [trigger.inform(1, now) for now in (0.0, 59.0, 60.0, 61.0)]
    [False, False, True, False]
    """

    seconds: float
    _last_s: float | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ConfigError("trigger.seconds", f"must be above 0, not {self.seconds}")

    def inform(self, examples: int, now_s: float) -> bool:  # noqa: ARG002 - however many there are
        if self._last_s is None:
            self._last_s = now_s
        due = now_s - self._last_s >= self.seconds
        if due:
            self._last_s = now_s
        return due
