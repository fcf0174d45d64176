"""Logs in memory whose store fails where a test says."""

from __future__ import annotations

from evergrad.log.layout import UpdateLog
from evergrad.log.store import memory_store
from evergrad.testing import FaultyStore


def update_name(version: int) -> str:
    return f"updates/{version:012d}.eg"


def snapshot_name(version: int) -> str:
    return f"snapshots/{version:012d}.safetensors"


def fold_name(first: int, last: int) -> str:
    return f"folds/{first:012d}-{last:012d}.eg"


def faulty_log(url: str) -> tuple[FaultyStore, UpdateLog]:
    inner = memory_store(url.removeprefix("memory:"), url, create=True)
    assert inner is not None
    store = FaultyStore(inner)
    return store, UpdateLog(store, url)
