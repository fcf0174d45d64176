"""Updates and snapshots survive their bytes, and cost what the design says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import safetensors.numpy

from evergrad.codec import decode, decode_snapshot, encode, encode_snapshot
from evergrad.schema import STORAGE, Schema
from evergrad.update import Section, Steps, Update, Values
from tests.builders import RUN, equal_states, new_state, small_schema, snapshot_of, steps, update_of, values


def same_section(mine: Section, other: Section) -> bool:
    if isinstance(mine, Steps) and isinstance(other, Steps):
        rest = np.array_equal(mine.negative, other.negative) and np.float32(mine.scale) == other.scale
    else:
        assert isinstance(mine, Values)
        assert isinstance(other, Values)
        rest = (mine.dtype, mine.values.dtype, mine.values.tobytes()) == (
            other.dtype, other.values.dtype, other.values.tobytes(),
        )  # fmt: skip
    return bool(rest) and other.indices.dtype == np.int64 and np.array_equal(mine.indices, other.indices)


def same_update(mine: Update, other: Update) -> bool:
    fields = ("base_version", "version", "run", "schema", "digest_before", "digest_after", "newest_us")
    return all(getattr(mine, f) == getattr(other, f) for f in fields) and all(
        same_section(a, b) for a, b in zip(mine.sections, other.sections, strict=True)
    )


@pytest.mark.parametrize(
    "sections",
    [
        (),
        (steps([]),),
        (values([], [], "BOOL"),),
        (steps([0], 1e-45),),
        (steps([15], 3.4e38),),
        (steps(range(16)),),
        (steps([0, 1, 14, 15]), values([16], [-(2**63)], "I64"), values([17, 20], [0, 65535], "BF16")),
        (values([21, 22, 23], [1, 0, 1], "BOOL"), steps([3]), steps([3])),
        (steps([2]),) * 255,
    ],
    ids=["none", "no steps", "no values", "smallest", "largest", "all", "mixed", "repeated", "255"],
)
def test_update_survives_its_bytes(sections: tuple[Section, ...]) -> None:
    state = new_state(small_schema())
    update = Update(
        base_version=0, version=2**64 - 1, run=RUN, schema=2**64 - 1, digest_before=0, digest_after=2**64 - 1,
        newest_us=0, sections=sections,
    )  # fmt: skip
    data = encode(update)
    assert same_update(update, decode(data, state.schema))
    assert encode(decode(data, state.schema)) == data


def test_indices_at_both_ends_of_the_largest_model_survive() -> None:
    schema = Schema([("w", "F32", (1 << 40,))])
    for at in ([0], [(1 << 40) - 1], [0, (1 << 40) - 1], [7, 8, 1 << 39]):
        update = Update(
            base_version=0, version=1, run=0, schema=0, digest_before=0, digest_after=0, newest_us=0,
            sections=(steps(at),),
        )  # fmt: skip
        data = encode(update)
        assert same_update(update, decode(data, schema))
        assert len(data) < 120


def test_steps_cost_about_the_entropy_of_their_places_and_one_bit_a_sign() -> None:
    elements, count = 1 << 20, 1 << 12
    schema = Schema([("w", "F32", (elements,))])
    at = np.sort(np.random.default_rng(0).choice(elements, count, replace=False))
    update = update_of(new_state(schema), 0, steps(at.tolist(), 1e-3))
    log2_choices = (math.lgamma(elements + 1) - math.lgamma(count + 1) - math.lgamma(elements - count + 1)) / math.log(
        2
    )
    assert 8 * (len(encode(update)) - 72 - 16) < 1.04 * log2_choices + count


@pytest.mark.parametrize("dtype", STORAGE)
def test_snapshot_of_each_dtype_survives_its_bytes(dtype: str) -> None:
    schema = Schema([("a", dtype, (2, 3)), ("s", dtype, ()), ("none", dtype, (0, 2)), ("f", "F32", (1,))], {"t": "a"})
    state = new_state(schema, seed=5)
    found = decode_snapshot(encode_snapshot(snapshot_of(state, 12, newest_us=0)), schema)
    assert (found.version, found.run, found.newest_us) == (12, RUN, 0)
    assert equal_states(found.state, state)
    assert all(array.flags.writeable and array.flags.owndata for array in found.state.arrays)


def test_snapshot_of_a_model_without_tensors_survives() -> None:
    state = new_state(Schema([]))
    assert decode_snapshot(encode_snapshot(snapshot_of(state, 0)), state.schema).version == 0


def test_snapshot_is_a_plain_safetensors_file() -> None:
    schema = Schema([("w", "F32", (2, 3)), ("n", "I64", ()), ("none", "F16", (0,))])
    state = new_state(schema)
    tensors = safetensors.numpy.load(encode_snapshot(snapshot_of(state, 1)))
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {
        "w": (np.dtype("f4"), (2, 3)), "n": (np.dtype("i8"), ()), "none": (np.dtype("f2"), (0,)),
    }  # fmt: skip
    assert all(np.array_equal(tensors[name], view) for name, view in state.tensors().items())


def test_tensors_of_a_snapshot_are_aligned_to_their_elements() -> None:
    schema = Schema([("on", "BOOL", (3,)), ("n", "I64", (2,)), ("h", "F16", (1,)), ("w", "F32", (3,))])
    data = encode_snapshot(snapshot_of(new_state(schema), 1))
    for name, view in new_state(schema).tensors().items():
        assert data.index(view.tobytes()) % view.itemsize == 0, name
