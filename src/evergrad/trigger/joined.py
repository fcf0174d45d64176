"""Several triggers as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evergrad.config import require_kind
from evergrad.errors import ConfigError
from evergrad.trigger.base import News, Trigger


class _Joined:
    _kind = ""

    def __init__(self, *triggers: Trigger) -> None:
        if not triggers:
            raise ConfigError("trigger", f"{self._kind} needs at least one trigger")
        self._triggers = triggers

    def _informed(self, news: News) -> list[bool]:
        return [trigger.inform(news) for trigger in self._triggers]  # each of them, or it would miss examples

    def taken(self, now_s: float) -> None:
        for trigger in self._triggers:
            trigger.taken(now_s)

    def state_dict(self) -> dict[str, Any]:
        return {"kind": self._kind, "of": [trigger.state_dict() for trigger in self._triggers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        require_kind(state, self._kind, "trigger")
        if len(state["of"]) != len(self._triggers):
            problem = f"joins {len(self._triggers)} triggers, and {len(state['of'])} in the saved state"
            raise ConfigError("trigger", f"{problem}; resume with the same")
        for trigger, of in zip(self._triggers, state["of"], strict=True):
            trigger.load_state_dict(of)


class AnyOf(_Joined):
    """A step when at least one of several triggers says so; a step taken restarts all.

    >>> from evergrad.trigger import EveryN, EverySeconds
    >>> trigger = AnyOf(EveryN(8), EverySeconds(60))
    >>> [trigger.inform(News(examples=1, now_s=now)) for now in (0.0, 59.0, 60.0)]
    [False, False, True]
    """

    _kind = "any_of"

    def inform(self, news: News) -> bool:
        return any(self._informed(news))


class AllOf(_Joined):
    """A step when every one of several triggers says so, at once or one after the other; a step taken restarts all."""

    _kind = "all_of"

    def inform(self, news: News) -> bool:
        return all(self._informed(news))
