"""Small models, updates and logs that many tests need."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from obstore.store import MemoryStore

from evergrad.errors import ReadOnlyLog
from evergrad.history import History
from evergrad.log import ObjectStore, UpdateLog, Watch
from evergrad.log.store import ObstoreStore
from evergrad.schema import STORAGE, Schema
from evergrad.testing import FaultyStore
from evergrad.update import Section, Snapshot, State, Steps, Update, Values, short_fingerprint

RUN = 0x0123456789ABCDEF
NEWEST_US = 1_700_000_000_000_000
TENSORS = [("w", "F32", (3, 4)), ("b", "F32", (4,)), ("count", "I64", ()), ("h", "BF16", (2, 2)), ("on", "BOOL", (3,))]


def small_schema() -> Schema:
    """F32 at 0..15, I64 at 16, BF16 at 17..20, BOOL at 21..23; `w_tied` is an alias of `w`."""
    return Schema(TENSORS, {"w_tied": "w"})


def wide_schema() -> Schema:
    """The same tensors with a `w` so large that folds are worth while, and a snapshot costs more than many updates."""
    return Schema([("w", "F32", (8000,)), *TENSORS[1:]], {"w_tied": "w"})


def roomy_schema() -> Schema:
    """As `small_schema` where a `Writer` moves it, and so large beside that folds are worth their bytes."""
    return Schema([(name, dtype, (64, 64) if name == "h" else shape) for name, dtype, shape in TENSORS])


def new_state(schema: Schema, seed: int = 0) -> State:
    """Finite values of any dtype, equal for equal seeds."""
    rng = np.random.default_rng(seed)
    arrays = []
    for group in schema.groups:
        if group.dtype == "BF16":
            arrays.append((rng.standard_normal(group.size).astype("f4").view("u4") >> 16).astype("u2"))
        elif STORAGE[group.dtype].kind == "f":
            arrays.append(rng.standard_normal(group.size).astype(group.storage))
        else:
            arrays.append(rng.integers(0, 2, group.size).astype(group.storage))
    return State(schema, arrays)


def copy_of(state: State) -> State:
    return State(state.schema, [array.copy() for array in state.arrays])


def steps(indices: Sequence[int], scale: float = 0.5, negative: Iterable[bool] | None = None) -> Steps:
    signs = [i % 2 == 1 for i in range(len(indices))] if negative is None else list(negative)
    return Steps(np.array(indices, dtype=np.int64), np.array(signs, dtype=np.bool_), scale)


def values(indices: Sequence[int], new: Sequence[float], dtype: str = "F32") -> Values:
    return Values(np.array(indices, dtype=np.int64), np.array(new, dtype=STORAGE[dtype]), dtype)


def update_of(
    state: State, version: int, *sections: Section, newest_us: int = NEWEST_US, examples: range | None = None
) -> Update:
    """The update from `version` of `state` to the next, honest in every field. The state is not moved."""
    return Update(
        base_version=version,
        version=version + 1,
        run=RUN,
        schema=short_fingerprint(state.schema),
        digest_before=state.digest,
        digest_after=state.resolve(sections).digest,
        newest_us=newest_us,
        sections=sections,
        examples=examples,
    )


def snapshot_of(state: State, version: int, *, run: int = RUN, newest_us: int = NEWEST_US) -> Snapshot:
    return Snapshot(version=version, run=run, newest_us=newest_us, state=state)


@dataclass
class Writer:
    """A publisher without training: it moves a few elements of its state and appends each move to a log.

    Version v tells that it learned from `examples_each` examples, from (v - 1) * `examples_each` on; 0: not said.
    """

    log: UpdateLog
    seed: int = 0
    run: int = RUN
    version: int = 0
    schema: Schema = field(default_factory=small_schema)
    fold_base: int = 16
    examples_each: int = 0
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.state = new_state(self.schema, self.seed)

    def begin(self) -> Writer:
        self.log.begin(self.snapshot(), fold_base=self.fold_base)
        return self

    def begin_anew(self, schema: Schema, log: int = 0xFEDCBA9876543210) -> Writer:
        """Goes on with a model of another schema."""
        state = new_state(schema, self.seed + 1)
        self.version, _ = self.log.begin_anew(snapshot_of(state, self.version + 1, run=self.run), log)
        self.state, self.schema = state, schema
        return self

    def snapshot(self) -> Snapshot:
        return snapshot_of(self.state, self.version, run=self.run)

    def next_update(self) -> Update:
        at = sorted({self.version % 16, (self.version * 7 + 3) % 16})
        newest_us = NEWEST_US + self.version * 1_000_000
        count = self.schema.by_name["count"].offset
        told = steps(at), values([count], [self.version], "I64")
        first, last = (self.examples_each * version for version in (self.version, self.version + 1))
        examples = range(first, last) if self.examples_each else None
        return update_of(self.state, self.version, *told, newest_us=newest_us, examples=examples)

    def append(self, count: int = 1) -> Writer:
        for _ in range(count):
            update = self.next_update()
            self.log.append(update)
            self.state.commit(self.state.check(update, self.version))
            self.version = update.version
            self.log.write_folds(self.version, self.state)
        return self


def fresh_store() -> ObstoreStore:
    """An empty store in this process's memory that nobody else can reach."""
    return ObstoreStore(MemoryStore(), "memory:test")


def fresh_log() -> UpdateLog:
    return UpdateLog(fresh_store(), "memory:test")


def update_name(version: int) -> str:
    return f"updates/{version:012d}.eg"


def snapshot_name(version: int) -> str:
    return f"snapshots/{version:012d}.safetensors"


def equal_states(mine: State, other: State) -> bool:
    """Bit for bit, and both digests true."""
    return mine.digest == other.digest and all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(mine.arrays, other.arrays, strict=True)
    )


def small_history(path: Path, **options: Any) -> History:
    """An empty history of columns x (two float32) and y (int64) whose segments hold three rows, not millions."""
    columns = [
        {"name": "x", "kind": "fixed", "dtype": "<f4", "shape": [2]},
        {"name": "y", "kind": "fixed", "dtype": "<i8"},
    ]
    begin_history(path, 3, 1000, columns)
    return History(path, **options)


def rows_of(history: History, rows: list[int]) -> dict[str, Any]:
    """The examples with these ids."""
    return history.gather(np.array(rows, dtype=np.int64))


def begin_history(path: Path, rows: int, size: int, columns: list[dict[str, Any]]) -> None:
    """Begins an empty history whose segments hold so many rows, and bytes of a ragged column."""
    path.mkdir(parents=True, exist_ok=True)
    layout = {"format": 2, "rows_per_segment": rows, "bytes_per_segment": size, "columns": columns}
    (path / "commits").touch()
    (path / "history.json").write_text(json.dumps(layout))


def segments_of(path: Path) -> list[str]:
    """The names of a history's segments, oldest first."""
    return sorted(each.name for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))


def examples(first: int, count: int) -> dict[str, npt.NDArray[Any]]:
    """Rows for `small_history` that tell which they are."""
    rows = np.arange(first, first + count)
    return {"x": np.stack([rows, rows * -2], axis=1).astype("f4"), "y": rows}


def fold_name(first: int, last: int) -> str:
    return f"folds/{first:012d}-{last:012d}.eg"


@dataclass
class Unlisted(FaultyStore):
    """A store that cannot list, like a web server, and writes down what was asked for."""

    asked: list[str] = field(default_factory=list)

    def read(self, name: str) -> bytes | None:
        self.asked.append(name)
        return super().read(name)

    def stream(self, name: str) -> Iterator[bytes] | None:
        self.asked.append(name)
        return super().stream(name)

    def names(self, prefix: str) -> list[str]:
        raise ReadOnlyLog("unlisted:")


@dataclass
class WatchedStore:
    """Sets an event when a name has been looked for: what a test waits on instead of sleeping."""

    inner: ObjectStore
    looked: dict[str, threading.Event] = field(default_factory=dict)

    def create(self, name: str, data: bytes) -> bool:
        return self.inner.create(name, data)

    def read(self, name: str) -> bytes | None:
        try:
            return self.inner.read(name)
        finally:
            self.looked.setdefault(name, threading.Event()).set()

    def stream(self, name: str) -> Iterator[bytes] | None:
        return self.inner.stream(name)

    def replace(self, name: str, data: bytes) -> None:
        self.inner.replace(name, data)

    def delete(self, name: str) -> None:
        self.inner.delete(name)

    def names(self, prefix: str) -> list[str]:
        return self.inner.names(prefix)

    def watch(self, folder: str) -> Watch | None:
        return self.inner.watch(folder)

    def wait_for_look(self, name: str) -> None:
        """Waits until `name` is looked for from now on."""
        self.looked[name] = event = threading.Event()
        assert event.wait(60), f"nobody looked for {name}"
