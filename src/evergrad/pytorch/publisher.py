"""The publisher: sparse, exact deployment of any model that any optimizer trains.

Two copies of the weights, and a loop between them (the memory of what was not sent is their difference; Stich,
Cordonnier, Jaggi 2018, "Sparsified SGD with Memory"):

    optimizer.step():   pre-hook    parameters show the master u
                        the step    u moves, densely, by whatever the optimizer does
                        post-hook   the k largest |u - w| are chosen; the deployed w moves there by exact steps;
                                    closed loop: parameters show w again
    publish():          what has moved since the last time becomes the next version in the log
"""

from __future__ import annotations

import logging
import secrets
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from evergrad.budget import Amount, amount_of
from evergrad.errors import ConfigError, OptimizerAttached
from evergrad.log import UpdateLog, open_log
from evergrad.pytorch.begin import begin
from evergrad.pytorch.bridge import schema_of
from evergrad.pytorch.cast import CastMover
from evergrad.pytorch.cuda import make_device_mover
from evergrad.pytorch.mover import Moved, Mover, ValuesAs, make_mover, written
from evergrad.pytorch.pending import Pending
from evergrad.pytorch.select import GlobalTopK, Selector
from evergrad.pytorch.weights import Weights, require_finite
from evergrad.pytorch.writer import Keeping, Published, Writer
from evergrad.update import Section

logger = logging.getLogger(__name__)
Forward = Literal["deployed", "master"]
_attached: weakref.WeakKeyDictionary[torch.optim.Optimizer, str] = weakref.WeakKeyDictionary()
# What waits for a log that is down may take as much memory as this fraction of the model, 16 bytes an element.
_MOST_WAITING_FRACTION = 1 / 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherStats:
    """What a publisher has done so far.

    Attributes:
        full_push_bytes: what one dense push of the model would cost.
        select_s, encode_s, append_s: seconds in all that went into choosing and moving elements, coding updates, and
            writing them and their folds to the log; the last two beside training where the publisher has a thread. On
            a GPU `select_s` holds the wait for the step itself.
        waiting: published runs that are not in the log yet.
        unavailable: why the log cannot be written to at present; None: it can.
    """

    version: int = 0
    digest: int = 0
    updates: int = 0
    update_bytes: int = 0
    snapshot_bytes: int = 0
    full_push_bytes: int = 0
    select_s: float = field(default=0.0, compare=False)
    encode_s: float = field(default=0.0, compare=False)
    append_s: float = field(default=0.0, compare=False)
    waiting: int = 0
    unavailable: str | None = None

    @property
    def fraction_of_full_pushes(self) -> float:
        """Bytes of the updates, as a fraction of as many dense pushes; 0 where there was none."""
        return self.update_bytes / max(1, self.full_push_bytes * self.updates)


class Publisher:
    """Attaches to an optimizer, and publishes what it does to a model.

    A log that exists is continued from its head: replicas need not restart. Weights that differ from the head's are
    published at once, as one update of absolute values.

    Args:
        model: on the CPU or a GPU, whole. With `forward="deployed"` its parameters show the deployed weights between
            steps.
        optimizer: any, over parameters of `model`. None: something else writes to them, such as an average of weights
            (EMA); they are then followed (`forward="master"`), and move whenever `publish` is called.
        log: a URL (see `evergrad.log.open_log`) or an open log.
        density: the fraction of parameter elements that move at each optimizer step, in (0, 1]. Default: 1e-3.
        k: instead of `density`: so many elements.
        budget: instead: as many as keep the bytes of updates to a rate, for example "20 kB/s" (`budget.ByteBudget`).
        quality: instead: as few as keep |master - deployed| / |master| below this bound, in 2-norms. Measuring that
            takes two more passes over the weights.
        forward: "deployed" (closed loop: gradients see the weights that users see) or "master" (open loop: training is
            untouched, the deployed weights follow it). A closure passed to `optimizer.step` runs at the master either
            way.
        selector: which elements move; default: those that are furthest from the master, of all tensors.
        values: "steps": what moves does so by one step up or down, one bit an element, and keeps the rest in the
            master; "exact": it becomes the master's value, as 4 bytes an element or a little less. "bf16": all float32
            tensors are deployed in bfloat16, and every element whose bfloat16 value has changed is sent, whatever the
            density: at each version replicas hold `model.bfloat16()`, bit for bit (needs `forward="master"`).
        buffer_tolerance: an element of a floating-point buffer is sent when it is off by more than this fraction of
            itself, rounded to within that. 0: exactly, whenever it moves.
        every_steps: publishes by itself after each so many optimizer steps; None: when `publish` is called.
        background: a thread codes and writes updates while training goes on, and a log that is slow or gone does not
            hold it up: what moves waits, folded, in bounded memory (see `stats`).
        on_published: called with each update that is in the log, on the thread that wrote it.
        snapshot_every: versions between two snapshots, at most.
        snapshot_every_bytes: bytes of updates between two snapshots, at most; default: those of the model.
        keep_versions: how many versions back a reader may be and still find every update; what is older, and no
            snapshot needs, is deleted after each snapshot. Default: everything is kept.
        factory: import path `package.module:callable` that builds the module, for servers of this log.
        clock: seconds since 1970.

    Raises:
        ConfigError: a setting out of range. OptimizerAttached: close the other publisher first.
        SchemaMismatch: the log is of another model. LogUnavailable, WriterConflict: see there.
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
        forward: Forward = "deployed",
        selector: Selector | None = None,
        values: ValuesAs = "steps",
        buffer_tolerance: float = 0.02,
        every_steps: int | None = None,
        background: bool = False,
        on_published: Callable[[Published], None] | None = None,
        snapshot_every: int = 1000,
        snapshot_every_bytes: int | None = None,
        keep_versions: int | None = None,
        factory: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        _check_settings(forward, values, buffer_tolerance, snapshot_every)
        _check_bounds(snapshot_every_bytes, keep_versions, every_steps)
        _check_optimizer(model, optimizer, forward)
        self._amount = _amount(model, values, density=density, k=k, budget=budget, quality=quality)
        self._log = log if isinstance(log, UpdateLog) else open_log(log, create=True)
        if optimizer is not None and optimizer in _attached:
            raise OptimizerAttached(_attached[optimizer])
        self._model, self._optimizer = model, optimizer
        self._tolerance, self._clock, self._every_steps = buffer_tolerance, clock, every_steps
        self._steps, self._select_s, self._attached = 0, 0.0, False
        require_finite(model)
        run = secrets.randbits(64)
        self._cast, self._parameters = torch.bfloat16 if values == "bf16" else None, 0
        self._at_publish = optimizer is None or values == "bf16"
        self._state, head, snapshot_bytes = begin(self._log, model, run, factory, self._cast)
        self._pending = self._nothing()
        self._weights = self._make_weights(forward)
        self._mover = self._make_mover(selector or GlobalTopK(), values)
        self._sent: deque[tuple[int, int]] = deque()
        self._due, self._on_published = 0, on_published
        nbytes = self._state.schema.nbytes
        keeping = Keeping(
            snapshot_every=snapshot_every,
            snapshot_every_bytes=nbytes if snapshot_every_bytes is None else snapshot_every_bytes,
            keep_versions=keep_versions,
        )
        note, check = self._note, self._weights.check_copy
        self._writer = Writer(
            self._log, self._state, head, run, keeping, background=background, on_published=note, check=check
        )
        self._writer.written.snapshot_bytes = snapshot_bytes
        self._attach()

    def _make_weights(self, forward: Forward) -> Weights:
        return Weights(self._model, self._state, closed_loop=forward == "deployed")

    def _make_mover(self, selector: Selector, values: ValuesAs) -> Mover:
        weights = self._weights
        if values == "bf16":
            return CastMover(weights.floating, weights.deployed, self._state, lambda: self._steps)
        check = lambda: weights.check_finite(self._steps)  # noqa: E731
        if weights.mirror is not None:
            flat = weights.mirror.flat.get("F32")
            return make_device_mover(weights.pairs, self._state, flat, check, selector, values)
        return make_mover(weights.pairs, self._state, check, selector, values, self._model)

    def _nothing(self) -> Pending:
        return Pending(self._state.schema, int(self._state.schema.elements * _MOST_WAITING_FRACTION))

    def _attach(self) -> None:
        self._attached, self._hooks = True, list[RemovableHandle]()
        try:
            self._take_in(self._weights.differing())
            if self._at_publish:
                self._move()
            if self._optimizer is not None:
                self._hooks = [
                    self._optimizer.register_step_pre_hook(lambda *_: self._before_step()),
                    self._optimizer.register_step_post_hook(lambda *_: self._after_step()),
                ]
                _attached[self._optimizer] = self._log.url
            self._weights.show_own()
            self._publish(None)
            self._writer.flush()
        except BaseException:
            self.detach()
            raise

    def master(self) -> AbstractContextManager[nn.Module]:
        """Inside, the model's parameters are the master weights, and may be read, saved and changed in place."""
        return self._weights.showing_master()

    def deployed(self) -> AbstractContextManager[nn.Module]:
        """Inside, the model's parameters and buffers are exactly the deployed ones, for evaluation only."""
        return self._weights.showing_deployed()

    def restore_buffers(self) -> None:
        """Gives the model's buffers back what was deployed, for example after a forward pass on damaged examples."""
        self._weights.buffers.restore()

    # -- the optimizer's step -------------------------------------------------------------------------------------

    def _before_step(self) -> None:
        self._check_structure()
        self._weights.check_untouched()
        self._weights.show_master()
        self._weights.align_gradients()
        for table in self._mover.tables:
            table.before_step()

    def _check_structure(self) -> None:
        """Raises SchemaMismatch where the optimizer was given a parameter that is not in the log."""
        if self._optimizer is None:
            return
        count = sum(len(group["params"]) for group in self._optimizer.param_groups)
        if count != self._parameters:
            self._state.schema.require(schema_of(self._model, self._cast))
            self._parameters = count

    def _after_step(self) -> None:
        self._steps += 1
        try:
            self._weights.check_untouched()
            if not (self._at_publish or self._skipped()):
                self._move()
        finally:
            self._weights.show_own()
            self._weights.return_gradients()
        if self._every_steps is not None and self._steps % self._every_steps == 0:
            self.publish()

    def _skipped(self) -> bool:
        """Whether the optimizer itself left the step out, as fused ones do where GradScaler found infinities."""
        found = getattr(self._optimizer, "found_inf", None)
        return isinstance(found, torch.Tensor) and bool(found)

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
        if moved is not None:
            self._take(moved)
            count = sum(len(section.indices) for section in moved.sections)
            self._pending.moved += count
        self._amount.moved(count, self._weights.distance() if self._amount.needs_distance else None)
        self._select_s += time.perf_counter() - begun

    def _note(self, published: Published, moved: int) -> None:
        self._sent.append((moved, published.update_bytes))
        if self._on_published is not None:
            self._on_published(published)

    def _take_in(self, sections: Sequence[Section]) -> None:
        moved = written(self._state, sections)
        if moved is not None:
            self._take(moved)

    def _take(self, moved: Moved) -> None:
        self._weights.follow(moved.change)
        self._pending.add(moved.sections, moved.change)

    def state_dict(self) -> dict[str, Any]:
        """Both copies of the weights and the number of steps, for a checkpoint beside the model's and the optimizer's.

        The tensors are the live ones, by name, as in any `state_dict` of torch: save or copy them before the next step.
        """
        return {
            "steps": self._steps,
            "master": dict(self._weights.master),
            "deployed": dict(self._weights.deployed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `state_dict` gave: training then goes on bit for bit as it did from there.

        The log goes on from its own head: what the deployed weights differ in is the next update. Load the model's own
        `state_dict`, which has its buffers, before the publisher is made: after that its parameters belong to it.

        Raises:
            SchemaMismatch: it is of another model. NonFiniteWeights: it holds NaN or infinity. Nothing has changed.
        """
        steps = int(state["steps"])
        self._take_in(self._weights.load(state["master"], state["deployed"], steps))
        self._steps = steps

    # -- publishing -----------------------------------------------------------------------------------------------

    def publish(self, newest_s: float | None = None) -> Published | None:
        """Makes what has moved since the last time the next version, where anything has.

        Args:
            newest_s: when the newest example that the model has learned from arrived, seconds since 1970; default: now.

        Returns:
            What this very call has written last; None where that is nothing, where a thread writes it, or after
            `detach`.

        Raises:
            WriterConflict: another publisher wrote this version. LogUnavailable: the store failed; what was to be sent
                is kept, and goes out with the next call (not with `background`: there it goes out by itself).
            NonFiniteWeights: a buffer holds NaN or infinity. WeightsChanged: deployed weights were written to from
                elsewhere.
        """
        if not self._attached:
            return None
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

    def flush(self) -> None:
        """Publishes, and returns when all is in the log.

        Raises:
            As `publish`; LogUnavailable: the store failed, and what was to be sent is kept.
        """
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
        written, failure = self._writer.written, self._writer.failure
        return PublisherStats(
            version=self.version,
            digest=self.digest,
            updates=written.updates,
            update_bytes=written.update_bytes,
            snapshot_bytes=written.snapshot_bytes,
            full_push_bytes=self._state.schema.nbytes,
            select_s=self._select_s,
            encode_s=written.encode_s,
            append_s=written.append_s,
            waiting=self._writer.waiting,
            unavailable=None if failure is None else str(failure),
        )

    def detach(self) -> None:
        """Gives the loop back as it was: no hooks, parameters are the master weights. Publishes nothing more."""
        if not self._attached:
            return
        self._attached = False
        for hook in self._hooks:
            hook.remove()
        if self._optimizer is not None:
            _attached.pop(self._optimizer, None)
        for table in self._mover.tables:
            table.close()
        self._writer.close()
        self._weights.show_master()

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
        if kind is None:
            self.close()
        else:
            self.detach()


def _check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer | None, forward: Forward) -> None:
    if optimizer is None:
        if forward != "master":
            raise ConfigError("forward", "must be 'master' where no optimizer steps the model")
    elif not {*model.parameters()} & {p for group in optimizer.param_groups for p in group["params"]}:
        raise ConfigError("optimizer", "holds no parameter of the model; make it from model.parameters()")


def _amount(model: nn.Module, values: ValuesAs, **settings: Any) -> Amount:
    given = {name: value for name, value in settings.items() if value is not None} or {"density": 1e-3}
    if values == "bf16" and "density" not in given:
        raise ConfigError(" and ".join(given), "has no place with values='bf16', which sends all that has changed")
    elements = sum(parameter.numel() for parameter in model.parameters() if parameter.is_floating_point())
    return amount_of(max(1, elements), **given)


def _check_settings(forward: str, values: str, tolerance: float, snapshot_every: int) -> None:
    if values == "bf16" and forward != "master":
        raise ConfigError("forward", "must be 'master' with values='bf16': training goes on in float32")
    if forward not in ("deployed", "master"):
        raise ConfigError("forward", f"must be 'deployed' or 'master', not {forward!r}")
    if values not in ("steps", "exact", "bf16"):
        raise ConfigError("values", f"must be 'steps', 'exact' or 'bf16', not {values!r}")
    if not 0 <= tolerance < 1:
        raise ConfigError("buffer_tolerance", f"must lie in [0, 1), not {tolerance}")
    if snapshot_every < 1:
        raise ConfigError("snapshot_every", f"must be 1 or more, not {snapshot_every}")


def _check_bounds(snapshot_every_bytes: int | None, keep_versions: int | None, every_steps: int | None) -> None:
    if every_steps is not None and every_steps < 1:
        raise ConfigError("every_steps", f"must be 1 or more, not {every_steps}")
    if snapshot_every_bytes is not None and snapshot_every_bytes < 1:
        raise ConfigError("snapshot_every_bytes", f"must be 1 or more, not {snapshot_every_bytes}")
    if keep_versions is not None and keep_versions < 0:
        raise ConfigError("keep_versions", f"must be 0 or more, not {keep_versions}")
