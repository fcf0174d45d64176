"""What becomes of the two copies, and of the log, where a model's tensors change (`log.layout`: a new generation)."""

from __future__ import annotations

import secrets

import torch
from torch import nn

from evergrad.log import UpdateLog
from evergrad.pytorch.bridge import module_tensors, schema_of, state_of, state_views
from evergrad.pytorch.weights import Weights, floating_parameters, require_finite
from evergrad.pytorch.writer import Head
from evergrad.schema import Schema
from evergrad.update import Snapshot, State


def is_of(model: nn.Module, weights: Weights, schema: Schema, cast: torch.dtype | None) -> bool:
    """Whether `weights`, deployed with `schema`, are the copies of the very parameters that a model has now."""
    now, known = floating_parameters(module_tensors(model)[0]), weights.parameters
    same = len(now) == len(known) and all(a.tensor is b.tensor for a, b in zip(now, known, strict=True))
    return same and schema_of(model, cast) == schema


def renewed(model: nn.Module, weights: Weights, cast: torch.dtype | None) -> State:
    """What is to be deployed of a model as it is now, in memory of its own.

    A parameter that `weights` knows, under whatever name, keeps its deployed values; all else is as the model has it.

    Raises:
        NonFiniteWeights: a new parameter holds NaN or infinity. SchemaMismatch: a tensor that cannot be deployed.
    """
    with weights.showing_master():
        require_finite(model)
        state = state_of(model, cast)
    kept = {id(found.tensor): weights.deployed[found.name] for found in weights.parameters}
    views = state_views(state)
    for found in module_tensors(model)[0]:
        if id(found.tensor) in kept:
            views[found.name].copy_(kept[id(found.tensor)])
    return State(state.schema, state.arrays)


def begin_generation(
    log: UpdateLog, state: State, before: Head, run: int, factory: str | None = None
) -> tuple[Head, int]:
    """Begins a new generation of a log with `state`, after `before`; gives its head, and the bytes of its snapshot.

    Raises as `UpdateLog.begin_anew`.
    """
    snapshot = Snapshot(version=before.version + 1, run=run, newest_us=before.newest_us, state=state)
    version, size = log.begin_anew(snapshot, secrets.randbits(64), factory)
    return Head(version, state.digest, before.newest_us, snapshot=version), size
