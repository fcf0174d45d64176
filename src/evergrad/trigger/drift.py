"""A trigger by whether the stream has changed. The only file that imports river, and it does so on first use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from evergrad.config import require_kind
from evergrad.errors import ConfigError, MissingDependency
from evergrad.trigger.base import News


class _Detector(Protocol):
    drift_detected: bool

    def update(self, x: float) -> None: ...


@dataclass(kw_only=True)
class OnDrift:
    """Steps when a drift detector finds that the prequential loss has changed, for the worse or the better.

    The detectors are river's: ADWIN (Bifet and Gavaldà 2007) and the Page-Hinkley test (Page 1954), fed with the mean
    loss of each batch; what was not scored, or is not finite, is left out. A drift asks for few steps in a long time,
    so it is mostly one of several triggers: `AnyOf(EveryN(1000), OnDrift(steps=100))`.

    The detector begins anew after each drift, as river's do. It remembers at most `memory` losses: when they are more,
    it begins anew with the newest half of them. So what it knows is always a function of the losses kept here, and a
    saved state is these, independent of river's version; loading feeds them to a new detector, which is then exactly
    where the old one was.

    Args:
        detector: adwin or page-hinkley.
        steps: how many steps are due for one drift; a further drift meanwhile begins the count anew.
        memory: how many losses the detector knows at most.
        options: arguments of river's detector, for example {"delta": 0.01}, or {"mode": "up"} of Page-Hinkley for
            changes for the worse alone.

    Raises:
        MissingDependency: river is not installed.
    """

    detector: Literal["adwin", "page-hinkley"] = "adwin"
    steps: int = 1
    memory: int = 4096
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError("trigger.steps", f"must be 1 or more, not {self.steps}")
        if self.memory < 64:
            raise ConfigError("trigger.memory", f"must be 64 or more, not {self.memory}")
        self._owed = 0
        self._begin([])

    def inform(self, news: News) -> bool:
        if math.isfinite(news.loss):
            if len(self._losses) == self.memory:
                self._begin(self._losses[self.memory // 2 :])
            self._losses.append(news.loss)
            self._detector.update(news.loss)
            if self._detector.drift_detected:
                self._owed = self.steps
                self._begin([])
        return self._owed > 0

    def taken(self, now_s: float) -> None:  # noqa: ARG002 - time plays no part here
        self._owed = max(0, self._owed - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"kind": "on_drift", "owed": self._owed, "losses": np.array(self._losses, dtype=np.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        require_kind(state, "on_drift", "trigger")
        self._owed = int(state["owed"])
        self._begin([float(loss) for loss in state["losses"]])

    def _begin(self, losses: list[float]) -> None:
        self._losses = losses
        self._detector = _new_detector(self.detector, self.options)
        for loss in losses:
            self._detector.update(loss)


def _new_detector(name: str, options: Mapping[str, Any]) -> _Detector:
    try:
        from river import drift
    except ModuleNotFoundError as error:
        if error.name != "river":
            raise
        raise MissingDependency("river", "drift") from error
    kinds: dict[str, Any] = {"adwin": drift.ADWIN, "page-hinkley": drift.PageHinkley}
    if name not in kinds:
        raise ConfigError("trigger.detector", f"must be one of {', '.join(kinds)}, not {name!r}")
    try:
        made: _Detector = kinds[name](**options)
    except (TypeError, ValueError) as error:
        raise ConfigError("trigger.options", f"river's {kinds[name].__name__} refuses them: {error}") from error
    return made
