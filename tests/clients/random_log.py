"""A model of every dtype, and updates of it that use everything that the format can say; seeded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evergrad.codec import encode, encode_snapshot
from evergrad.errors import CorruptRecord
from evergrad.schema import FLOATING, STORAGE, Group, Schema
from evergrad.update import Differences, Section, State, Steps, Update, Values, differences, from_ordered, to_ordered
from tests.builders import RUN, copy_of, new_state, snapshot_of, update_of

FIRST_VERSION = 40
_ELEMENTS = 700


def every_dtype() -> Schema:
    """Tensors of all 13 dtypes; one of no sides, one without elements, and an alias."""
    tensors: list[tuple[str, str, tuple[int, ...]]] = [(f"t.{dtype}", dtype, (7, _ELEMENTS // 7)) for dtype in STORAGE]
    return Schema([*tensors, ("one", "F32", ()), ("none", "I8", (0, 3)), ("ünï", "BF16", (2,))], {"tied": "one"})


def whole_state(schema: Schema, rng: np.random.Generator) -> State:
    """As `new_state`, with integers of their whole range."""
    state = new_state(schema, int(rng.integers(1 << 30)))
    for group, array in zip(schema.groups, state.arrays, strict=True):
        if group.dtype not in FLOATING and group.dtype != "BOOL":
            array[:] = _any_values(rng, group, array)
    return State(schema, state.arrays)


def random_updates(state: State, rng: np.random.Generator, count: int) -> Iterator[Update]:
    """Updates of `state`, one after another; each is written into it before it is given."""
    for version in range(FIRST_VERSION, FIRST_VERSION + count):
        while True:
            sections = [_section(state, rng) for _ in range(rng.integers(0, 5))]
            try:
                update = update_of(state, version, *sections, examples=_examples(rng))
            except CorruptRecord:  # it led to a NaN, an infinity or no boolean
                continue
            break
        state.commit(state.check(update, version))
        yield update


def write_folder(folder: Path, seed: int, count: int) -> dict[str, str]:
    """schema.json, snapshot.safetensors and update-*.eg; gives the digest after each of them."""
    rng = np.random.default_rng(seed)
    schema = every_dtype()
    state = whole_state(schema, rng)
    folder.mkdir()
    (folder / "schema.json").write_bytes(schema.to_json())
    (folder / "snapshot.safetensors").write_bytes(encode_snapshot(snapshot_of(copy_of(state), FIRST_VERSION, run=RUN)))
    digests = {"snapshot.safetensors": f"{state.digest:016x}"}
    for update in random_updates(state, rng, count):
        name = f"update-{update.version:06d}.eg"
        (folder / name).write_bytes(encode(update))
        digests[name] = f"{update.digest_after:016x}"
    (folder / "digests.json").write_text(json.dumps(digests))
    return digests


def _examples(rng: np.random.Generator) -> range | None:
    """None said, few, or many; near 0 or near 2^63."""
    if rng.random() < 0.5:
        return None
    first = int(rng.integers(1 << int(rng.integers(1, 63))))
    return range(first, first + 1 + int(rng.integers(1 << int(rng.integers(1, 60)))))


def _indices(rng: np.random.Generator, group: Group) -> npt.NDArray[np.int64]:
    """Few or many, scattered or in runs; never none."""
    chosen = rng.random(group.size) < rng.choice([0.01, 0.2, 0.9])
    if rng.random() < 0.4:
        chosen = np.repeat(rng.random(group.size // 30 + 1) < 0.5, 30)[: group.size]
    chosen[rng.integers(group.size)] = True
    return np.flatnonzero(chosen).astype(np.int64) + group.start


def _any_values(rng: np.random.Generator, group: Group, like: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    if group.dtype == "BOOL":
        return rng.integers(0, 2, len(like)).astype(group.storage)
    width = group.storage.itemsize
    drawn: npt.NDArray[np.generic] = rng.integers(0, 256, len(like) * width, dtype=np.uint8).view(group.storage)
    if group.dtype in FLOATING:  # random bits may be no number: then what was there stays, with its sign turned
        bits = drawn.view(f"u{width}")
        exponent = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 0x1F << 10, "BF16": 0xFF << 7}[group.dtype]
        sign = bits.dtype.type(1 << (8 * width - 1))
        return np.where(bits & exponent == exponent, like.view(bits.dtype) ^ sign, bits).view(group.storage)
    return drawn


def _section(state: State, rng: np.random.Generator) -> Section:
    number = int(rng.integers(len(state.schema.groups))) if rng.random() < 0.7 else 1
    group = state.schema.groups[number]
    indices = _indices(rng, group)
    old = state.arrays[number][indices - group.start]
    if group.dtype == "F32" and rng.random() < 0.6:
        scale = float(np.float32(2.0 ** rng.integers(-149, 60) * (1 if rng.random() < 0.5 else 1.37)))
        levels = rng.geometric(0.3, len(indices)).clip(1, 64).astype(np.uint8) - 1 if rng.random() < 0.5 else None
        return Steps(indices, rng.random(len(indices)) < 0.5, scale, levels)
    values = Values(indices, _any_values(rng, group, old), group.dtype)
    if rng.random() < 0.4:
        return values
    if rng.random() < 0.3:
        return differences(values, old)
    shift = int(rng.integers(0, 8 * group.storage.itemsize)) if rng.random() < 0.5 else 0
    if rng.random() < 0.5 and group.dtype != "BOOL":
        kind = to_ordered(old, group.dtype).dtype.type
        rounded = to_ordered(old, group.dtype) >> kind(shift) << kind(shift)
        values = Values(indices, from_ordered(rounded, group.dtype), group.dtype)
        return differences(values, old, shift)
    near = (rng.standard_normal(len(indices)) * 2.0 ** rng.integers(0, 20)).astype(np.int64)
    return Differences(indices, near, shift, group.dtype)
