"""The publisher: sparse, exact deployment of any model that any optimizer trains.

Two copies of the weights, and a loop between them (the memory of what was not sent is their difference; Stich,
Cordonnier, Jaggi 2018, "Sparsified SGD with Memory"):

    optimizer.step():   pre-hook    parameters show the master u
                        the step    u moves, densely, by whatever the optimizer does
                        post-hook   the k elements whose u - w is worth most are chosen; w moves there by exact steps;
                                    closed loop: parameters show w again
    publish():          what has moved since the last time becomes the next version in the log
"""

from __future__ import annotations

import operator
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import torch
from torch import nn

from evergrad.errors import LogUnavailable
from evergrad.log import UpdateLog, open_log
from evergrad.pytorch import settings
from evergrad.pytorch.begin import begin
from evergrad.pytorch.bridge import state_views
from evergrad.pytorch.choice import Choice
from evergrad.pytorch.export import Batch, record
from evergrad.pytorch.generation import begin_generation, is_of, renewed
from evergrad.pytorch.hooks import StepHooks, require_free
from evergrad.pytorch.mover import Moved, ValuesAs, written
from evergrad.pytorch.movers import mover_for
from evergrad.pytorch.pending import MOST_WAITING_FRACTION, Pending
from evergrad.pytorch.select import Selector
from evergrad.pytorch.stats import PublisherStats
from evergrad.pytorch.weights import Weights, require_finite
from evergrad.pytorch.writer import Head, Keeping, Published, Writer
from evergrad.stateful import Stateful
from evergrad.update import Change, Section, State, hull


class Publisher:
    """Attaches to an optimizer, and publishes what it does to a model.

    A log that exists is continued from its head: replicas need not restart. Weights that differ from the head's are
    published at once, as one update of absolute values.

    A model may gain and lose tensors: where the optimizer was given others since its last step, and the model has
    others too, the log goes on before that step as a new generation, of the new schema, with the next version. What has
    moved until then is the last version of the old one, at which its replicas stay. Parameters that stay keep what was
    deployed of them; new ones, and all buffers, are deployed as they are. A publisher of a model that its log was of
    before, or was about to be, takes it on in the same way.

    Args:
        model: on the CPU or a GPU, whole. In a closed loop its parameters show the deployed weights between steps.
        optimizer: any, over parameters of `model`. None: something else writes to them, such as an average of weights
            (EMA); they are then followed, and move whenever `publish` is called.
        log: a URL (see `evergrad.log.open_log`) or an open log.
        density: the fraction of parameter elements that move at each optimizer step, in (0, 1]. Default: 1e-3.
        k: instead of `density`: so many elements.
        budget: instead: as many as keep the bytes of updates to a rate, for example "20 kB/s" (`budget.ByteBudget`).
        quality: instead: as few as keep |master - deployed| / |master| below this bound, in 2-norms (two more passes).
        forward: where gradients are taken. "master" (open loop): training is untouched, the deployed weights follow.
            "deployed" (closed loop): gradients see what users see. "auto": as "master" until `score` says that the
            deployed weights cannot follow, then as "deployed"; see docs/sparsity.md for what each is good for. A
            closure passed to `optimizer.step` runs at the master always.
        selector: which elements of all tensors move. "saliency", the default: those that are worth most to the loss, by
            Adam's second moments (`select.Saliency`); "distance", the default with `quality` and where there is no
            optimizer: those that are furthest from the master; or one of your own.
        values: "steps": what moves does so by a power of two of one step, and keeps the rest in the master; "exact": it
            becomes the master's value, as 4 bytes an element or a little less. "bf16": all float32 tensors are deployed
            in bfloat16, and every element whose bfloat16 value has changed is sent, whatever the density: at each
            version replicas hold `model.bfloat16()`, bit for bit (not with `forward="deployed"`).
        buffer_tolerance: an element of a floating-point buffer is sent when it is off by more than this fraction of
            itself (BatchNorm's statistics: of a channel's deviation), rounded to within. 0: exactly, whenever it moves.
        every_steps: publishes by itself after each so many optimizer steps; None: when `publish` is called.
        background: a thread codes and writes updates while training goes on, and a log that is slow or gone does not
            hold it up: what moves waits, folded, in bounded memory (see `stats`).
        on_published: called with each update that is in the log, on the thread that wrote it.
        snapshot_every: versions between two snapshots, at most.
        snapshot_every_bytes: bytes of updates between two snapshots, at most; default: those of the model.
        keep_versions: how many versions back a reader may be and still find every update; what is older, and no
            snapshot needs, is deleted after each snapshot. Default: everything is kept.
        factory: import path `package.module:callable` that builds the module, for servers of this log.
        program: False: `record` does nothing.
        resume: what `state_dict` gave: training goes on from there bit for bit, and so does the log. What was appended
            since is appended again, with the same bytes. Where that cannot be (another log, one that somebody else has
            written to since, or `background`), the difference to the log's head is its next update.
        clock: seconds since 1970.

    Attributes:
        choice: what `score` tells with `forward="auto"`; None: `score` has no effect.

    Raises:
        ConfigError: a setting out of range. OptimizerAttached: close the other publisher first.
        SchemaMismatch: the log is of another model, and never was of this one. LogUnavailable, WriterConflict.
        NonFiniteWeights: the model holds NaN or infinity (step 0).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        log: str | UpdateLog,
        *,
        density: float | None = None,
        k: int | None = None,
        budget: str | None = None,
        quality: float | None = None,
        forward: settings.Forward = "auto",
        selector: Selector | settings.Selection | None = None,
        values: ValuesAs = "steps",
        buffer_tolerance: float = 0.02,
        every_steps: int | None = None,
        background: bool = False,
        on_published: Callable[[Published], None] | None = None,
        snapshot_every: int = 1000,
        snapshot_every_bytes: int | None = None,
        keep_versions: int | None = None,
        factory: str | None = None,
        program: bool = True,
        resume: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keeping = Keeping(
            snapshot_every=snapshot_every, snapshot_every_bytes=snapshot_every_bytes, keep_versions=keep_versions
        )
        settings.check_settings(forward, values, buffer_tolerance, every_steps)
        settings.check_optimizer(model, optimizer, forward)
        self._pace = {"density": density, "k": k, "budget": budget, "quality": quality}
        self._amount = settings.amount_for(model, values, **self._pace)
        self._log = log if isinstance(log, UpdateLog) else open_log(log, create=True)
        require_free(optimizer)
        self._model, self._optimizer, self._factory, self._program = model, optimizer, factory, program
        self._example: Batch | None = None  # of `record`
        require_finite(model)
        self._cast = torch.bfloat16 if values == "bf16" else None
        self._at_publish = optimizer is None or values == "bf16"
        self.choice = Choice() if forward == "auto" and not self._at_publish else None
        self._forward, self._values, self._tolerance = forward, values, buffer_tolerance
        self._selector = settings.selector_of(selector, optimizer, quality)
        self._sent, self._stepped = deque[tuple[int, int]](), list[Any]()
        self._last: Change | None = None
        self._on_published, self._background = on_published, background
        self._clock, self._every_steps = clock, every_steps
        self._steps, self._select_s, self._due, self._attached = 0, 0.0, 0, False
        self._unfinished = False  # whether a generation has taken a version of the log, and has not begun
        begun = begin(self._log, model, factory, self._cast, resume if not background else None)
        self._run = begun.run
        self._build(begun.state, begun.head)
        self._writer.written.snapshot_bytes = begun.snapshot_bytes
        self._attach(resume, begun.exact)

    def _build(self, state: State, head: Head) -> None:
        """Makes all that belongs to one structure of the model."""
        self._state = state
        self._pending = self._nothing()
        self._weights = self._make_weights(closed_loop=self.closed)
        self._mover = mover_for(self._model, self._weights, state, self._selector, self._values, lambda: self._steps)
        self._writer = Writer(
            self._log, state, head, self._run, self._keeping,
            background=self._background, on_published=self._note, check=self._weights.check_copy,
        )  # fmt: skip
        # Not at exit: what runs there may still close this publisher, which needs the thread.
        weakref.finalize(self, self._writer.end_soon).atexit = False

    def _make_weights(self, *, closed_loop: bool) -> Weights:
        return Weights(self._model, self._state, closed_loop=closed_loop)

    def _nothing(self) -> Pending:
        return Pending(self._state.schema, int(self._state.schema.elements * MOST_WAITING_FRACTION))

    def _take_apart(self) -> None:
        for table in self._mover.tables:
            table.close()
        self._writer.close()
        self._weights.show_master()

    def _attach(self, resume: Mapping[str, Any] | None, exact: bool) -> None:
        self._attached = True
        self._hooks = StepHooks(self._optimizer, self._log.url, self._before_step, self._after_step)
        try:
            if resume is not None:
                self._resume(resume, exact)
            else:
                self._take_in(self._weights.differing())
                if self._at_publish:
                    self._move()
            self._weights.show_own()
            if not exact:
                self._publish(None)
                self._writer.flush()
        except BaseException:
            self.detach()
            raise

    def master(self) -> AbstractContextManager[nn.Module]:
        """Inside, the model's parameters are the master weights, and may be read, saved and changed in place."""
        return self._weights.showing_master()

    def deployed(self, other: Mapping[str, torch.Tensor] | None = None) -> AbstractContextManager[nn.Module]:
        """Inside, parameters and buffers are exactly the deployed ones, or `other`, from `published`; to evaluate."""
        return self._weights.showing_deployed(other)

    def published(self) -> dict[str, torch.Tensor]:
        """Copies of the weights that were published last, by name: the deployed ones, less what waits for `publish`."""
        state = State(self._state.schema, [array.copy() for array in self._state.arrays], self._state.digest)
        self._pending.take_back(state)
        return state_views(state)

    def last_move(self) -> float:
        """How far the last optimizer step moved the deployed weights: the 2-norm of all differences."""
        return self._last.distance() if self._last is not None else 0.0

    def restore_buffers(self) -> None:
        """Gives the model's buffers back what was deployed, for example after a forward pass on damaged examples."""
        self._weights.buffers.restore()

    def recalibrate(self, forward: Callable[[], object]) -> None:
        """Lets BatchNorm's statistics follow the deployed weights; in an open loop they are those of the master else.

        To be called after one in some sixteen steps. `forward` passes a training batch through the model, `lambda:
        model(x)`: at the deployed weights, in evaluation mode but for what BatchNorm takes in.
        """
        if not self._at_publish:
            self._weights.recalibrate(forward)

    @property
    def closed(self) -> bool:
        """Whether the next gradients are to be taken at the deployed weights."""
        return self._forward == "deployed" if self.choice is None else self.choice.closed

    def score(self, deployed: float, master: float) -> None:
        """Tells both copies' losses on new examples, before these are learned from: what `forward="auto"` goes by.

        To be called between steps, outside of `deployed()` and `master()`. Raises WeightsChanged.
        """
        if self.choice is not None:
            self.choice.score(deployed, master)
            self._weights.turn(closed_loop=self.closed)

    # -- the optimizer's step -------------------------------------------------------------------------------------

    def _before_step(self) -> None:
        self._check_structure()
        self._weights.check_untouched()
        self._weights.show_master()
        self._weights.align_gradients()
        for table in self._mover.tables:
            table.before_step()

    def _check_structure(self) -> None:
        """Begins a new generation where the optimizer was given other parameters, and the model has others too."""
        if self._optimizer is None:
            return
        stepped = [p for group in self._optimizer.param_groups for p in group["params"]]
        same = len(stepped) == len(self._stepped) and all(map(operator.is_, stepped, self._stepped))
        if self._unfinished or not (same or is_of(self._model, self._weights, self._state.schema, self._cast)):
            self._begin_anew()
        self._stepped = stepped

    def _begin_anew(self) -> None:
        if not self._unfinished:
            examples = self._pending.examples
            self.flush()
            if self._writer.waiting:
                raise LogUnavailable(self._log.url, "what moved while it was gone is not in it yet")
            self._pending.examples = examples  # of the coming step, if `hold` told them
        amount = settings.amount_again(self._amount, self._model, self._values, self._pace)
        state = renewed(self._model, self._weights, self._cast)
        self._unfinished = True
        head, size = begin_generation(self._log, state, self._writer.head, self._run, self._factory)
        examples, written = self._pending.examples, self._writer.written
        self._take_apart()
        self._build(state, head)
        self._amount, self._pending.examples, self._writer.written = amount, examples, written
        written.snapshot_bytes += size
        self._weights.show_own()
        self._unfinished = False
        if self._example is not None:
            self.record(self._example)

    def _after_step(self) -> None:
        self._steps += 1
        try:
            self._weights.check_untouched()
            if not (self._at_publish or settings.is_skipped(self._optimizer)):
                self._move()
                if self.choice is not None:
                    self._weights.let_go(1 - self.choice.keep())
        finally:
            self._weights.show_own()
            self._weights.return_gradients()
        if self._every_steps is not None and self._steps % self._every_steps == 0:
            self.publish()

    def _move(self) -> None:
        """Chooses elements and moves the deployed weights there.

        Raises:
            NonFiniteWeights: the master holds NaN or infinity; deployed weights stay as they are.
        """
        begun = time.perf_counter()
        while self._sent:
            self._amount.sent(*self._sent.popleft(), self._clock())
        self._due = self._amount.due(self._clock())
        moved, count = self._mover.move(self._due) if self._due else None, 0
        self._last = moved.change if moved is not None else None
        self._take(moved)
        if moved is not None:
            count = sum(len(section.indices) for section in moved.sections)
            self._pending.moved += count
        self._amount.moved(count, self._weights.distance() if self._amount.needs_distance else None)
        self._select_s += time.perf_counter() - begun

    def _note(self, published: Published, moved: int) -> None:
        self._sent.append((moved, published.update_bytes))
        if self._on_published is not None:
            self._on_published(published)

    def _take_in(self, sections: Sequence[Section]) -> None:
        self._take(written(self._state, sections))

    def _take(self, moved: Moved | None) -> None:
        if moved is not None:
            self._weights.follow(moved.change)
            self._pending.add(moved.sections, moved.change)

    def state_dict(self) -> dict[str, Any]:
        """Both copies of the weights and all else that it goes on from, for a checkpoint beside the optimizer's.

        The tensors are the live ones, by name, as in any `state_dict` of torch: save or copy them before the next step.
        """
        return {
            "steps": self._steps,
            "master": dict(self._weights.master),
            "deployed": dict(self._weights.deployed),
            "statistics": self._weights.buffers.state_dict(),
            "amount": self._amount.state_dict(),
            "choice": self.choice and self.choice.state_dict(),
            "selector": self._selector.state_dict() if isinstance(self._selector, Stateful) else None,
            "tables": [table.turn for table in self._mover.tables],
            "sent": list(self._sent),
            "due": self._due,
            "pending": self._pending.state_dict(),
            "log": self._writer.position() | ({"head": None} if self._unfinished else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `state_dict` gave: training then goes on bit for bit as it did from there.

        The log goes on from its own head: what the deployed weights differ in is the next update (see also `resume`).
        Load the model's own `state_dict`, which has its buffers, before the publisher is made: after that its
        parameters belong to it.

        Raises:
            SchemaMismatch: it is of another model. NonFiniteWeights: it holds NaN or infinity. Nothing has changed.
        """
        self._resume(state, exact=False)

    def _resume(self, state: Mapping[str, Any], exact: bool) -> None:
        steps = int(state["steps"])
        sections = self._weights.load(state["master"], state["deployed"], steps)
        if exact:
            self._pending.load_state_dict(state["pending"], self._state)
            self._writer.go_on_from(state["log"])
            self._sent.extend(tuple(each) for each in state["sent"])
        else:
            self._take_in(sections)
        self._steps, self._due = steps, int(state["due"])
        self._amount.load_state_dict(state["amount"])
        if self.choice is not None and state["choice"] is not None:
            self.choice.load_state_dict(state["choice"])
        self._weights.go_on(state["statistics"], closed_loop=self.closed)
        if isinstance(self._selector, Stateful):
            self._selector.load_state_dict(state["selector"])
        # Not strict: on a GPU, and where nothing is compiled, no table is watched.
        for table, turn in zip(self._mover.tables, state["tables"], strict=False):
            table.turn = turn

    def set_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Both copies of the weights, and the buffers, become `weights` (by name); the difference is published next.

        Raises:
            SchemaMismatch: a tensor is missing or of another kind. NonFiniteWeights. Nothing has changed.
        """
        master = {name: weights[name].to(own.dtype) for name, own in self._weights.master.items() if name in weights}
        self._take_in(self._weights.load(master, weights, self._steps))
        self.restore_buffers()

    # -- publishing -----------------------------------------------------------------------------------------------

    def publish(
        self, newest_s: float | None = None, examples: tuple[int, int] | None = None, *, hold: bool = False
    ) -> Published | None:
        """Makes what has moved since the last time the next version, where anything has.

        Args:
            newest_s: when the newest example that the model has learned from arrived, seconds since 1970; default: now.
            examples: the new examples that the model has learned from since the last call, by their numbers in the
                history: from the first one to before the last, [first, last). The next update names them, together
                with those of earlier calls that led to none. None, or an empty range: not said.
            hold: True only notes `examples`; what has moved goes out with a later call. Where `every_steps` publishes,
                this says before a step what it will learn from.

        Returns:
            What this very call has written last; None where that is nothing, where a thread writes it, or after
            `detach`.

        Raises:
            ConfigError: `examples` that no range holds; nothing has happened.
            WriterConflict: another publisher wrote this version. LogUnavailable: the store failed; what was to be sent
                is kept, and goes out with the next call (not with `background`: there it goes out by itself).
            NonFiniteWeights: a buffer holds NaN or infinity. WeightsChanged: deployed weights were written to from
                elsewhere.
        """
        told = None if examples is None else settings.range_of(*examples)
        if not self._attached:
            return None
        self._pending.examples = hull((self._pending.examples, told))
        if hold:
            return None
        if self._unfinished:
            self._begin_anew()
        self._weights.check_untouched()
        if self._at_publish:
            self._move()
        return self._publish(newest_s)

    def _publish(self, newest_s: float | None) -> Published | None:
        if self._due or not self._steps:  # a budget that is spent holds statistics back, too
            self._take_in(self._weights.buffers.stale(self._tolerance, self._steps))
        run = self._pending
        if run:
            run.newest_us = round((self._clock() if newest_s is None else newest_s) * 1e6)
            self._pending = self._nothing()
        return self._writer.publish(run)

    def record(self, x: Batch) -> bool:
        """Saves in the log how the model computes, and what it takes and gives; whether that could be done.

        Servers then need none of its code. It takes torch some seconds, and is done again for each new generation;
        where it cannot be done, a warning says why. No other thread may use the model meanwhile.

        Args:
            x: a batch of the model's inputs, a row at least; it is kept.
        """
        self._example = x if self._program else None
        return self._example is not None and record(self._log, self._model, self._example, self._cast)

    def flush(self) -> None:
        """Publishes, and returns when all is in the log. Raises as `publish`, also with `background`."""
        self.publish()
        self._writer.flush()

    @property
    def log(self) -> UpdateLog:
        """The log that it writes."""
        return self._log

    @property
    def version(self) -> int:
        """The version that is in the log last."""
        return self._writer.head.version

    @property
    def digest(self) -> int:
        """The digest of that version."""
        return self._writer.head.digest

    def stats(self) -> PublisherStats:
        """Counts of this publisher, from its start on."""
        return self._writer.stats(select_s=self._select_s, full_push_bytes=self._state.schema.nbytes)

    def detach(self) -> None:
        """Gives the loop back as it was: no hooks, parameters are the master weights. Publishes nothing more."""
        if not self._attached:
            return
        self._attached = False
        self._hooks.remove()
        self._take_apart()

    def close(self) -> None:
        """Publishes what has moved, waits until it is in the log, and detaches."""
        try:
            if self._attached:
                self.flush()
        finally:
            self.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        (self.close if kind is None else self.detach)()
