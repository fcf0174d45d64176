"""What an ONNX file says about its inputs and initialisers, and how to turn initialisers into inputs with a default.

An ONNX file is a protobuf message (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). Only the few fields that
matter here are read, by the wire format: a runtime that only answers need not have the package `onnx`. Nor need the
message be rewritten: two messages one after the other are one message, merged, so that inputs can be appended.

    ModelProto      1 ir_version    7 graph
    GraphProto      5 initializer  11 input
    TensorProto     1 dims          2 data_type    8 name
    ValueInfoProto  1 name          2 type         (type.1 tensor_type: 1 elem_type, 2 shape; shape.1 dim: 1 dim_value)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from evergrad.errors import ConfigError

_VARINT, _I64, _BYTES, _I32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class OnnxTensor:
    """An input or an initialiser. `dtype` is a number of TensorProto.DataType; a dimension that is free is None.

    `shape` is None where the file does not tell even the rank.
    """

    name: str
    dtype: int
    shape: tuple[int | None, ...] | None


@dataclass(slots=True)
class OnnxGraph:
    """The tables of a file's main graph, by name."""

    ir_version: int = 0
    inputs: dict[str, OnnxTensor] = field(default_factory=dict)
    initialisers: dict[str, OnnxTensor] = field(default_factory=dict)


def read_graph(model: bytes) -> OnnxGraph:
    """The tables of an ONNX file.

    Raises:
        ConfigError: it is none.
    """
    found = OnnxGraph()
    try:
        for number, value in _fields(memoryview(model)):
            if number == 1 and isinstance(value, int):
                found.ir_version = value
            elif number == 7:
                _read_tables(_message(value), found)
    except (IndexError, ValueError) as error:
        raise ConfigError("model", f"it is no ONNX file: {error}") from error
    if not found.ir_version:
        raise ConfigError("model", "it is no ONNX file: it names no version of the format")
    return found


def with_inputs(model: bytes, tensors: Iterable[OnnxTensor]) -> bytes:
    """The same model, with these initialisers as inputs too: a runtime then takes none of them for a constant."""
    entries = b""
    for tensor in tensors:
        shape = b"".join(_put(1, _key(1, _VARINT) + _varint(size or 0)) for size in tensor.shape or ())
        kind = _put(1, _key(1, _VARINT) + _varint(tensor.dtype) + _put(2, shape))
        entries += _put(11, _put(1, tensor.name.encode()) + _put(2, kind))
    return model + _put(7, entries) if entries else model


def _read_tables(graph: memoryview, found: OnnxGraph) -> None:
    for number, value in _fields(graph):
        if number == 5:
            tensor = _initialiser(_message(value))
            found.initialisers[tensor.name] = tensor
        elif number == 11:
            tensor = _input(_message(value))
            found.inputs[tensor.name] = tensor


def _initialiser(message: memoryview) -> OnnxTensor:
    name, dtype, dims = "", 0, list[int | None]()
    for number, value in _fields(message):
        if number == 1:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif number == 2 and isinstance(value, int):
            dtype = value
        elif number == 8:
            name = _text(value)
    return OnnxTensor(name, dtype, tuple(dims))


def _input(message: memoryview) -> OnnxTensor:
    name, dtype, shape = "", 0, None
    for number, value in _fields(message):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for kind, tensor in _fields(_message(value)):
                if kind == 1:
                    dtype, shape = _tensor_type(_message(tensor))
    return OnnxTensor(name, dtype, shape)


def _tensor_type(message: memoryview) -> tuple[int, tuple[int | None, ...] | None]:
    dtype, shape = 0, None
    for number, value in _fields(message):
        if number == 1 and isinstance(value, int):
            dtype = value
        elif number == 2:
            sizes = [dict(_fields(_message(dim))).get(1) for at, dim in _fields(_message(value)) if at == 1]
            shape = tuple(size if isinstance(size, int) else None for size in sizes)
    return dtype, shape


# -- the wire format --------------------------------------------------------------------------------------------------


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field, in order; groups, which ONNX has none of, are refused."""
    at = 0
    while at < len(message):
        key, at = _take_varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _take_varint(message, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _take_varint(message, at)
        elif kind in (_I64, _I32):
            size = 8 if kind == _I64 else 4
        else:
            raise ValueError(f"a field of wire type {kind}")
        if at + size > len(message):
            raise ValueError(f"it ends {at + size - len(message)} bytes early")
        yield key >> 3, message[at : at + size]
        at += size


def _take_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _packed(value: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(value):
        number, at = _take_varint(value, at)
        found.append(number)
    return found


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number in the place of a message")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode()


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _put(number: int, payload: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(payload)) + payload
