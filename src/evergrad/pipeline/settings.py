"""A run as TOML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from evergrad.config import build, build_one_of, import_object, load_toml
from evergrad.errors import ConfigError
from evergrad.gate import Gate
from evergrad.history import History
from evergrad.metrics import (
    Score,
    absolute_error,
    accuracy,
    log_loss,
    log_loss_from_probabilities,
    squared_error,
)
from evergrad.pipeline.run import take_weights_of
from evergrad.pytorch.checkpoint import Checkpoints
from evergrad.pytorch.settings import Forward
from evergrad.sampling import (
    ClassBalanced,
    LeastUsed,
    LossPrioritised,
    Reservoir,
    TimeBiased,
    Uniform,
    Window,
)
from evergrad.stream.feedback import FeedbackStream
from evergrad.stream.files import NpzStream
from evergrad.trigger import EveryN, EverySeconds, OnDrift, OnLoss


@dataclass(frozen=True, kw_only=True)
class Publishing:
    """What TOML may say of a publisher; absent: as `Publisher` has it."""

    k: int | None = None
    budget: str | None = None
    quality: float | None = None
    selector: Literal["distance", "saliency"] | None = None
    values: Literal["steps", "exact", "bf16"] | None = None
    buffer_tolerance: float | None = None
    every_steps: int | None = None
    background: bool | None = None
    snapshot_every: int | None = None
    snapshot_every_bytes: int | None = None
    keep_versions: int | None = None
    program: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """What TOML may say of a trainer; absent: as `Trainer` has it."""

    steps_per_trigger: int | None = None
    clip_norm: float | None = None
    join_new: bool | None = None
    prefetch: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Where a history is, and how much of it is kept."""

    path: str
    keep_rows: int | None = None
    keep_bytes: int | None = None
    keep_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """Where checkpoints are, after how many steps one is due, and how many are kept."""

    path: str
    every: int = 100
    keep: int = 2


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run as TOML: the fields of `run`, with import paths (`package.module:name`) where that takes code.

    Attributes:
        model: builds the module; called without arguments.
        loss: called as loss(model(x), y).
        optimizer: `factory`, called with the model's parameters and all other keys of the table.
        stream: `kind` (npz, which may be left out, or feedback), and the fields of `NpzStream` or `FeedbackStream`.
        trigger: `kind` (every_n, every_seconds, on_drift or on_loss), and the fields of that trigger.
        sampler: `kind` (uniform, window, time_biased, reservoir, class_balanced, least_used or loss_prioritised), and
            the fields of that sampler.
        publishing: more of the arguments of `Publisher`: see `Publishing`. training: of `Trainer`: see `Training`.
        history: a folder; or `path`, and `keep_rows`, `keep_bytes` and `keep_s` as `History` takes them.
        checkpoints: `path`, and `every` and `keep` as `Checkpoints` takes them; absent: none.
        gate: the fields of `Gate`; absent: none.
        score: the name of a score per example in `evergrad.metrics`: accuracy, absolute_error, squared_error, log_loss
            (of logits) or log_loss_from_probabilities.
    """

    model: str
    loss: str
    log: str
    optimizer: dict[str, Any]
    stream: dict[str, Any]
    trigger: dict[str, Any]
    sampler: dict[str, Any]
    batch_size: int
    density: float | None = None
    forward: Forward = "auto"
    publishing: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    history: str | dict[str, Any] | None = None
    checkpoints: dict[str, Any] | None = None
    gate: dict[str, Any] | None = None
    score: str | None = None
    records: str | None = None


_STREAMS: dict[str, type[Any]] = {"npz": NpzStream, "feedback": FeedbackStream}
_TRIGGERS: dict[str, type[Any]] = {
    "every_n": EveryN,
    "every_seconds": EverySeconds,
    "on_drift": OnDrift,
    "on_loss": OnLoss,
}
_SAMPLERS: dict[str, type[Any]] = {
    "uniform": Uniform,
    "window": Window,
    "time_biased": TimeBiased,
    "reservoir": Reservoir,
    "class_balanced": ClassBalanced,
    "least_used": LeastUsed,
    "loss_prioritised": LossPrioritised,
}
_SCORES: dict[str, Score] = {
    score.__name__: score for score in (accuracy, absolute_error, squared_error, log_loss, log_loss_from_probabilities)
}


def load_run(path: str | Path) -> dict[str, Any]:
    """The keyword arguments of `run` that a TOML file describes.

    Where its log exists, the model begins with the log's newest weights; the optimizer begins anew.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, missing or of a wrong type, or an import path
            leads nowhere.
        SchemaMismatch, LogError: the log that exists is of another model, or cannot be read.
    """
    config = build(RunConfig, load_toml(path))
    if config.score is not None and config.score not in _SCORES:
        raise ConfigError("score", f"must be one of {', '.join(_SCORES)}, not {config.score!r}")
    model = _call("model", import_object(config.model, "model"))
    take_weights_of(config.log, model)
    options = {key: value for key, value in config.optimizer.items() if key != "factory"}
    make_optimizer = import_object(str(config.optimizer.get("factory")), "optimizer.factory")
    return {
        "model": model,
        "loss": import_object(config.loss, "loss"),
        "optimizer": _call("optimizer", make_optimizer, model.parameters(), **options),
        "stream": build_one_of(_STREAMS, {"kind": "npz", **config.stream}, "stream"),
        "log": config.log,
        "trigger": build_one_of(_TRIGGERS, config.trigger, "trigger"),
        "sampler": build_one_of(_SAMPLERS, config.sampler, "sampler"),
        "batch_size": config.batch_size,
        "density": config.density,
        "forward": config.forward,
        "publishing": _given(build(Publishing, config.publishing or {}, "publishing")),
        "training": _given(build(Training, config.training or {}, "training")),
        "history": _history(config.history),
        "checkpoints": _checkpoints(config.checkpoints),
        "gate": build(Gate, config.gate, "gate") if config.gate is not None else None,
        "score": _SCORES[config.score] if config.score is not None else None,
        "records": config.records,
        "factory": config.model,
    }


def _given(settings: Publishing | Training) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if value is not None}


def _history(told: str | dict[str, Any] | None) -> History | str | None:
    return History(**asdict(build(Kept, told, "history"))) if isinstance(told, dict) else told


def _checkpoints(told: dict[str, Any] | None) -> Checkpoints | None:
    return None if told is None else Checkpoints(**asdict(build(Checkpointing, told, "checkpoints")))


def _call(where: str, factory: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return factory(*arguments, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(where, f"{factory!r} refuses its arguments: {error}") from error
