"""Proactive training: each few new examples, mixed with sampled history, make one training step.

Prapas et al. 2021 (doi 10.1007/s13222-021-00386-8), after Derakhshan et al. 2019. Deployment is the publisher's part,
which hangs on the optimizer; without one this is plain proactive training.
"""

from __future__ import annotations

import bisect
import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from evergrad.errors import ConfigError, HistoryDamaged, LossRefused, NonFiniteLoss, NotInHistory
from evergrad.history import History
from evergrad.pytorch.checkpoint import Checkpoints
from evergrad.pytorch.choice import examples_to_score
from evergrad.pytorch.learner import Learned, Learner, Loss, StepFunction
from evergrad.pytorch.mixing import Ids, Mixer, Transform
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.writer import Published
from evergrad.sampling import Feedback, Sampler
from evergrad.stateful import Stateful, load_all, states_of
from evergrad.stream import Batch
from evergrad.trigger import News, Trigger

Publish = bool | Callable[[], bool]
_RECALIBRATED_EVERY = 16  # steps: a forward pass more, 2% of them


@dataclass(frozen=True, slots=True)
class _Told:
    """What the deployed model, at that version, said of these inputs."""

    version: int
    x: npt.NDArray[Any]
    outputs: npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a trigger led to.

    Attributes:
        number: of the last training step, 1 for the first.
        loss: of its batch, before the step.
        new, old: how many new and how many historical examples were in its batch.
        published: the update that it led to; None where there is no publisher, or updates are held.
    """

    number: int
    loss: float
    new: int
    old: int
    published: Published | None


class Trainer:
    """Learns from a stream, batch by batch.

    Killed at any instant and started again with `checkpoints`, it goes on bit for bit: `resume` takes it back to the
    newest checkpoint, and gives the batches that came since, which the history has, to be learned from again.

    Args:
        model, loss, optimizer: as in any torch loop; `loss(model(x), y)` gives the mean over the batch, or one value
            for each example. The model may be on any device, and compiled.
        history: where all examples go; its columns are x and y.
        sampler: which old examples join a batch.
        trigger: when a step is due.
        batch_size: new and old examples together; new ones always join, even where they are more.
        publisher: of this model and optimizer, or None to train alone.
        steps_per_trigger: so many steps at once, each with the new examples and old ones of its own.
        autocast, scaler, clip_norm, scheduler, step: see `Learner`.
        join_new, transform_new, transform_old, prefetch: see `Mixer`.
        checkpoints: where `checkpoint` writes.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        history: History,
        sampler: Sampler,
        trigger: Trigger,
        batch_size: int,
        publisher: Publisher | None = None,
        steps_per_trigger: int = 1,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        clip_norm: float | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        step: StepFunction | None = None,
        join_new: bool = True,
        transform_new: Transform | None = None,
        transform_old: Transform | None = None,
        prefetch: bool = False,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        if steps_per_trigger < 1:
            raise ConfigError("steps_per_trigger", f"must be 1 or more, not {steps_per_trigger}")
        with publisher.master() if publisher else contextlib.nullcontext():  # it looks at how the weights lie
            self.learner = Learner(
                model, loss, optimizer,
                autocast=autocast, scaler=scaler, clip_norm=clip_norm, scheduler=scheduler, step=step,
                tell_each=isinstance(sampler, Feedback),
            )  # fmt: skip
        self._mixer = Mixer(
            history, sampler, batch_size,
            join_new=join_new, transform_new=transform_new, transform_old=transform_old, prefetch=prefetch,
        )  # fmt: skip
        self._history, self._trigger, self._publisher = history, trigger, publisher
        self._steps_per_trigger = steps_per_trigger
        self._checkpoints, self._checkpointed = checkpoints, 0
        self._scored = examples_to_score(batch_size)
        self._told: _Told | None = None
        self._others: dict[str, Stateful] = {}
        self._first_at: dict[int, int] = {}
        self._batches, self._end = history.batches, history.end
        self._learned = self._end

    @property
    def steps(self) -> int:
        """How many training steps it has taken."""
        return self.learner.steps

    @property
    def end(self) -> int:
        """The id of the example that comes next."""
        return self._end

    @property
    def waiting(self) -> range:
        """The ids of the new examples that no step has learned from."""
        return range(self._learned, self._end)

    @property
    def newest_s(self) -> float:
        """When the newest example that it has taken in arrived, as the history has it, seconds since 1970; 0: none."""
        if self._end <= self._history.first:
            return 0.0
        if self._end == self._history.end:
            return self._history.newest_us / 1e6
        return float(self._history.arrived_us(np.array([self._end - 1]))[0]) / 1e6

    def predict(self, x: npt.NDArray[Any], weights: Mapping[str, torch.Tensor] | None = None) -> npt.NDArray[Any]:
        """The outputs for a batch of inputs, by the deployed model (by the model itself where there is no publisher).

        Args:
            weights: other weights to show, as `Publisher.published` gives them.
        """
        with self._publisher.deployed(weights) if self._publisher else contextlib.nullcontext():
            outputs = self.learner.predict(x)
        if self._publisher is not None and self._publisher.choice is not None and weights is None:
            newest = slice(-self._scored, None)
            self._told = _Told(self._publisher.version, np.copy(x[newest]), np.copy(outputs[newest]))
        return outputs

    def losses_of(
        self, outputs: npt.NDArray[Any], y: npt.NDArray[Any], *, each: bool = False
    ) -> npt.NDArray[np.float64]:
        """As `Learner.losses_of`."""
        return self.learner.losses_of(outputs, y, each=each)

    def learn(
        self,
        batch: Batch,
        *,
        loss: float = float("nan"),
        publish: Publish = True,
    ) -> Step | None:
        """Takes in new examples, and takes training steps where they are due; None where none is.

        Args:
            loss: of the predictions that were made for them, for triggers that look at it.
            publish: False, now or when it is called after the step, holds the update back; it goes out with the next
                one that is let through.

        Raises:
            HistoryMismatch: the batch differs from the ones before; nothing was taken in.
            NonFiniteLoss, NonFiniteWeights, LossRefused: the examples are in the history, and wait for the next step;
                no update was published. `exclude(waiting.start, waiting.stop)` leaves them out.
            WriterConflict, LogUnavailable: from the publisher; the step was taken, its update waits.
        """
        if not len(batch):
            return None
        arrived_s = self._take_in(batch)
        choice = None if self._publisher is None else self._publisher.choice
        if self._publisher is not None and choice is not None and choice.wants_score():
            self._compare(self._publisher, batch)
        if not self._trigger.inform(News(examples=len(batch), now_s=arrived_s, loss=loss)):
            return None
        return self.step(publish=publish)

    def step(self, *, publish: Publish = True) -> Step:
        """Takes the training steps of one trigger now, with the new examples that wait, if any."""
        first, last = self._learned, self._end
        newest_s = self.newest_s
        for _ in range(self._steps_per_trigger):
            learned, ids = self._step(first, last)
        goes_out = publish if isinstance(publish, bool) else publish()
        self._learned = last
        self._trigger.taken(newest_s)
        published = None
        if self._publisher:
            published = self._publisher.publish(newest_s, (first, last), hold=not goes_out)
        new = int(np.count_nonzero(ids >= first))
        return Step(number=self.steps, loss=learned.mean, new=new, old=len(ids) - new, published=published)

    def _compare(self, publisher: Publisher, batch: Batch) -> None:
        """Tells the publisher how both copies do on new examples, the newest ones where there are many."""
        x, y = batch.x[-self._scored :], batch.y[-self._scored :]
        told = self._told
        if told is not None and told.version == publisher.version and np.array_equal(told.x, x):
            deployed = told.outputs
        else:
            deployed = self.predict(x)
        with publisher.master():
            master = self.learner.predict(x)
        losses = (float(self.losses_of(outputs, y).mean()) for outputs in (deployed, master))
        publisher.score(*losses)

    def _take_in(self, batch: Batch) -> float:
        """Appends a batch, or finds it in the history; gives when it arrived, as the history has it."""
        if self._batches < self._history.batches:
            ids = self._history.batch(self._batches)
        else:
            self._mixer.settle()
            ids = self._history.append({"x": batch.x, "y": batch.y}, batch.arrived_s)
        self._batches, self._end = self._batches + 1, ids.stop
        return self.newest_s

    def _step(self, first: int, last: int) -> tuple[Learned, Ids]:
        x, y, ids = self._mixer.batch(first, last)
        try:
            learned = self.learner.learn(x, y)
        except (NonFiniteLoss, LossRefused):
            if self._publisher:  # the forward pass has put what it saw into BatchNorm's statistics
                self._publisher.restore_buffers()
            raise
        if self._publisher and self.steps % _RECALIBRATED_EVERY == 1:
            self._publisher.recalibrate(lambda: self.learner.forward(x))
        if isinstance(self._mixer.sampler, Feedback):
            if learned.each is None:
                raise ConfigError("step", "must give one loss for each example (reduction='none') for this sampler")
            self._mixer.sampler.learned(ids, learned.each)
        return learned, ids

    # -- going back ---------------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Any]:
        """The model, and all that follows from training it: what `go_back` takes. The tensors are the live ones."""
        model = self.learner.model
        return {
            "model": dict(model.named_buffers()) if self._publisher else model.state_dict(),
            "publisher": self._publisher.state_dict() if self._publisher else None,
            "learner": states_of(self.learner.parts()),
        }

    def go_back(self, weights: Mapping[str, Any]) -> None:
        """Takes the model back to earlier `weights`; history, sampler, trigger and stream stay where they are.

        The next update takes every replica there too.
        """
        self._told = None
        load_model(self.learner.model, weights)
        load_all(self.learner.parts(), weights["learner"])
        if self._publisher is not None:
            self._publisher.load_state_dict(weights["publisher"])

    def exclude(self, first: int, last: int) -> None:
        """Draws the examples with the ids [first, last) no more, not even as new ones; as far as there are such."""
        self._mixer.exclude(first, min(last, self._end))

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def also_keep(self, **parts: Stateful) -> None:
        """A checkpoint keeps these too; they go on from there after all that the trainer has of its own, in order."""
        self._others |= parts

    def checkpoint(self, *, now: bool = False) -> None:
        """Writes a checkpoint where one is due, or `now`; beside training, and one at a time."""
        checkpoints = self._checkpoints
        if checkpoints is None or not (
            now or self.steps // checkpoints.every > self._checkpointed // checkpoints.every
        ):
            return
        if checkpoints.busy and not now:
            return
        checkpoints.wait()
        self._checkpointed = self.steps
        self._first_at[self._batches] = self._history.first_at(self._end)
        checkpoints.save(self._batches, self.state_dict(), before=self._history.sync, after=self._let_go)

    def _let_go(self, kept: list[int]) -> None:
        """The history may remove what no checkpoint needs; a sampler may draw it where one is gone back to."""
        self._first_at = {number: first for number, first in self._first_at.items() if number in kept}
        self._history.keep_from = min(self._first_at.values())

    def resume(self, found: tuple[int, Any] | None = None, *, weights: bool = True) -> Iterator[Batch]:
        """Goes back to the newest checkpoint, and gives the batches that came after it, to be learned from again.

        Where there is none yet, one is made now: nothing is ever learned from before a checkpoint is there. The
        publisher of this trainer is made with the same checkpoint (`Publisher`, `resume`).

        Args:
            found: the newest checkpoint, where the caller has read it already.
            weights: False leaves the model as it is, and learns from nothing again: somebody has published newer
                weights, which the publisher was made with.

        Raises:
            CheckpointDamaged: there are some, and none can be read.
            HistoryDamaged: the history ends before the checkpoint.
        """
        if found is None and self._checkpoints is not None:
            found = self._checkpoints.newest()
        if found is None:
            self.checkpoint(now=True)
            if self._checkpoints is not None:
                self._checkpoints.wait()
        else:
            self._load(found[1], weights)
        return self._replayed()

    def again_from(self, example: int) -> Iterator[Batch]:
        """The batches from the one that begins at or after the example with that id, to be learned from once more.

        Raises:
            NotInHistory: retention has removed some of them.
        """
        numbers = range(self._history.batches)
        self._batches = bisect.bisect_left(numbers, example, key=self._begin_of)
        self._end = self._learned = self._begin_of(self._batches)
        return self._replayed()

    def _begin_of(self, number: int) -> int:
        if number >= self._history.batches:
            return self._history.end
        try:
            return self._history.batch(number).start
        except NotInHistory:  # it was removed, and so comes before all that is held
            return -1

    def _replayed(self) -> Iterator[Batch]:
        for number in range(self._batches, self._history.batches):
            span = self._history.batch(number)
            ids = np.arange(span.start, span.stop, dtype=np.int64)
            columns = self._history.gather(ids)
            yield Batch(columns["x"], columns["y"], float(self._history.arrived_us(ids[-1:])[0]) / 1e6)

    def state_dict(self) -> dict[str, Any]:
        """Everything that it goes on from, but for the history: see `Stateful`."""
        return {
            **self.weights(),
            "steps": self.steps,
            "batches": self._batches,
            "end": self._end,
            "learned": self._learned,
            "first_at": dict(self._first_at),
            "parts": states_of(self._own_parts()),
            "random": _random_states(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; the history holds at least what it held then."""
        self._load(state, weights=True)

    def _load(self, state: Mapping[str, Any], weights: bool) -> None:
        if (state["publisher"] is None) != (self._publisher is None):
            raise ConfigError("log", "a checkpoint with a publisher needs one, and one without must do without")
        if self._history.end < state["end"] or self._history.batches < state["batches"]:
            raise HistoryDamaged(
                str(self._history.path), f"it ends with example {self._history.end}, the checkpoint with {state['end']}"
            )
        if weights:
            load_model(self.learner.model, state)
        load_all(self.learner.parts(), state["learner"])
        self.learner.steps = self._checkpointed = state["steps"]
        self._batches, self._end, self._learned = state["batches"], state["end"], state["learned"]
        self._first_at = dict(state["first_at"])
        self._let_go(list(self._first_at))
        load_all(self._own_parts(), state["parts"])
        _set_random_states(state["random"])
        if not weights:
            self._batches, self._end, self._learned = self._history.batches, self._history.end, self._history.end

    def _own_parts(self) -> dict[str, Stateful]:
        return {"mixer": self._mixer, "trigger": self._trigger, **self._others}

    def close(self) -> None:
        """Waits for a checkpoint that is being written, and ends threads."""
        if self._checkpoints is not None:
            self._checkpoints.wait()
        self._mixer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load_model(model: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Gives a model what a trainer's checkpoint has of it, but for what a publisher has."""
    with torch.no_grad():
        if state["publisher"] is None:
            model.load_state_dict(state["model"])
            return
        for name, buffer in model.named_buffers():
            buffer.copy_(state["model"][name])


def _random_states() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": np.random.get_state(), "python": random.getstate()}  # noqa: NPY002


def _set_random_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(states["numpy"])  # noqa: NPY002 - users' transforms draw from it
    random.setstate(states["python"])
