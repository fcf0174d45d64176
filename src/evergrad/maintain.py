"""Looking after a log: any version's state, what is wrong with the log, missing folds, and going back.

Everything replays with one state that moves; only `rollback` and `differences` hold two.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.codec import compact, encoded_bytes, snapshot_pieces
from evergrad.errors import (
    ConfigError,
    CorruptRecord,
    LogNotFound,
    ReadOnlyLog,
    ReplicaError,
    UnsupportedFormat,
    VersionNotInLog,
)
from evergrad.log import UpdateLog
from evergrad.replica.cache import write_file
from evergrad.schema import FLOATING, widen_bf16
from evergrad.update import Section, Snapshot, State, Update, Values, short_fingerprint
from evergrad.update.digest import Array

_UNREADABLE = (CorruptRecord, UnsupportedFormat, ReplicaError)
Observe = Callable[[int, int], None]
Problem = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What `verify` read, and what is wrong: (object's name, what it means)."""

    problems: tuple[tuple[str, str], ...]
    head: int
    updates: int
    folds: int
    snapshots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDifference:
    """How one tensor differs between two versions; `relative_l2` is of the difference, against the first one's norm."""

    name: str
    elements: int
    differing: int
    largest: float
    relative_l2: float


def state_at(log: UpdateLog, version: int) -> Snapshot:
    """The state of a version, in memory of its own, every digest on the way checked.

    Raises:
        VersionNotInLog: retention has removed it, or nobody wrote it yet.
        CorruptRecord, UnsupportedFormat, DigestMismatch, BaseMismatch: what leads there cannot be read.
    """
    _ = log.schema
    starts = [start for start in _snapshots(log) if start <= version]
    if not starts:
        raise VersionNotInLog(log.url, version, _held(log))
    cause: Exception | None = None
    for start in reversed(starts):
        try:
            return _replayed(log, log.read_snapshot(start), version)
        except _UNREADABLE as error:
            cause = cause or error
    raise cause or VersionNotInLog(log.url, version, _held(log))


def _replayed(log: UpdateLog, snapshot: Snapshot, to: int) -> Snapshot:
    state, version, newest_us, run = snapshot.state, snapshot.version, snapshot.newest_us, snapshot.run
    while version < to:
        update = _next(log, state, version, to)
        if update is None:
            if _has_later(log, version):
                raise CorruptRecord(f"updates/{version + 1:012d}.eg", "it is missing, and later objects are there")
            raise VersionNotInLog(log.url, to, _held(log))
        version, newest_us, run = update.version, update.newest_us or newest_us, update.run
    return Snapshot(version=version, run=run, newest_us=newest_us, state=state)


def _next(log: UpdateLog, state: State, version: int, to: int) -> Update | None:
    spans, span = [], log.fold_base
    while version % span == 0 and version + span <= to:
        spans.append(span)
        span *= log.fold_base
    for span in reversed(spans):
        try:
            found = log.read_fold(version, version + span)
            if found is not None:
                state.commit(state.check(found[0], version))
                return found[0]
        except _UNREADABLE:  # its updates tell the same; `verify` names the fold
            continue
    found = log.read(version + 1)
    if found is None:
        return None
    state.commit(state.check(found[0], version))
    return found[0]


def _snapshots(log: UpdateLog) -> list[int]:
    try:
        return log.snapshots()
    except ReadOnlyLog:
        latest = log.latest()
        return [] if latest is None or latest.log != log.id else [latest.snapshot]


def _has_later(log: UpdateLog, version: int) -> bool:
    try:
        return log.head() > version
    except ReadOnlyLog:
        return False


def _held(log: UpdateLog) -> str:
    snapshots = _snapshots(log)
    if not snapshots:
        return "no snapshot"
    try:
        return f"{snapshots[0]} to {log.head()}"
    except ReadOnlyLog:
        return f"{snapshots[0]} and what follows, as far as can be told without a listing"


def _walk(log: UpdateLog, problem: Problem, observe: Observe | None = None) -> Iterator[tuple[int, State]]:
    """Each version from the oldest snapshot to the head, with the one state that moves; goes on past damage."""
    snapshots, head = log.snapshots(), log.head()
    if not snapshots:
        raise LogNotFound(log.url)
    state: State | None = None
    version = snapshots[0] - 1
    while version < head:
        version += 1
        if observe is not None:
            observe(version - snapshots[0], head - snapshots[0])
        if state is not None:
            state = _advanced(log, state, version, problem)
        if state is None and version in snapshots:
            try:
                state = log.read_snapshot(version).state
            except _UNREADABLE as error:
                problem(f"snapshots/{version:012d}.safetensors", str(error))
        if state is not None:
            yield version, state


def _advanced(log: UpdateLog, state: State, version: int, problem: Problem) -> State | None:
    name = f"updates/{version:012d}.eg"
    try:
        found = log.read(version)
        if found is None:
            problem(name, "it is missing: readers behind it continue from a later snapshot, if there is one")
            return None
        update = found[0]
        if not update.sections and update.digest_before == update.digest_after != state.digest:
            return None  # the log was continued from another state: the snapshot of this version holds it
        state.commit(state.check(update, version - 1))
    except _UNREADABLE as error:
        problem(name, f"readers cannot apply it, and continue from a later snapshot: {error}")
        return None
    return state


def verify(log: UpdateLog, observe: Observe | None = None) -> Verified:
    """Reads and replays everything that the log holds, and compares every digest."""
    problems: list[tuple[str, str]] = []
    _ = log.schema
    snapshots, updates, folds = log.snapshots(), log.updates(), log.folds()
    problem: Problem = lambda name, meaning: problems.append((name, meaning))  # noqa: E731
    latest, seen = log.latest(), -1
    ends: dict[int, list[tuple[str, int]]] = {}
    if latest is None or latest.log != log.id:
        problem("latest.json", "it is missing, unreadable or of another log: readers that cannot list find no start")
    elif latest.snapshot not in snapshots:
        problem("latest.json", f"it names the snapshot of version {latest.snapshot}, which is not there")
    for version, state in _walk(log, problem, observe):
        seen = version
        for name, digest in ends.pop(version, []):
            if digest != state.digest:
                problem(name, f"it leads to digest {digest:016x}, its updates to {state.digest:016x}")
        if version in snapshots:
            _check_snapshot(log, version, state, problem)
        for last in (last for first, last in folds if first == version):
            _check_fold(log, version, last, state, problem, ends)
    head = max([*updates, *snapshots], default=-1)
    if seen < head:
        problem(f"version {head}", "the head cannot be reached: readers stay behind until a later snapshot")
    return Verified(
        problems=tuple(dict(problems).items()), head=head, updates=len(updates), folds=len(folds),
        snapshots=len(snapshots),
    )  # fmt: skip


def _check_snapshot(log: UpdateLog, version: int, state: State, problem: Problem) -> None:
    name = f"snapshots/{version:012d}.safetensors"
    try:
        digest = log.snapshot_reader(log.snapshot_chunks(version), version).check().digest
        if digest != state.digest:
            problem(name, f"its digest is {digest:016x}, the updates lead to {state.digest:016x}")
    except _UNREADABLE as error:
        problem(name, f"no reader can begin there: {error}")


def _check_fold(
    log: UpdateLog, first: int, last: int, state: State, problem: Problem, ends: dict[int, list[tuple[str, int]]]
) -> None:
    """Applies a fold beside the state that it starts from; notes in `ends` which digest its end must have."""
    name = f"folds/{first:012d}-{last:012d}.eg"
    try:
        found = log.read_fold(first, last)
        if found is not None:
            ends.setdefault(last, []).append((name, state.check(found[0], first).digest))
    except _UNREADABLE as error:
        problem(name, f"readers take its updates one by one: {error}")


def fold(log: UpdateLog, observe: Observe | None = None) -> list[tuple[int, int]]:
    """Writes the folds that are missing, as far as the log holds their updates; gives those written."""
    _ = log.schema
    before = set(log.folds())
    for version, state in _walk(log, lambda *_: None, observe):
        span = log.fold_base
        while version and version % span == 0:
            if (version - span, version) not in before:
                log.write_folds(version, state)
                break
            span *= log.fold_base
    return sorted(set(log.folds()) - before)


def rollback(log: UpdateLog, to: int) -> Update:
    """Appends one update that takes every reader from the head back to the state of version `to`.

    A publisher that is open meanwhile gets WriterConflict at its next append, and must be opened again. A change of
    more than half the model is written as a snapshot too.

    The update names no examples: it learned from none, and those that led to version `to` are named by the updates up
    to there. An update names what it adds, and this one adds nothing.

    Raises:
        ConfigError: `to` is the head. VersionNotInLog: see `state_at`. WriterConflict: a publisher was faster.
    """
    head = log.head()
    if to == head:
        raise ConfigError("--to", f"version {to} is the head already; choose an older one")
    target, now = state_at(log, to), state_at(log, head)
    sections: list[Section] = []
    for group, old, new in zip(log.schema.groups, now.state.arrays, target.state.arrays, strict=True):
        at = np.flatnonzero(_bits(old) != _bits(new))
        if len(at):
            sections.append(compact(Values(at + group.start, new[at], group.dtype), old[at]))
    update = Update(
        base_version=head, version=head + 1, run=secrets.randbits(64), schema=short_fingerprint(log.schema),
        digest_before=now.state.digest, digest_after=target.state.digest, newest_us=target.newest_us,
        sections=tuple(sections),
    )  # fmt: skip
    log.append(update)
    log.write_folds(update.version, target.state)
    if encoded_bytes(sections) > log.schema.nbytes // 2:
        log.write_snapshot(
            Snapshot(version=update.version, run=update.run, newest_us=update.newest_us, state=target.state)
        )
    return update


def _bits(values: Array) -> Array:
    return values.view(f"u{values.dtype.itemsize}")


def differences(log: UpdateLog, first: int, second: int) -> list[TensorDifference]:
    """How each tensor differs between two versions, in the schema's order."""
    before, after = (state_at(log, version).state.tensors() for version in (first, second))
    found = []
    for spec in log.schema.tensors:
        old, new = before[spec.name].reshape(-1), after[spec.name].reshape(-1)
        differing = int(np.count_nonzero(_bits(old) != _bits(new)))
        if spec.dtype == "BF16":
            old, new = widen_bf16(old), widen_bf16(new)
        kind: npt.DTypeLike = np.float64 if spec.dtype in FLOATING else np.longdouble  # int64 needs 64 bits
        wide: npt.NDArray[Any] = old.astype(kind)
        moved: npt.NDArray[Any] = new.astype(kind) - wide
        norm, moved_norm = float(np.sqrt((wide * wide).sum())), float(np.sqrt((moved * moved).sum()))
        relative = moved_norm / norm if norm else (float("inf") if moved_norm else 0.0)
        largest = float(np.abs(moved).max(initial=0))
        found.append(TensorDifference(
            name=spec.name, elements=spec.size, differing=differing, largest=largest, relative_l2=relative,
        ))  # fmt: skip
    return found


def export(log: UpdateLog, out: Path, version: int) -> Snapshot:
    """Writes a version as a safetensors file, whole or not at all; gives it. Raises as `state_at`, and OSError."""
    snapshot = state_at(log, version)
    write_file(out, snapshot_pieces(snapshot))
    return snapshot
