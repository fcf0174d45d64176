"""One inference request of the Open Inference Protocol, from the bytes of its HTTP body.

    without the header Inference-Header-Content-Length:   JSON
    with it, n:                                           n bytes of JSON, then the raw tensors in the inputs' order

Bytes that cannot be what they claim to be are refused whole; every refusal says why in one line.
"""

from __future__ import annotations

from typing import Any

import msgspec

from evergrad.serve.sdk import InferInput, InferRequest, InvalidInput, RequestedOutput
from evergrad.serve.tensors import Array, from_bytes, from_list


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


def decode_request(body: bytes, length: str | None, model: str) -> InferRequest:
    """The request in a body.

    Args:
        length: the value of the header Inference-Header-Content-Length, where there is one.
        model: the model's name, from the path.

    Raises:
        InvalidInput: it is not a request of the protocol.
    """
    header = len(body) if length is None else _header_bytes(length, body)
    try:
        found = msgspec.json.decode(body[:header], type=_Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"not an inference request: {error}") from None
    rest = memoryview(body)[header:]
    inputs = []
    for tensor in found.inputs:
        array, rest = _take(tensor, rest)
        inputs.append(InferInput(tensor.name, list(array.shape), tensor.datatype, array))
    if rest:
        raise InvalidInput(f"{len(rest)} bytes follow the request, and no input's binary_data_size claims them")
    outputs = [RequestedOutput(output.name, output.parameters) for output in found.outputs or ()]
    return InferRequest(
        model, inputs, request_id=found.id, parameters=found.parameters, request_outputs=outputs or None
    )


def _header_bytes(length: str, body: bytes) -> int:
    if not (length.isascii() and length.isdecimal() and len(length) < 20 and int(length) <= len(body)):
        raise InvalidInput(f"Inference-Header-Content-Length is {length[:40]!r}, the body has {len(body)} bytes")
    return int(length)


def _take(tensor: _Input, rest: memoryview) -> tuple[Array, memoryview]:
    size = (tensor.parameters or {}).get("binary_data_size")
    if (size is None) == (tensor.data is None):
        raise InvalidInput(f"input {tensor.name!r} needs either data or binary_data_size")
    try:
        if tensor.data is not None:
            return from_list(tensor.data, tensor.datatype, tensor.shape), rest
        if type(size) is not int or not 0 <= size <= len(rest):
            raise ValueError(f"its binary_data_size is {size!r}, {len(rest)} bytes follow")
        return from_bytes(rest[:size], tensor.datatype, tensor.shape), rest[size:]
    except ValueError as error:
        raise InvalidInput(f"input {tensor.name!r}: {error}") from None
