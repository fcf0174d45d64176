"""Tensors on the wire: exact, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evergrad.serve.tensors import DATATYPES, datatype_of, from_bytes, from_list


@pytest.mark.parametrize("datatype", DATATYPES)
def test_bytes_come_back_as_they_were(datatype: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(DATATYPES[datatype])
    found = from_bytes(array.tobytes(), datatype, [2, 3])
    assert datatype_of(found) == datatype
    assert np.array_equal(found, array)
    found[0, 0] = 1  # its own memory, and writable


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {"FP16", "BOOL"}))
def test_the_limits_of_a_datatype_travel_in_json(datatype: str) -> None:
    dtype = DATATYPES[datatype]
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    array = np.array([limits.min, limits.max], dtype)
    assert np.array_equal(from_list(array.tolist(), datatype, [2]), array)


def test_a_big_endian_array_has_the_same_datatype() -> None:
    assert datatype_of(np.zeros(1, ">f4")) == "FP32"
    with pytest.raises(ValueError, match="complex64"):
        datatype_of(np.zeros(1, np.complex64))


def test_flat_and_nested_data_are_one_tensor() -> None:
    flat = from_list([1, 2, 3, 4, 5, 6], "FP32", [3, 2])
    assert np.array_equal(flat, from_list([[1, 2], [3, 4], [5, 6]], "FP32", [3, 2]))
    assert from_list([], "INT8", [0, 4]).shape == (0, 4)
    assert from_list([7], "INT8", []).shape == ()
    assert from_list([True, False], "BOOL", [2]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "problem"),
    [
        ([1.5], "INT64", [1], "not INT64"),
        ([256], "UINT8", [1], "not UINT8"),
        ([-1], "UINT64", [1], "not UINT64"),
        ([-1, 1 << 63], "UINT64", [2], "not UINT64"),
        ([0.5, 1 << 63], "UINT64", [2], "not UINT64"),
        ([1, 1 << 64], "UINT64", [2], "not UINT64"),
        ([1 << 64], "UINT64", [1], "not UINT64"),
        ([1e39], "FP32", [1], "not FP32"),
        (["1"], "FP32", [1], "not FP32"),
        ([None], "FP32", [1], "not FP32"),
        ([1], "BOOL", [1], "not BOOL"),
        ([True], "INT8", [1], "not INT8"),
        ([[1, 2], [3]], "FP32", [3], "nesting"),
        ([1.0], "FP16", [1], "binary"),
        ([1, 2], "FP32", [3], "takes 3 values, found 2"),
        ([1, 2], "FP32", [-1, 2], "sides"),
        ([1], "FP32", [1] * 33, "sides"),
        ([], "FP32", [0, 1 << 40], "sides"),
        ([], "FP32", [0, 1 << 30, 1 << 30, 1 << 30], "too big"),
        (["a"], "BYTES", [1], "not one of"),
    ],
)
def test_what_does_not_fit_is_refused(data: list[Any], datatype: str, shape: list[int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        from_list(data, datatype, shape)


def test_bytes_must_fill_the_shape() -> None:
    with pytest.raises(ValueError, match="takes 8 bytes, found 7"):
        from_bytes(bytes(7), "FP32", [2])
