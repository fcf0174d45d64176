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
import math
import secrets
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from torch import nn

from evergrad.codec import compact, encoded_bytes
from evergrad.errors import (
    ConfigError,
    CorruptRecord,
    LogUnavailable,
    OptimizerAttached,
    ReplicaError,
    UnsupportedFormat,
    WeightsChanged,
)
from evergrad.log import UpdateLog, open_log
from evergrad.pytorch.bridge import schema_of, state_of
from evergrad.pytorch.select import even_step, top_k
from evergrad.pytorch.weights import Weights, require_finite
from evergrad.replica import Replica
from evergrad.schema import Schema
from evergrad.update import (
    Change,
    Section,
    Snapshot,
    Steps,
    Update,
    Values,
    compose,
    digest,
    short_fingerprint,
    values_of,
)

logger = logging.getLogger(__name__)
Forward = Literal["deployed", "master"]
_attached: weakref.WeakKeyDictionary[torch.optim.Optimizer, str] = weakref.WeakKeyDictionary()
_MAX_CHANGES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One published update: its version, its bytes in the log, and how many element moves it holds."""

    version: int
    update_bytes: int
    elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherStats:
    """What a publisher has done so far; `full_push_bytes` is what one dense push of the model would cost."""

    version: int = 0
    digest: int = 0
    updates: int = 0
    update_bytes: int = 0
    snapshot_bytes: int = 0
    full_push_bytes: int = 0

    @property
    def fraction_of_full_pushes(self) -> float:
        """Bytes of the updates, as a fraction of as many dense pushes; 0 where there was none."""
        return self.update_bytes / max(1, self.full_push_bytes * self.updates)


class Publisher:
    """Attaches to an optimizer, and publishes what it does to a model.

    A log that exists is continued from its head: replicas need not restart. Weights that differ from the head's are
    published at once, as one update of absolute values.

    Args:
        model: on the CPU. With `forward="deployed"` its parameters show the deployed weights between steps.
        optimizer: any, over parameters of `model`.
        log: a URL (see `evergrad.log.open_log`) or an open log.
        density: the fraction of parameter elements that move at each optimizer step, in (0, 1].
        forward: "deployed" (closed loop: gradients see the weights that users see) or "master" (open loop: training is
            untouched, the deployed weights follow it). A closure passed to `optimizer.step` runs at the master either
            way.
        buffer_tolerance: an element of a floating-point buffer is sent when it is off by more than this fraction of
            itself, rounded to within that. 0: exactly, whenever it moves.
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
        optimizer: torch.optim.Optimizer,
        log: str | UpdateLog,
        *,
        density: float = 1e-3,
        forward: Forward = "deployed",
        buffer_tolerance: float = 0.02,
        snapshot_every: int = 1000,
        snapshot_every_bytes: int | None = None,
        keep_versions: int | None = None,
        factory: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        _check_settings(density, forward, buffer_tolerance, snapshot_every)
        _check_bounds(snapshot_every_bytes, keep_versions)
        if not {*model.parameters()} & {p for group in optimizer.param_groups for p in group["params"]}:
            raise ConfigError("optimizer", "holds no parameter of the model; make it from model.parameters()")
        self._log = log if isinstance(log, UpdateLog) else open_log(log, create=True)
        if optimizer in _attached:
            raise OptimizerAttached(_attached[optimizer])
        self._model, self._optimizer = model, optimizer
        self._tolerance, self._snapshot_every, self._clock = buffer_tolerance, snapshot_every, clock
        self._snapshot_every_bytes, self._keep_versions = snapshot_every_bytes, keep_versions
        self._run = secrets.randbits(64)
        self._steps = self._updates = self._update_bytes = self._snapshot_bytes = self._bytes_since_snapshot = 0
        self._newest_us = 0
        self._pending: list[Section] = []
        self._changes: list[Change] = []
        self._unsent: Update | None = None
        schema = schema_of(model)
        require_finite(model)
        if self._log.begun():
            self._continue_log(schema)
        else:
            self._state, self._version = state_of(model), 0
            self._snapshot_bytes += self._log.begin(self._snapshot(), factory)
            self._snapshot_version = 0
        self._published_digest = self._state.digest
        self._weights = Weights(model, self._state, closed_loop=forward == "deployed")
        self._attach(density)

    def _continue_log(self, schema: Schema) -> None:
        self._log.schema.require(schema)
        replica = Replica(self._log)
        latest, snapshots = self._log.latest(), self._log.snapshots()
        self._snapshot_version = max(snapshots, default=-1)
        head = max([*self._log.updates(), self._snapshot_version, -1 if latest is None else latest.snapshot])
        self._log.point_at_newest()
        try:
            self._version = replica.sync()
            if self._version < head:
                raise CorruptRecord(f"version {self._version + 1}", f"it is missing, and version {head} is there")
            self._state, self._newest_us = replica.state, replica.stats().newest_us
            self._bytes_since_snapshot = replica.stats().update_bytes
        except (CorruptRecord, UnsupportedFormat, ReplicaError) as error:
            logger.warning("%s; the log is continued from this model with a new snapshot", error)
            self._newest_us = replica.stats().newest_us
            self._rebase(head + 1)

    def _rebase(self, version: int) -> None:
        # An update that fits no state sends every reader to the snapshot of the same version.
        self._state, self._version = state_of(self._model), version
        self._log.append(self._update(version, self._state.digest, ()))
        self._snapshot_bytes += self._log.write_snapshot(self._snapshot())
        self._snapshot_version = version

    def _attach(self, density: float) -> None:
        schema = self._state.schema
        elements = sum(schema.by_name[name].size for name in self._weights.master)
        self._k = max(1, round(density * elements))
        self._difference = torch.zeros(schema.elements, dtype=torch.float32, device="cpu")
        self._commit(self._weights.differing())
        self._hooks = [
            self._optimizer.register_step_pre_hook(lambda *_: self._before_step()),
            self._optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]
        _attached[self._optimizer] = self._log.url
        self._weights.show_own()
        try:
            self.publish()
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
        self._weights.restore_buffers()

    # -- the optimizer's step -------------------------------------------------------------------------------------

    def _before_step(self) -> None:
        self._weights.check_untouched()
        self._weights.show_master()
        self._weights.align_gradients()

    def _after_step(self) -> None:
        self._steps += 1
        try:
            self._move()
        finally:
            self._weights.show_own()
            self._weights.return_gradients()

    def _move(self) -> None:
        """Chooses the k largest differences and moves the deployed weights there.

        Raises:
            NonFiniteWeights: the master holds NaN or infinity; deployed weights stay as they are.
        """
        schema, weights = self._state.schema, self._weights
        for name, master in weights.master.items():
            spec = schema.by_name[name]
            target = self._difference[spec.offset : spec.offset + spec.size]
            torch.sub(master.reshape(-1), weights.deployed[name].reshape(-1), out=target)
        if not math.isfinite(float(self._difference.sum())):
            weights.check_finite(self._steps)
        chosen = top_k(self._difference.abs(), self._k)
        moves, indices = self._difference[chosen].numpy(), chosen.numpy()
        sections: list[Section] = []
        for group_number, group in enumerate(schema.groups):
            first, last = np.searchsorted(indices, (group.start, group.stop))
            if first == last:
                continue
            mine = slice(int(first), int(last))
            if group.dtype == "F32":
                own = self._state.arrays[group_number][indices[mine] - group.start]
                kept, scale = even_step(moves[mine], own)
                if len(kept):
                    sections.append(Steps(indices[mine][kept], moves[mine][kept] < 0, scale))
            else:
                sections.append(Values(indices[mine], weights.master_values(indices[mine]), group.dtype))
        self._commit(sections)

    def _commit(self, sections: Sequence[Section]) -> None:
        if not sections:
            return
        change = self._state.resolve(sections)
        self._state.commit(change)
        self._pending.extend(sections)
        self._changes.append(change)
        if len(self._changes) > _MAX_CHANGES:
            self._changes = [compose(self._changes)]
            self._pending = self._folded()

    def _folded(self) -> list[Section]:
        """All that has moved since the last version, as absolute values or their differences."""
        return [compact(values, old) for values, old in values_of(compose(self._changes), self._state.schema)]

    # -- publishing -----------------------------------------------------------------------------------------------

    def publish(self, newest_s: float | None = None) -> Published | None:
        """Appends what has moved since the last time as the next version; None where nothing has, or after `detach`.

        Args:
            newest_s: when the newest example that the model has learned from arrived, seconds since 1970; default: now.

        Raises:
            WriterConflict: another publisher wrote this version. LogUnavailable: the store failed; what was to be sent
                is kept, and goes out with the next call. NonFiniteWeights: a buffer holds NaN or infinity.
            WeightsChanged: deployed weights were written to from elsewhere.
        """
        if not self._hooks:
            return None
        self._weights.check_untouched()
        self._commit(self._weights.stale_buffers(self._tolerance, self._steps))
        # A store that failed may have stored: the very update that it failed on goes first, or it would be our rival.
        published = self._append(self._unsent) if self._unsent else None
        if self._pending:
            newest_us = round((self._clock() if newest_s is None else newest_s) * 1e6)
            self._newest_us = max(self._newest_us, newest_us)
            self._unsent = self._update(self._version + 1, self._published_digest, self._smallest())
            self._pending, self._changes = [], []
            published = self._append(self._unsent)
        if self._snapshot_due():
            self._write_snapshot()
        return published

    def _snapshot_due(self) -> bool:
        most = self._state.schema.nbytes if self._snapshot_every_bytes is None else self._snapshot_every_bytes
        versions = self._version // self._snapshot_every > self._snapshot_version // self._snapshot_every
        return versions or (self._version > self._snapshot_version and self._bytes_since_snapshot >= most)

    def _append(self, update: Update) -> Published:
        size = self._log.append(update)
        self._version, self._published_digest, self._unsent = update.version, update.digest_after, None
        self._updates += 1
        self._update_bytes += size
        self._bytes_since_snapshot += size
        try:
            self._log.write_folds(self._version, self._state if self._state.digest == update.digest_after else None)
        except LogUnavailable as error:  # readers do without: they take the updates
            logger.warning("no fold was written at version %d: %s", self._version, error)
        return Published(version=update.version, update_bytes=size, elements=update.elements)

    def _smallest(self) -> tuple[Section, ...]:
        kinds = {(isinstance(section, Steps), section.dtype) for section in self._pending}
        if len(kinds) == len(self._pending):
            return tuple(self._pending)
        folded = self._folded()
        return tuple(min((self._pending, folded), key=encoded_bytes))

    def _update(self, version: int, before: int, sections: tuple[Section, ...]) -> Update:
        return Update(
            base_version=version - 1,
            version=version,
            run=self._run,
            schema=short_fingerprint(self._state.schema),
            digest_before=before,
            digest_after=self._state.digest,
            newest_us=self._newest_us,
            sections=sections,
        )

    def _snapshot(self) -> Snapshot:
        return Snapshot(version=self._version, run=self._run, newest_us=self._newest_us, state=self._state)

    def _write_snapshot(self) -> None:
        # The one place that reads every element: writes that no version counter saw (`p.data.mul_`) are found here.
        if digest(self._state.schema, self._state.arrays) != self._state.digest:
            raise WeightsChanged("a parameter")
        self._snapshot_bytes += self._log.write_snapshot(self._snapshot())
        self._snapshot_version, self._bytes_since_snapshot = self._version, 0
        if self._keep_versions is not None:
            try:
                self._log.prune(self._keep_versions)
            except LogUnavailable as error:  # what is left is deleted after the next snapshot
                logger.warning("old versions were not all deleted: %s", error)

    @property
    def log(self) -> UpdateLog:
        """The log that it writes."""
        return self._log

    @property
    def version(self) -> int:
        """The version published last."""
        return self._version

    @property
    def digest(self) -> int:
        """The digest of the version published last."""
        return self._published_digest

    def stats(self) -> PublisherStats:
        """Counts of this publisher, from its start on."""
        return PublisherStats(
            version=self._version,
            digest=self._published_digest,
            updates=self._updates,
            update_bytes=self._update_bytes,
            snapshot_bytes=self._snapshot_bytes,
            full_push_bytes=self._state.schema.nbytes,
        )

    def detach(self) -> None:
        """Gives the loop back as it was: no hooks, parameters are the master weights. Publishes nothing more."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        _attached.pop(self._optimizer, None)
        self._weights.show_master()

    def close(self) -> None:
        """Publishes what has moved, and detaches."""
        try:
            self.publish()
        finally:
            self.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.detach()


def _check_settings(density: float, forward: str, tolerance: float, snapshot_every: int) -> None:
    if not 0 < density <= 1:
        raise ConfigError("density", f"must lie in (0, 1], not {density}")
    if forward not in ("deployed", "master"):
        raise ConfigError("forward", f"must be 'deployed' or 'master', not {forward!r}")
    if not 0 <= tolerance < 1:
        raise ConfigError("buffer_tolerance", f"must lie in [0, 1), not {tolerance}")
    if snapshot_every < 1:
        raise ConfigError("snapshot_every", f"must be 1 or more, not {snapshot_every}")


def _check_bounds(snapshot_every_bytes: int | None, keep_versions: int | None) -> None:
    if snapshot_every_bytes is not None and snapshot_every_bytes < 1:
        raise ConfigError("snapshot_every_bytes", f"must be 1 or more, not {snapshot_every_bytes}")
    if keep_versions is not None and keep_versions < 0:
        raise ConfigError("keep_versions", f"must be 0 or more, not {keep_versions}")
