"""Several triggers as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evergrad.config import require_kind
from evergrad.errors import ConfigError
from evergrad.trigger.base import News, Trigger


class AnyOf:
    """A step when at least one of several triggers says so; a step taken restarts all.

    >>> from evergrad.trigger import EveryN, EverySeconds
    >>> trigger = AnyOf(EveryN(8), EverySeconds(60))
    >>> [trigger.inform(News(examples=1, now_s=now)) for now in (0.0, 59.0, 60.0)]
    [False, False, True]
    """

    def __init__(self, *triggers: Trigger) -> None:
        self._parts = _Parts("any_of", triggers)

    def inform(self, news: News) -> bool:
        return any(self._parts.inform(news))

    def taken(self, now_s: float) -> None:
        self._parts.taken(now_s)

    def state_dict(self) -> dict[str, Any]:
        return self._parts.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._parts.load_state_dict(state)


class AllOf:
    """A step when every one of several triggers says so, at once or one after the other; a step taken restarts all."""

    def __init__(self, *triggers: Trigger) -> None:
        self._parts = _Parts("all_of", triggers)

    def inform(self, news: News) -> bool:
        return all(self._parts.inform(news))

    def taken(self, now_s: float) -> None:
        self._parts.taken(now_s)

    def state_dict(self) -> dict[str, Any]:
        return self._parts.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._parts.load_state_dict(state)


class _Parts:
    def __init__(self, kind: str, triggers: tuple[Trigger, ...]) -> None:
        if not triggers:
            raise ConfigError("trigger", f"{kind} needs at least one trigger")
        self._kind, self._triggers = kind, triggers

    def inform(self, news: News) -> list[bool]:
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
