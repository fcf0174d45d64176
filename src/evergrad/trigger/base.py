"""The seam between the trainer and its triggers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What has just arrived.

    Attributes:
        examples: how many, labelled.
        now_s: when, seconds since 1970.
        loss: their mean loss, predicted before they were trained on (prequential); NaN where they were not scored.
    """

    examples: int
    now_s: float
    loss: float = float("nan")


class Trigger(Protocol):
    """Decides, batch by batch, whether a training step is due."""

    def inform(self, news: News) -> bool:
        """Tells what has arrived. True: a step is due; it stays due at further calls until one was taken."""
        ...

    def taken(self, now_s: float) -> None:
        """Tells that a step was taken, due or not: counting restarts."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that the next answers depend on: plain JSON values and numpy arrays, all copies."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on exactly where the trigger was, one made with the same arguments, that gave `state`.

        Raises:
            ConfigError: it is the state of another kind of trigger.
        """
        ...
