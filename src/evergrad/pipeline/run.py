"""`run`, and going back."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evergrad.errors import ConfigError, EvergradError
from evergrad.gate import Decision, Gate
from evergrad.history import History
from evergrad.lineage import blame
from evergrad.log import open_log
from evergrad.maintain import state_at
from evergrad.metrics import Score
from evergrad.pipeline.loop import Alert, Loop, Predict, Progress, RunSummary
from evergrad.pytorch.begin import others_have_written
from evergrad.pytorch.bridge import load_weights, state_views
from evergrad.pytorch.checkpoint import Checkpoints
from evergrad.pytorch.learner import Loss
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.settings import Forward
from evergrad.pytorch.trainer import Trainer, load_model
from evergrad.pytorch.writer import Published
from evergrad.records import RecordWriter
from evergrad.replica import Replica
from evergrad.sampling import Sampler
from evergrad.stream import Batch, Source, starting_at
from evergrad.trigger import Trigger

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

logger = logging.getLogger(__name__)
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
    density: float | None = None,
    forward: Forward = "auto",
    history: History | str | Path | None = None,
    checkpoints: Checkpoints | str | Path | None = None,
    gate: Gate | None = None,
    on_alert: Alert | None = None,
    predict: Predict | None = None,
    score: Score | None = None,
    observe: Observe | None = None,
    records: str | Path | None = None,
    factory: str | None = None,
    publishing: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.time,
) -> RunSummary:
    """Keeps a model fresh until its stream ends: predict, score, learn, publish, batch by batch.

    With `checkpoints` a run that was killed at any instant, and is started again with the same arguments, ends with the
    weights, the history, the records and the log of one that was not: it goes back to the newest checkpoint, learns
    from the batches since then again, out of the history, and goes on with the stream where the history ends. That
    asks for a stream that can begin there (a list or tuple, an `NpzStream`, or any `stream.Rewindable`; of others
    comes what comes), a loss and model that compute the same again, and no thread or server in between (`background`
    in `publishing`, `predict`). Where somebody else has written to the log meanwhile (a rollback), its weights count,
    and nothing is learned from again.

    Args:
        model, loss, optimizer, trigger, sampler, batch_size: see `Trainer`.
        stream: pairs (x, y) of arrays or tensors, or `Batch`es; oldest first.
        log: where updates go (see `open_log`); None: train, and deploy nothing.
        density, forward, factory: see `Publisher`.
        history: a folder, or an open history; None: a temporary one. What it holds already is sampled from.
        checkpoints: a folder, or `Checkpoints`; needs a `history` that stays.
        gate: holds updates while fresh labels say that something is wrong; None: every update goes out.
        on_alert: called whenever the gate begins, changes or ends a hold; each is also a record.
        predict: who predicts each batch before it is trained on, for example a server; None: the deployed copy here.
            Not asked for a batch that brings the outputs that were served for it.
        score: one number per example, for example `evergrad.metrics.accuracy`.
        observe: called after each batch; the fields that it gives join the batch's record.
        records: a file for one JSON line per batch.
        publishing, training: further arguments of `Publisher` and `Trainer`, by name.

    Raises:
        ConfigError, SchemaMismatch, LogError, TrainingError, HistoryError: see those. Whatever is raised, log and
            history are valid, and the model's parameters are the master weights again.
    """
    if gate is not None and log is None:
        raise ConfigError("gate", "has nothing to hold back without a log")
    if checkpoints is not None and history is None:
        raise ConfigError("checkpoints", "need a history that stays; give history a folder")
    with contextlib.ExitStack() as stack:
        history = _opened(history, stack)
        checkpoints = Checkpoints(checkpoints) if isinstance(checkpoints, str | Path) else checkpoints
        found = checkpoints.newest() if checkpoints is not None else None
        publisher, resume = None, None
        if log is not None:
            resume = _resumed(model, log, found[1]) if found is not None else None
            publisher = Publisher(
                model, optimizer, log,
                density=density, forward=forward, factory=factory, resume=resume, clock=clock, **(publishing or {}),
            )  # fmt: skip
            stack.callback(publisher.detach)
        writer = stack.enter_context(RecordWriter(records, clock=clock)) if records else None
        trainer = stack.enter_context(Trainer(
            model=model, loss=loss, optimizer=optimizer, history=history, sampler=sampler, trigger=trigger,
            batch_size=batch_size, publisher=publisher, checkpoints=checkpoints, **(training or {}),
        ))  # fmt: skip
        loop = Loop(trainer, history.batches, publisher, gate, predict, score, _teller(writer, on_alert))
        trainer.also_keep(loop=loop, **({"records": writer} if writer else {}))
        again = trainer.resume(found, weights=publisher is None or resume is not None)
        del found, resume  # several copies of the model
        for batch in _all_batches(again, loop, history, stream, clock):
            progress = loop.take(batch)
            extra = observe(progress) if observe else None
            if writer:
                writer.write("batch", **_fields(progress), **(extra or {}))
            trainer.checkpoint()
        summary = loop.finish()
        trainer.checkpoint(now=True)
        return summary


def _opened(history: History | str | Path | None, stack: contextlib.ExitStack) -> History:
    if isinstance(history, History):
        return history
    folder = history or stack.enter_context(tempfile.TemporaryDirectory(prefix="evergrad-"))
    return stack.enter_context(History(folder))


def _resumed(model: nn.Module, log: str, checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Gives a model what a checkpoint has of it, and the publisher's part of that.

    None where somebody else has written to the log since, a rollback for example: the model then has those weights.
    """
    found: Mapping[str, Any] | None = checkpoint["publisher"]
    if found is None:
        raise ConfigError("log", "the checkpoint was made without one; begin with an empty folder for checkpoints")
    if others_have_written(open_log(log, create=True), found["log"]):
        logger.warning("others have written to %s since the checkpoint: training goes on from their weights", log)
        take_weights_of(log, model)
        return None
    load_model(model, checkpoint)
    return found


def take_weights_of(log: str, model: nn.Module) -> None:
    """Gives a model the newest weights of a log, where that has any."""
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


def _all_batches(
    again: Iterator[Batch], loop: Loop, history: History, stream: Source, clock: Callable[[], float]
) -> Iterator[Batch]:
    """Those that are learned from again, and then the stream from where the history ends."""
    loop.begin()
    yield from again
    yield from starting_at(stream, history.batches - loop.begun_at, clock)


def _teller(writer: RecordWriter | None, on_alert: Alert | None) -> Alert:
    def tell(decision: Decision) -> None:
        if writer is not None:
            writer.write("gate", **asdict(decision))
        if on_alert is not None:
            on_alert(decision)

    return tell


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


def roll_back(publisher: Publisher, to: int) -> Published | None:
    """Takes the trainer and every replica back to the state of version `to`, by one new version.

    The optimizer keeps what it remembers of its steps.

    Raises:
        VersionNotInLog: retention has removed it, or nobody wrote it yet. As `Publisher.publish`.
    """
    _set_back(publisher, to)
    return publisher.publish()


def _set_back(publisher: Publisher, to: int) -> None:
    publisher.flush()
    publisher.set_weights(state_views(state_at(publisher.log, to).state))


def retrain_run(settings: Mapping[str, Any], *, version: int, without: Sequence[tuple[int, int]]) -> Published | None:
    """`retrain` with the parts that the arguments of `run` describe; its history must stay, and hold all since.

    The run itself is not going on meanwhile; started again, it goes on from the outcome.

    Raises:
        ConfigError: no log, or no history that stays. As `retrain`.
    """
    if settings.get("log") is None or settings.get("history") is None:
        raise ConfigError("history", "training again needs a log and a history that stays")
    take_weights_of(settings["log"], settings["model"])
    with contextlib.ExitStack() as stack:
        history = _opened(settings["history"], stack)
        parts = {name: settings[name] for name in ("model", "optimizer")}
        publishing = {name: settings[name] for name in ("density", "forward") if name in settings}
        publisher = Publisher(**parts, log=settings["log"], **(settings.get("publishing") or {}), **publishing)
        stack.callback(publisher.detach)
        others = {name: settings[name] for name in ("loss", "sampler", "trigger", "batch_size")}
        trainer = Trainer(**parts, **others, history=history, publisher=publisher, **(settings.get("training") or {}))
        found = retrain(stack.enter_context(trainer), publisher, history, version=version, without=without)
        publisher.flush()
        return found


def retrain(
    trainer: Trainer, publisher: Publisher, history: History, *, version: int, without: Sequence[tuple[int, int]]
) -> Published | None:
    """Trains again from an older version, without some examples, and publishes the outcome as one new version.

    The batches that came after `version` are learned from as they came, by the same trigger and sampler, but for the
    examples that are left out; those are marked in the history, and never drawn again (see `History.exclude`).

    Args:
        trainer, publisher, history: of one model; nothing of the trainer's is waiting.
        version: one whose update names the examples that it learned from (see `lineage.blame`), or the first.
        without: ids of examples, each from the first to before the last.

    Raises:
        ConfigError: the version does not say what it learned from. VersionNotInLog, NotInHistory: it, or what came
            after it, is no longer held.
    """
    examples = blame(publisher.log, version).examples if version else None
    if version and examples is None:
        raise ConfigError("version", f"{version} does not say which examples it learned from; choose another one")
    _set_back(publisher, version)
    for first, last in without:
        trainer.exclude(first, last)
    for batch in trainer.again_from(examples.stop if examples else history.first):
        trainer.learn(batch, publish=False)
    return publisher.publish()
