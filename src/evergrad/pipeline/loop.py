"""One batch after the other: predicted, scored, judged, learned from."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import NonFiniteLoss, NonFiniteWeights
from evergrad.gate import Decision, Gate
from evergrad.metrics import Running, Score
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.stats import PublisherStats
from evergrad.pytorch.trainer import Step, Trainer
from evergrad.stream import Batch

logger = logging.getLogger(__name__)
Predict = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
Alert = Callable[[Decision], None]
_GOOD_EVERY = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What happened to one batch of the stream.

    Attributes:
        batch: as it came.
        outputs: what was served for it.
        loss, score: of those; `score` is NaN where no score was asked for.
        step: the training step that it triggered, if any.
        held: whether the gate held the update back.
        examples: seen so far. updates, update_bytes: published so far.
    """

    batch: Batch
    outputs: npt.NDArray[Any]
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


class Loop:
    """One batch after the other, and the sums over them.

    With a gate it remembers two things in memory: the weights that replicas hold, while updates are held, and a state
    of the trainer to go back to, which is that of the hold's beginning, or of at most 50 steps before where a step
    itself was out of bounds.
    """

    def __init__(
        self,
        trainer: Trainer,
        begun_at: int,
        publisher: Publisher | None,
        gate: Gate | None,
        predict: Predict | None,
        score: Score | None,
        alert: Alert,
    ) -> None:
        self._trainer, self._publisher, self._gate = trainer, publisher, gate
        self._predict, self._score, self._alert = predict, score, alert
        self._losses, self._scores = Running(), Running()
        self._frozen: dict[str, Any] | None = None
        self._good: tuple[int, dict[str, Any]] | None = None
        self._recorded = publisher is None
        self.begun_at = begun_at

    @property
    def held(self) -> bool:
        """Whether updates are held back now."""
        return self._gate is not None and self._gate.held > 0

    def take(self, batch: Batch) -> Progress:
        """Does all that is to be done with a batch. The first one also shows the log how the model computes."""
        if self._publisher and not self._recorded and len(batch):
            self._recorded = True
            self._publisher.record(batch.x)
        outputs = batch.outputs if batch.outputs is not None else self._served(batch.x)
        losses = self._trainer.losses_of(outputs, batch.y, each=self._gate is not None)
        loss = float(losses.mean())
        self._losses.add([loss] * len(batch))
        fresh = Running()
        if self._score:
            scored = self._score(outputs, batch.y)
            fresh.add(scored)
            self._scores.add(scored)
        self._judge(batch, losses)
        step = self._learn(batch, loss)
        stats = self._stats()
        return Progress(
            batch=batch, outputs=outputs, loss=loss, score=fresh.value, step=step, held=self.held,
            examples=self._losses.count, updates=stats.updates, update_bytes=stats.update_bytes,
        )  # fmt: skip

    def finish(self) -> RunSummary:
        """Publishes what is left, and sums up."""
        if self._publisher and not self.held:
            self._publisher.publish(self._trainer.newest_s or None)
        return RunSummary(
            examples=self._losses.count, steps=self._trainer.steps, loss=self._losses.value, score=self._scores.value,
            **asdict(self._stats()),
        )  # fmt: skip

    def _stats(self) -> PublisherStats:
        return self._publisher.stats() if self._publisher else PublisherStats()

    def _served(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._predict is not None:
            return self._predict(x)
        return self._trainer.predict(x, self._frozen)

    # -- the gate ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The state that it starts from is a good one."""
        if self._gate is not None and self._good is None:
            self._remember()

    def _judge(self, batch: Batch, losses: npt.NDArray[np.float64]) -> None:
        if self._gate is None:
            return
        candidate = None
        if self.held:
            candidate = self._trainer.losses_of(self._trainer.predict(batch.x), batch.y, each=True)
        first = self._trainer.end
        decision = self._gate.judge(losses, candidate, first=first, last=first + len(batch) - 1)
        if decision.alert and decision.verdict == "hold" and self._frozen is None:
            self._remember()
        self._follow(decision)

    def _approve(self) -> bool:
        """Whether what the step has moved may go out."""
        if self._gate is None or self._publisher is None:
            return True
        if not self.held:
            new = self._trainer.waiting
            self._follow(self._gate.judge_move(self._publisher.last_move(), first=new.start, last=new.stop - 1))
        return not self.held

    def _follow(self, decision: Decision) -> None:
        if not decision.alert:
            return
        if decision.verdict == "hold" and self._frozen is None and self._publisher:
            self._frozen = self._publisher.published()
        if decision.verdict == "rollback":
            self._go_back()
        if decision.verdict != "hold":
            self._frozen = None
            if decision.suspect is not None:
                self._trainer.exclude(decision.suspect[0], decision.suspect[1] + 1)
        self._alert(decision)

    def _remember(self) -> None:
        self._good = self._trainer.steps, copy.deepcopy(self._trainer.weights())

    def _go_back(self) -> None:
        if self._good is not None:
            self._trainer.go_back(copy.deepcopy(self._good[1]))

    def _learn(self, batch: Batch, loss: float) -> Step | None:
        if self._gate is None:
            return self._trainer.learn(batch, loss=loss)
        try:
            step = self._trainer.learn(batch, loss=loss, publish=self._approve)
        except (NonFiniteLoss, NonFiniteWeights) as error:
            step = self._learn_without(error)
        if (
            not self.held
            and self._good is not None
            and self._trainer.steps // _GOOD_EVERY > self._good[0] // _GOOD_EVERY
        ):
            self._remember()
        return step

    def _learn_without(self, error: NonFiniteLoss | NonFiniteWeights) -> Step:
        """Takes a step without the new examples that made a loss or a weight infinite."""
        new = self._trainer.waiting
        logger.warning("examples %d to %d are left out: %s", new.start, new.stop - 1, error)
        if isinstance(error, NonFiniteWeights):
            self._go_back()
        self._trainer.exclude(new.start, new.stop)
        return self._trainer.step(publish=self._approve)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Sums, and what the gate has seen and remembers; see `Stateful`."""
        good = self._good if self._good is not None and self._good[0] != self._trainer.steps else None
        return {
            "losses": self._losses.state_dict(),
            "scores": self._scores.state_dict(),
            "begun_at": self.begun_at,
            "gate": None if self._gate is None else self._gate.state_dict(),
            "frozen": self._frozen,
            "good": good,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; the trainer has done so before."""
        self._losses.load_state_dict(state["losses"])
        self._scores.load_state_dict(state["scores"])
        self.begun_at, self._frozen, self._good = state["begun_at"], state["frozen"], state["good"]
        if self._gate is not None and state["gate"] is not None:
            self._gate.load_state_dict(state["gate"])
