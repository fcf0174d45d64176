"""Several scores of one stream, each over all of it, over its last examples, and fading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from evergrad.errors import ConfigError
from evergrad.metrics.means import Fading, Running, Windowed
from evergrad.metrics.scores import Score, check_batch


class Kept(Protocol):
    """A number about a stream, and all that it takes to go on."""

    @property
    def value(self) -> float:
        """The number; NaN where what was taken in does not give one yet."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that `value` and later calls depend on: numbers, strings, lists, dicts and arrays, none of them live."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `state_dict` gave."""
        ...


class Metric(Kept, Protocol):
    """A score of a stream that is no mean of its examples' scores."""

    def add(self, outputs: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        """Takes in a batch, [examples, ...] each; raises ScoreMismatch, and changes nothing, where it cannot."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """What makes the three forms of a metric: of all examples, of the last n, and with a half-life in examples."""

    cumulative: Callable[[], Metric]
    windowed: Callable[[int], Metric]
    fading: Callable[[float], Metric]


_FORMS = ("", "_windowed", "_fading")


class Prequential:
    """Several scores of one stream, each cumulative, windowed and fading.

    >>> import numpy as np
    >>> from evergrad.metrics import absolute_error
    >>> found = Prequential({"mae": absolute_error}, window=2)
    >>> found.add(np.array([1.0, 2.0, 3.0]), np.array([4.0, 2.0, 2.0]))
    >>> found.values()["mae_windowed"]
    0.5

    Args:
        scores: by name, what is scored: a score per example, or the forms of a metric (`AUC`).
        window: how many of the last examples the windowed forms look at.
        half_life: after how many further examples one counts half in the fading forms.

    Attributes:
        examples: taken in so far.

    Raises:
        ConfigError: nothing is to be scored, two values would have one name, or a setting is out of range.
    """

    def __init__(self, scores: Mapping[str, Score | Forms], *, window: int = 1000, half_life: float = 1000.0) -> None:
        self._scores = {name: score for name, score in scores.items() if not isinstance(score, Forms)}
        self._means = {name: (Running(), Windowed(window), Fading(half_life)) for name in self._scores}
        self._metrics: dict[str, tuple[Metric, Metric, Metric]] = {
            name: (forms.cumulative(), forms.windowed(window), forms.fading(half_life))
            for name, forms in scores.items()
            if isinstance(forms, Forms)
        }
        kept: dict[str, tuple[Kept, Kept, Kept]] = {**self._means, **self._metrics}
        self._kept = {name: kept[name] for name in scores}
        self._settings = {"window": window, "half_life": float(half_life), "scores": list(scores)}
        self.examples = 0
        if not scores or len(self.values()) != len(_FORMS) * len(scores):
            raise ConfigError("scores", f"must be one or more, of different names, not {list(scores)}")

    def add(self, outputs: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        """Takes in a batch of outputs [examples, ...], as they were served, and their labels [examples, ...].

        Raises:
            ScoreMismatch: they cannot be scored against each other. Where a score per example says so, nothing has
                changed; where a metric does, those named before it have taken the batch in.
        """
        check_batch("prequential", outputs, labels)
        scored = {name: score(outputs, labels) for name, score in self._scores.items()}
        for metrics in self._metrics.values():
            for metric in metrics:
                metric.add(outputs, labels)
        for name, values in scored.items():
            for mean in self._means[name]:
                mean.add(values)
        self.examples += len(labels)

    def values(self) -> dict[str, float]:
        """Per score its `name`, `name_windowed` and `name_fading`, for a record; NaN where there is none yet."""
        return {
            name + suffix: form.value
            for name, forms in self._kept.items()
            for suffix, form in zip(_FORMS, forms, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists, dicts and arrays, for a checkpoint; none of them is live."""
        values = {name: [form.state_dict() for form in forms] for name, forms in self._kept.items()}
        return {**self._settings, "examples": self.examples, "values": values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `state_dict` gave: all later values are the same, bit for bit.

        Raises:
            ConfigError: it is of other scores, another window or another half-life; nothing has changed.
        """
        for key, setting in self._settings.items():
            if state.get(key) != setting:
                raise ConfigError(key, f"is {setting} here and {state.get(key)} in the state; make it with that one")
        for name, forms in self._kept.items():
            for form, values in zip(forms, state["values"][name], strict=True):
                form.load_state_dict(values)
        self.examples = int(state["examples"])
