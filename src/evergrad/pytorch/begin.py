"""How a publisher begins a log, or continues one that another publisher left."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from evergrad.errors import CorruptRecord, ReplicaError, UnsupportedFormat
from evergrad.log import UpdateLog
from evergrad.pytorch.bridge import as_numpy, schema_of, state_of
from evergrad.pytorch.generation import begin_generation
from evergrad.pytorch.writer import Head
from evergrad.replica import Replica
from evergrad.update import Snapshot, State, Update, short_fingerprint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a publisher begins.

    Attributes:
        state: the deployed copy.
        head: where the log ends with it.
        run: 64 random bits that name the publisher.
        snapshot_bytes: of snapshots written on the way.
        exact: the checkpoint's own run goes on, from the very version that it was made at.
    """

    state: State
    head: Head
    run: int
    snapshot_bytes: int = 0
    exact: bool = False


def begin(
    log: UpdateLog,
    model: nn.Module,
    factory: str | None,
    cast: torch.dtype | None = None,
    checkpoint: Mapping[str, Any] | None = None,
) -> Beginning:
    """Begins a log, or continues it.

    A log that holds nothing is begun with the model as it is. One whose head cannot be read is continued from the model
    too, by an update that fits no state and a snapshot of the same version: every reader goes over to that. One that is
    of another model now, and was of this one or about to be, goes on as a new generation.

    Args:
        factory: as in `Publisher`.
        cast: as in `bridge.schema_of`.
        checkpoint: a publisher's `state_dict`, to go on from bit for bit where the log allows it.

    Raises:
        SchemaMismatch: the log is of another model, and never was of this one. LogUnavailable, WriterConflict: from the
            log.
    """
    at = checkpoint["log"] if checkpoint is not None else None
    if checkpoint is not None and at is not None and at["head"] is not None and _goes_on_from(log, at):
        schema = schema_of(model, cast)
        log.schema.require(schema)
        deployed = {name: as_numpy(tensor) for name, tensor in checkpoint["deployed"].items()}
        return Beginning(State.from_tensors(schema, deployed), Head(**at["head"]), at["run"], exact=True)
    run = secrets.randbits(64)
    if not log.begun():
        state = state_of(model, cast)
        size = log.begin(Snapshot(version=0, run=run, newest_us=0, state=state), factory)
        return Beginning(state, Head(0, state.digest, snapshot=0), run, size)
    if log.schema != (schema := schema_of(model, cast)) and log.has_had(schema):
        return _gone_on(log, state_of(model, cast), run, factory)
    return _continued(log, model, run, cast)


def _goes_on_from(log: UpdateLog, at: Mapping[str, Any]) -> bool:
    """Whether a log can be continued from the very version that a checkpoint was made at.

    It can where it is the log that was written then, still holds that version, and nobody else has written since: what
    was appended after the checkpoint is then appended again, with the same bytes.
    """
    found = _newest_since(log, at)
    if found is None:
        return False
    version, update = found
    # Of another schema where the same run was about to begin a generation.
    own = update is None or (update.run == at["run"] and update.schema == short_fingerprint(log.schema))
    return own and version >= int(at["head"]["version"])


def others_have_written(log: UpdateLog, at: Mapping[str, Any]) -> bool:
    """Whether the newest version of a log is by somebody else than the publisher whose state said `at`.

    Args:
        at: the `log` of its `state_dict`. False where the log is another one since.
    """
    found = _newest_since(log, at)
    return found is not None and found[1] is not None and found[1].run != at["run"]


def _newest_since(log: UpdateLog, at: Mapping[str, Any]) -> tuple[int, Update | None] | None:
    """The newest version of the log that `at` is of, and the update that led there; None: it is another log since."""
    if not log.begun() or log.id != at["id"]:
        return None
    version = log.head()
    found = log.read(version)
    return version, None if found is None else found[0]


def _continued(log: UpdateLog, model: nn.Module, run: int, cast: torch.dtype | None) -> Beginning:
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
        return _begun_again(log, state, run, Head(head, state.digest, replica.stats().newest_us))
    stats = replica.stats()
    return Beginning(replica.state, Head(version, replica.digest, stats.newest_us, newest, stats.update_bytes), run)


def _gone_on(log: UpdateLog, state: State, run: int, factory: str | None) -> Beginning:
    head, newest_us = log.head(), 0
    with contextlib.suppress(CorruptRecord, UnsupportedFormat):
        found = log.read_header(head - 1, head)
        newest_us = found.newest_us if found is not None else 0
    logger.warning("%s is of another model since version %d, and goes on with this one", log.url, log.begins)
    begun, size = begin_generation(log, state, Head(head, 0, newest_us), run, factory)
    return Beginning(state, begun, run, size)


def _begun_again(log: UpdateLog, state: State, run: int, head: Head) -> Beginning:
    update = head.next_update(run, state.schema, state.digest, state.digest)
    log.append(update)
    size = log.write_snapshot(Snapshot(version=update.version, run=run, newest_us=head.newest_us, state=state))
    return Beginning(state, Head(update.version, state.digest, head.newest_us, update.version), run, size)
