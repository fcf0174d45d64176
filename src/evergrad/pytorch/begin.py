"""How a publisher begins a log, or continues one that another publisher left."""

from __future__ import annotations

import logging

import torch
from torch import nn

from evergrad.errors import CorruptRecord, ReplicaError, UnsupportedFormat
from evergrad.log import UpdateLog
from evergrad.pytorch.bridge import schema_of, state_of
from evergrad.pytorch.writer import Head
from evergrad.replica import Replica
from evergrad.update import Snapshot, State

logger = logging.getLogger(__name__)


def begin(
    log: UpdateLog, model: nn.Module, run: int, factory: str | None, cast: torch.dtype | None = None
) -> tuple[State, Head, int]:
    """The deployed state, where the log ends with it, and the bytes of snapshots written on the way.

    A log that holds nothing is begun with the model as it is. One whose head cannot be read is continued from the model
    too, by an update that fits no state and a snapshot of the same version: every reader goes over to that.

    Args:
        run: 64 random bits that name this publisher.
        factory: as in `Publisher`.
        cast: as in `bridge.schema_of`.

    Raises:
        SchemaMismatch: the log is of another model. LogUnavailable, WriterConflict: from the log.
    """
    if not log.begun():
        state = state_of(model, cast)
        size = log.begin(Snapshot(version=0, run=run, newest_us=0, state=state), factory)
        return state, Head(0, state.digest, snapshot=0), size
    log.schema.require(schema_of(model, cast))
    replica = Replica(log)
    latest, snapshots = log.latest(), log.snapshots()
    newest = max(snapshots, default=-1)
    head = max([*log.updates(), newest, -1 if latest is None else latest.snapshot])
    log.point_at_newest()
    try:
        version = replica.sync()
        if version < head:
            raise CorruptRecord(f"version {version + 1}", f"it is missing, and version {head} is there")
    except (CorruptRecord, UnsupportedFormat, ReplicaError) as error:
        logger.warning("%s; the log is continued from this model with a new snapshot", error)
        state = state_of(model, cast)
        return state, *_begin_again(log, state, run, Head(head, state.digest, replica.stats().newest_us))
    stats = replica.stats()
    return replica.state, Head(version, replica.digest, stats.newest_us, newest, stats.update_bytes), 0


def _begin_again(log: UpdateLog, state: State, run: int, head: Head) -> tuple[Head, int]:
    update = head.next_update(run, state.schema, state.digest, state.digest)
    log.append(update)
    size = log.write_snapshot(Snapshot(version=update.version, run=run, newest_us=head.newest_us, state=state))
    return Head(update.version, state.digest, head.newest_us, update.version), size
