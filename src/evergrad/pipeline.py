"""`run`: the one place where all parts are joined.

stream -> predict and score (prequential) -> gate -> history, sampler, trigger -> step -> publisher -> log
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from evergrad.config import build, build_one_of, import_object, load_toml
from evergrad.errors import ConfigError, EvergradError
from evergrad.gate import Gate
from evergrad.history import History
from evergrad.metrics import Running, Score, absolute_error, accuracy
from evergrad.pytorch.bridge import load_weights
from evergrad.pytorch.publisher import Publisher, PublisherStats
from evergrad.pytorch.settings import Forward
from evergrad.pytorch.trainer import Loss, Step, Trainer
from evergrad.records import RecordWriter
from evergrad.replica import Replica
from evergrad.sampling import Sampler, Uniform, Window
from evergrad.stream import Batch, Source, batches
from evergrad.stream.files import NpzStream
from evergrad.trigger import EveryN, EverySeconds, Trigger

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

logger = logging.getLogger(__name__)
Predict = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What happened to one batch of the stream.

    Attributes:
        batch: as it came.
        loss, score: of the predictions made before training on it; `score` is NaN where no score was asked for.
        step: the training step that it triggered, if any.
        held: whether the gate held the update back.
        examples: seen so far. updates, update_bytes: published so far.
    """

    batch: Batch
    loss: float
    score: float
    step: Step | None
    held: bool
    examples: int
    updates: int
    update_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary(PublisherStats):
    """A whole run, and what its publisher did (all 0 without one). `score` and `loss` are prequential means."""

    examples: int
    steps: int
    loss: float
    score: float


Observe = Callable[[Progress], Mapping[str, Any] | None]


def run(
    *,
    model: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    stream: Source,
    trigger: Trigger,
    sampler: Sampler,
    batch_size: int,
    log: str | None = None,
    density: float = 1e-3,
    forward: Forward = "deployed",
    history: History | str | Path | None = None,
    gate: Gate | None = None,
    predict: Predict | None = None,
    score: Score | None = None,
    observe: Observe | None = None,
    records: str | Path | None = None,
    factory: str | None = None,
    clock: Callable[[], float] = time.time,
) -> RunSummary:
    """Keeps a model fresh until its stream ends: predict, score, learn, publish, batch by batch.

    Args:
        model, loss, optimizer, trigger, sampler, batch_size: see `Trainer`.
        stream: pairs (x, y) of arrays or tensors, or `Batch`es; oldest first.
        log: where updates go (see `open_log`); None: train, and deploy nothing.
        density, forward, factory: see `Publisher`.
        history: a folder, or an open history; None: a temporary one. What it holds already is sampled from.
        gate: holds updates while the fresh loss is bad; None: every update goes out.
        predict: who predicts each batch before it is trained on, for example a server; None: the deployed copy here.
        score: one number per example, for example `evergrad.metrics.accuracy`.
        observe: called after each batch; the fields that it gives join the batch's record.
        records: a file for one JSON line per batch.

    Raises:
        ConfigError, SchemaMismatch, LogError, TrainingError, HistoryError: see those. Whatever is raised, log and
            history are valid, and the model's parameters are the master weights again.
    """
    publisher = None
    if log is not None:
        publisher = Publisher(model, optimizer, log, density=density, forward=forward, factory=factory, clock=clock)
    with contextlib.ExitStack() as stack:
        if publisher:
            stack.callback(publisher.detach)
        if not isinstance(history, History):
            history = History(history or stack.enter_context(tempfile.TemporaryDirectory(prefix="evergrad-")))
        writer = stack.enter_context(RecordWriter(records, clock=clock)) if records else None
        trainer = Trainer(
            model=model, loss=loss, optimizer=optimizer, history=history, sampler=sampler, trigger=trigger,
            batch_size=batch_size, publisher=publisher,
        )  # fmt: skip
        loop = _Loop(trainer, publisher, gate, predict or trainer.predict, score)
        for batch in batches(stream, clock):
            progress = loop.take(batch)
            extra = observe(progress) if observe else None
            if writer:
                writer.write("batch", **_fields(progress), **(extra or {}))
        return loop.finish()


class _Loop:
    """One batch after the other, and the sums over them."""

    def __init__(
        self, trainer: Trainer, publisher: Publisher | None, gate: Gate | None, predict: Predict, score: Score | None
    ) -> None:
        self._trainer, self._publisher, self._gate = trainer, publisher, gate
        self._predict, self._score = predict, score
        self._losses, self._scores, self._held = Running(), Running(), False

    def take(self, batch: Batch) -> Progress:
        outputs = self._predict(batch.x)
        loss = self._trainer.loss_of(outputs, batch.y)
        self._losses.add([loss] * len(batch))
        fresh = Running()
        if self._score:
            scored = self._score(outputs, batch.y)
            fresh.add(scored)
            self._scores.add(scored)
        self._held = self._gate is not None and not self._gate.judge(loss)
        step = self._trainer.learn(batch, publish=not self._held)
        stats = self._stats()
        return Progress(
            batch=batch, loss=loss, score=fresh.value, step=step, held=self._held, examples=self._losses.count,
            updates=stats.updates, update_bytes=stats.update_bytes,
        )  # fmt: skip

    def finish(self) -> RunSummary:
        if self._publisher and not self._held:
            self._publisher.publish()
        return RunSummary(
            examples=self._losses.count, steps=self._trainer.steps, loss=self._losses.value, score=self._scores.value,
            **asdict(self._stats()),
        )  # fmt: skip

    def _stats(self) -> PublisherStats:
        return self._publisher.stats() if self._publisher else PublisherStats()


def _fields(progress: Progress) -> dict[str, Any]:
    step = progress.step
    return {
        "examples": progress.examples,
        "loss": progress.loss,
        "score": progress.score,
        "held": progress.held,
        "train_loss": step.loss if step else None,
        "version": step.published.version if step and step.published else None,
        "update_bytes": step.published.update_bytes if step and step.published else 0,
        "elements": step.published.elements if step and step.published else 0,
    }


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run as TOML: the fields of `run`, with import paths (`package.module:name`) where that takes code.

    Attributes:
        model: builds the module; called without arguments.
        loss: called as loss(model(x), y).
        optimizer: `factory`, called with the model's parameters and all other keys of the table.
        stream: the fields of `NpzStream`.
        trigger: `kind` every_n or every_seconds, and its fields. sampler: `kind` uniform or window, and its fields.
        gate: the fields of `Gate`; absent: none.
        score: accuracy or absolute_error.
    """

    model: str
    loss: str
    log: str
    optimizer: dict[str, Any]
    stream: dict[str, Any]
    trigger: dict[str, Any]
    sampler: dict[str, Any]
    batch_size: int
    density: float = 1e-3
    forward: Forward = "deployed"
    history: str | None = None
    gate: dict[str, Any] | None = None
    score: str | None = None
    records: str | None = None


_TRIGGERS: dict[str, type[Any]] = {"every_n": EveryN, "every_seconds": EverySeconds}
_SAMPLERS: dict[str, type[Any]] = {"uniform": Uniform, "window": Window}
_SCORES: dict[str | None, Score | None] = {None: None, "accuracy": accuracy, "absolute_error": absolute_error}


def load_run(path: str | Path) -> dict[str, Any]:
    """The keyword arguments of `run` that a TOML file describes.

    Where its log exists, the model begins with the log's newest weights; the optimizer begins anew.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, missing or of a wrong type, or an import path
            leads nowhere.
        SchemaMismatch, LogError: the log that exists is of another model, or cannot be read.
    """
    config = build(RunConfig, load_toml(path))
    if config.score not in _SCORES:
        raise ConfigError("score", f"must be accuracy or absolute_error, not {config.score!r}")
    model = _call("model", import_object(config.model, "model"))
    _continue_from(config.log, model)
    options = {key: value for key, value in config.optimizer.items() if key != "factory"}
    make_optimizer = import_object(str(config.optimizer.get("factory")), "optimizer.factory")
    return {
        "model": model,
        "loss": import_object(config.loss, "loss"),
        "optimizer": _call("optimizer", make_optimizer, model.parameters(), **options),
        "stream": build(NpzStream, config.stream, "stream"),
        "log": config.log,
        "trigger": build_one_of(_TRIGGERS, config.trigger, "trigger"),
        "sampler": build_one_of(_SAMPLERS, config.sampler, "sampler"),
        "batch_size": config.batch_size,
        "density": config.density,
        "forward": config.forward,
        "history": config.history,
        "gate": build(Gate, config.gate, "gate") if config.gate is not None else None,
        "score": _SCORES[config.score],
        "records": config.records,
        "factory": config.model,
    }


def _continue_from(log: str, model: nn.Module) -> None:
    replica = Replica(log)
    if not replica.log.begun():
        return
    try:
        replica.sync()
    except EvergradError as error:
        if replica.stats().version is None:
            raise
        logger.warning("training continues from version %d: %s", replica.version, error)
    load_weights(model, replica)


def _call(where: str, factory: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return factory(*arguments, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(where, f"{factory!r} refuses its arguments: {error}") from error
