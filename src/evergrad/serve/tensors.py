"""Tensors of the Open Inference Protocol and numpy arrays: one table of datatypes, and nothing converted in silence.

The client and the server share this file, so it must not need more than numpy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DATATYPES: dict[str, np.dtype[np.generic]] = {
    name: np.dtype(code)
    for name, code in {
        "BOOL": "?", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "<u1", "UINT16": "<u2",
        "UINT32": "<u4", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
    }.items()
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_JSON_KINDS = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}
_MAX_SIDES, _MAX_SIDE = 32, 1 << 31


def datatype_of(array: Array) -> str:
    """The protocol's name of an array's dtype.

    Raises:
        ValueError: it has none.

    >>> datatype_of(np.zeros(2, np.float32))
    'FP32'
    """
    name = _NAMES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise ValueError(f"the Open Inference Protocol has no datatype for {array.dtype}")
    return name


def from_bytes(data: bytes | memoryview, datatype: str, shape: list[int]) -> Array:
    """A tensor from its little-endian bytes, row-major; the array owns its memory.

    Raises:
        ValueError: an unknown datatype, or a shape that the bytes do not fill exactly.

    >>> from_bytes(bytes([1, 0, 2, 0]), "INT16", [2, 1])
    array([[1],
           [2]], dtype=int16)
    """
    dtype = _dtype(datatype)
    expected = _elements(shape) * dtype.itemsize
    if len(data) != expected:
        raise ValueError(f"shape {shape} of {datatype} takes {expected} bytes, found {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape).copy()


def from_list(data: list[Any], datatype: str, shape: list[int]) -> Array:
    """A tensor from JSON data, flat or nested, row-major.

    Raises:
        ValueError: an unknown datatype, a shape that the data do not fill exactly, or a value that the datatype cannot
            hold.

    >>> from_list([[1, 2], [3, 4]], "INT64", [4])
    array([1, 2, 3, 4])
    >>> from_list([1.5], "INT64", [1])
    Traceback (most recent call last):
    ValueError: the data hold values that are not INT64
    """
    dtype = _dtype(datatype)
    if datatype == "FP16":
        raise ValueError("FP16 travels as binary data only")
    expected = _elements(shape)
    found = _parse(data, datatype)
    if found.size != expected:
        raise ValueError(f"shape {shape} takes {expected} values, found {found.size}")
    if not found.size:
        return np.zeros(shape, dtype)
    if found.dtype.kind not in _JSON_KINDS[dtype.kind] or not _fits(found, dtype):
        raise ValueError(f"the data hold values that are not {datatype}")
    return found.astype(dtype).reshape(shape)


def _parse(data: list[Any], datatype: str) -> Array:
    try:
        found = np.array(data)
    except ValueError:
        raise ValueError("the data are neither flat nor a regular nesting of lists") from None
    if datatype == "UINT64" and found.dtype.kind == "f":  # numpy's word for integers below and above 2**63 together
        exact = np.array(data, object)
        if all(type(value) is int and 0 <= value < 1 << 64 for value in exact.flat):
            return exact.astype(np.uint64)
    return found


def _fits(found: Array, dtype: np.dtype[Any]) -> bool:
    if dtype.kind == "b":
        return True
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return bool(int(limits.min) <= found.min().item() and found.max().item() <= int(limits.max))


def _dtype(datatype: str) -> np.dtype[Any]:
    if datatype not in DATATYPES:
        raise ValueError(f"datatype {datatype!r} is not one of {', '.join(DATATYPES)}")
    return DATATYPES[datatype]


def _elements(shape: list[int]) -> int:
    if len(shape) > _MAX_SIDES or any(not 0 <= side < _MAX_SIDE for side in shape):
        raise ValueError(f"a shape has at most {_MAX_SIDES} sides, each from 0 to {_MAX_SIDE - 1}")
    return math.prod(shape)
