"""The tensors of a model as one flat index space.

A schema is an ordered table (name, dtype, shape). Tensors of one dtype lie side by side, so a model's state is one flat
array per dtype, and an element has one index across all of them:

    index   0 ............ 61705 | 61706 ... 61711 | 61712 ......
            conv1.weight ... fc.bias (F32) | counters (I64) | ...
            `-------- group 0 ----------' `-- group 1 --'

Tied tensors appear once; their other names are aliases. Dtype names are those of safetensors. numpy has no bfloat16, so
BF16 elements are stored, and shown, as their 16 bits in uint16 (`widen_bf16` turns them into float32).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np
import numpy.typing as npt

from evergrad.errors import CorruptRecord, SchemaMismatch

STORAGE: dict[str, np.dtype[np.generic]] = {
    name: np.dtype(code)
    for name, code in {
        "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1",
        "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "u1",
    }.items()
}  # fmt: skip
RESERVED_NAME = "__metadata__"
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
MAX_ELEMENTS = 1 << 40
"""A model may have this many elements at most: it keeps all index arithmetic far from the limits of 64 bits."""
MAX_RANK = 32
"""A tensor may have this many sides at most: what every numpy can hold."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: `offset` is the index of its first element (row-major) in the schema's flat index space."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Group:
    """All tensors of one dtype: the half-open range [start, stop) of the index space."""

    dtype: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def storage(self) -> np.dtype[np.generic]:
        return STORAGE[self.dtype]


class _TensorRow(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    dtype: str
    shape: list[int]


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    tensors: list[_TensorRow]
    aliases: dict[str, str] = {}


class Schema:
    """The ordered table of a model's tensors.

    Args:
        tensors: (name, dtype, shape) of each tensor; reordered so that equal dtypes lie side by side (stable
            otherwise).
        aliases: further names of tied tensors, each to the name that the table holds.

    Raises:
        SchemaMismatch: a dtype that Evergrad does not know, a name that stands twice, too many sides or elements.

    >>> schema = Schema([("w", "F32", (2, 3)), ("n", "I64", ()), ("b", "F32", (3,))])
    >>> [(t.name, t.offset) for t in schema.tensors], schema.elements
    ([('w', 0), ('b', 6), ('n', 9)], 10)
    """

    def __init__(
        self, tensors: Iterable[tuple[str, str, tuple[int, ...]]], aliases: Mapping[str, str] | None = None
    ) -> None:
        rows = list(tensors)
        ranks = {dtype: rank for rank, dtype in enumerate(dict.fromkeys(dtype for _, dtype, _ in rows))}
        specs: list[TensorSpec] = []
        offset = 0
        for name, dtype, shape in sorted(rows, key=lambda row: ranks[row[1]]):
            if dtype not in STORAGE:
                raise SchemaMismatch(name, f"one of {', '.join(STORAGE)}", dtype)
            if any(side < 0 for side in shape):
                raise SchemaMismatch(name, "sides of zero or more", str(list(shape)))
            if len(shape) > MAX_RANK or math.prod(filter(None, shape)) > MAX_ELEMENTS:
                expected = f"at most {MAX_RANK} sides and {MAX_ELEMENTS} elements, empty sides aside"
                raise SchemaMismatch(name, expected, str(list(shape)))
            spec = TensorSpec(name, dtype, tuple(shape), offset)
            offset += spec.size
            if offset > MAX_ELEMENTS:
                raise SchemaMismatch(name, f"at most {MAX_ELEMENTS} elements in all", f"more, from {spec}")
            specs.append(spec)
        self.tensors = tuple(specs)
        self.aliases = dict(sorted((aliases or {}).items()))
        self.elements = offset
        self._check_names()

    def _check_names(self) -> None:
        names: set[str] = set()
        for name in (*(t.name for t in self.tensors), *self.aliases):
            if name in names:
                raise SchemaMismatch(name, "each name once", "twice")
            if name == RESERVED_NAME:
                raise SchemaMismatch(name, "a name that safetensors does not keep for itself", "this one")
            names.add(name)
        for alias, name in self.aliases.items():
            if name not in self.by_name:
                raise SchemaMismatch(alias, "an alias of a tensor in the table", name)

    @cached_property
    def by_name(self) -> dict[str, TensorSpec]:
        return {t.name: t for t in self.tensors}

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """One group per dtype, in index order; together they cover the index space."""
        found: list[Group] = []
        for tensor in self.tensors:
            stop = tensor.offset + tensor.size
            if found and found[-1].dtype == tensor.dtype:
                found[-1] = Group(tensor.dtype, found[-1].start, stop)
            else:
                found.append(Group(tensor.dtype, tensor.offset, stop))
        return tuple(found)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the whole state."""
        return sum(group.size * group.storage.itemsize for group in self.groups)

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits of the SHA-256 of the table's canonical JSON."""
        return hashlib.sha256(self.to_json()).hexdigest()[:32]

    def to_json(self) -> bytes:
        """The table as canonical JSON: equal schemas give equal bytes."""
        rows = [_TensorRow(t.name, t.dtype, list(t.shape)) for t in self.tensors]
        return msgspec.json.encode(_Table(rows, self.aliases))

    @classmethod
    def from_json(cls, data: bytes, name: str = "schema") -> Schema:
        """Reads what `to_json` wrote.

        Raises:
            CorruptRecord: not such JSON, or not a table in index order. `name` says where the bytes came from.
        """
        try:
            table = msgspec.json.decode(data, type=_Table)
            schema = cls([(row.name, row.dtype, tuple(row.shape)) for row in table.tensors], table.aliases)
        except (msgspec.DecodeError, UnicodeDecodeError, SchemaMismatch) as error:
            raise CorruptRecord(name, str(error)) from error
        if [t.name for t in schema.tensors] != [row.name for row in table.tensors]:
            raise CorruptRecord(name, "tensors of one dtype do not lie side by side")
        return schema

    def require(self, found: Schema) -> None:
        """Checks that `found` is this schema.

        Raises:
            SchemaMismatch: naming the first tensor that differs.
        """
        if self.fingerprint == found.fingerprint:
            return
        for name in dict.fromkeys((*self.by_name, *found.by_name)):
            mine, other = self.by_name.get(name), found.by_name.get(name)
            if mine is None or other is None or (mine.dtype, mine.shape) != (other.dtype, other.shape):
                raise SchemaMismatch(name, str(mine or "no such tensor"), str(other or "no such tensor"))
        for alias in dict.fromkeys((*self.aliases, *found.aliases)):
            expected, got = (f"tied to {s.aliases[alias]}" if alias in s.aliases else "not tied" for s in (self, found))
            if expected != got:
                raise SchemaMismatch(alias, expected, got)
        order = ", ".join(t.name for t in self.tensors)
        raise SchemaMismatch(self.tensors[0].name, f"tensors in the order {order}", "another order")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Schema({len(self.tensors)} tensors, {self.elements} elements, {self.fingerprint[:8]})"


def widen_bf16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The float32 values of bfloat16 `bits` (any shape), exactly.

    >>> widen_bf16(np.array([0x3F80, 0xC000], dtype=np.uint16))
    array([ 1., -2.], dtype=float32)
    """
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
