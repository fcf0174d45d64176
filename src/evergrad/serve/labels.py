"""One piece of feedback, from the bytes of its HTTP body: labels of answered requests, or examples with their labels.

{"labels": [{"id": "r1", "y": {"shape": [1], "datatype": "INT64", "data": [3]}}, ...]}
{"examples": {"x": {"shape": [1, 784], "datatype": "FP32", "data": [...]}, "y": {...}}}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from evergrad.serve.sdk import InvalidInput
from evergrad.serve.tensors import Array, from_list


@dataclass(frozen=True, slots=True)
class Labels:
    """Of each request its id and its labels, [rows, ...]."""

    of: list[tuple[str, Array]]


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs and labels, [examples, ...]."""

    x: Array
    y: Array


class _Tensor(msgspec.Struct):
    shape: list[int]
    datatype: str
    data: list[Any]

    def array(self, name: str) -> Array:
        try:
            return from_list(self.data, self.datatype, self.shape)
        except ValueError as error:
            raise InvalidInput(f"{name}: {error}") from None


class _Label(msgspec.Struct):
    id: str
    y: _Tensor


class _Examples(msgspec.Struct):
    x: _Tensor
    y: _Tensor


class _Feedback(msgspec.Struct, forbid_unknown_fields=True):
    labels: list[_Label] | None = None
    examples: _Examples | None = None


def decode_feedback(body: bytes) -> Labels | Examples:
    """The feedback in a body.

    Raises:
        InvalidInput: it is none.
    """
    try:
        found = msgspec.json.decode(body, type=_Feedback)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"not feedback: {error}") from None
    if found.examples is not None and found.labels is None:
        return Examples(found.examples.x.array("x"), found.examples.y.array("y"))
    if not found.labels or found.examples is not None:
        raise InvalidInput("feedback has either labels, one at least, or examples")
    return Labels([(label.id, label.y.array(f"y of {label.id[:80]!r}")) for label in found.labels])
