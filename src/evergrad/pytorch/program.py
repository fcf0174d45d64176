"""A program: how a model computes, as plain JSON, and the module that runs it. No weights, no code, no pickle.

    {"format": 1, "torch": "2.13.0",
     "state":     [{"name": "fc.weight", "dtype": "F32", "shape": [10, 4], "parameter": true}, ...],
     "constants": [{"dtype": "F32", "shape": [4], "data": <base64>}, ...],
     "inputs":    1,
     "nodes":     [{"op": "aten.linear.default", "args": [{"value": 2}, {"value": 0}, null]}, ...],
     "output":    3}

Values are numbered: first the state, then the constants, then the inputs, then what each node gives; a node may use
those before it. An argument is null, true, a number, a string, a list, or one of {"value": number}, {"float": "inf"},
{"dtype": "F32"}, {"memory_format": "channels_last"} and {"device": true}, which is wherever the input lies.

`torch.export.load` is not used: it falls back to pickle, and evaluates Python that the archive holds. Here nothing in
the file is ever code: the module is a loop over the nodes, and calls what `operators` allows. Whoever can write a log
can make its readers compute for long, in much memory, and give wrong answers (as by the weights, too), no more.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from evergrad.errors import ProgramRefused, SchemaMismatch, UnsupportedFormat
from evergrad.pytorch.bridge import as_numpy, as_tensor, dtype_name, dtype_of
from evergrad.pytorch.operators import Call, find_operator
from evergrad.schema import STORAGE, Schema

FORMAT = 1
_MOST_MODULES_DEEP = 100
_MEMORY_FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)


class StateRow(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One tensor of the state, in the order of the module's `state_dict`; `tied`: the earlier name of the same one."""

    name: str
    dtype: str
    shape: list[int]
    parameter: bool
    tied: str | None = None


class Constant(msgspec.Struct, forbid_unknown_fields=True):
    """A tensor that belongs to the program: little-endian elements, row-major."""

    dtype: str
    shape: list[int]
    data: bytes


class Node(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One call."""

    op: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class Program(msgspec.Struct, forbid_unknown_fields=True):
    """All of it; see the module."""

    format: int
    torch: str
    state: list[StateRow]
    constants: list[Constant]
    inputs: int
    nodes: list[Node]
    output: int


class _Head(msgspec.Struct):
    format: int


class Value(msgspec.Struct, frozen=True):
    """In an argument: the value of that number."""

    number: int


DEVICE = object()
"""In an argument: the device of the input."""


_OBJECTS: dict[tuple[str, Any], Any] = {
    ("device", True): DEVICE,
    **{("float", repr(value)): value for value in (math.inf, -math.inf, math.nan)},
    **{("dtype", name): dtype_of(name) for name in STORAGE},
    **{("memory_format", str(each).removeprefix("torch.")): each for each in _MEMORY_FORMATS},
}


def told(argument: Any) -> Any:
    """An argument as JSON. Raises ValueError where no program can hold it."""
    if isinstance(argument, list | tuple):
        return [told(each) for each in argument]
    if isinstance(argument, Value):
        return {"value": argument.number}
    if isinstance(argument, float) and not math.isfinite(argument):
        return {"float": repr(argument)}
    if argument is None or isinstance(argument, bool | str | float):
        return argument
    if isinstance(argument, int) and -(1 << 63) <= argument < 1 << 63:
        return argument
    for (kind, what), meant in _OBJECTS.items():
        if meant is argument or (type(meant) is type(argument) and meant == argument):
            return {kind: what}
    raise ValueError(f"an argument of type {type(argument).__name__}")


def _understood(argument: Any, most: int) -> Any:
    """What `told` was told, where all values have numbers below `most`. Raises ValueError."""
    if isinstance(argument, list):
        return [_understood(each, most) for each in argument]
    if not isinstance(argument, dict):
        return argument
    kind, what = next(iter(argument.items())) if len(argument) == 1 else ("", None)
    if kind == "value" and type(what) is int and 0 <= what < most:
        return Value(what)
    if isinstance(what, str | bool) and (kind, what) in _OBJECTS:
        return _OBJECTS[kind, what]
    raise ValueError(f"an argument that says {str(argument)[:80]}")


class ProgramModule(nn.Module):
    """A module that runs a program. Its weights are noughts until something gives it others; it is for inference.

    Parameters and persistent buffers have the names of the model that was recorded, so whatever keeps that model fresh
    (`attach`, a server) keeps this one. Made by `load_program`; raises as it.
    """

    def __init__(self, program: Program, name: str) -> None:
        super().__init__()
        self._cells: list[tuple[dict[str, Any], str]] = []  # where each value of the state and the constants is
        self._inputs, self._output = program.inputs, program.output
        try:
            self._nodes = _checked(program)
            known: dict[str, torch.Tensor] = {}
            for row in program.state:
                self._cells.append(self._put(row, known))
            for number, constant in enumerate(program.constants):
                self.register_buffer(f"_constant_{number}", _tensor(constant), persistent=False)
                self._cells.append((self._buffers, f"_constant_{number}"))
        except (ValueError, KeyError, RuntimeError, SchemaMismatch) as error:
            raise ProgramRefused(name, f"{error} (recorded with torch {program.torch[:20]})") from error

    def _put(self, row: StateRow, known: dict[str, torch.Tensor]) -> tuple[dict[str, Any], str]:
        if row.tied is not None:
            tensor = known[row.tied]
        else:
            tensor = torch.zeros(row.shape, dtype=dtype_of(row.dtype))
            tensor = nn.Parameter(tensor, requires_grad=False) if row.parameter else tensor
        if row.name in known or isinstance(tensor, nn.Parameter) != row.parameter:
            raise ValueError(f"the tensor {row.name[:80]!r} stands twice, or as two kinds")
        known[row.name] = tensor
        *path, last = row.name.split(".")
        if len(path) > _MOST_MODULES_DEEP:
            raise ValueError(f"the tensor {row.name[:80]!r} lies too deep")
        owner: nn.Module = self
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if row.parameter:
            owner.register_parameter(last, tensor)  # type: ignore[arg-type]
            return owner._parameters, last
        owner.register_buffer(last, tensor)
        return owner._buffers, last

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the recorded model gives in evaluation mode, in either mode of this module.

        A RuntimeError or IndexError says that the inputs are none that it takes.
        """
        if len(inputs) != self._inputs:
            raise RuntimeError(f"the program takes {self._inputs} inputs, not {len(inputs)}")
        device = inputs[0].device
        values: list[Any] = [where[key] for where, key in self._cells]
        values += inputs
        for call, args, kwargs, done in self._nodes:
            try:
                values.append(
                    call(*_filled(args, values, device), **{k: _filled(v, values, device) for k, v in kwargs})
                )
            except (TypeError, ArithmeticError, AttributeError, NotImplementedError) as error:
                raise RuntimeError(f"the program cannot compute this: {error}") from error
            for number in done:
                values[number] = None
        found: torch.Tensor = values[self._output]
        return found


def _filled(argument: Any, values: list[Any], device: torch.device) -> Any:
    if type(argument) is Value:
        return values[argument.number]
    if type(argument) is list:
        return [_filled(each, values, device) for each in argument]
    return device if argument is DEVICE else argument


def _checked(program: Program) -> list[tuple[Call, list[Any], list[tuple[str, Any]], list[int]]]:
    """The nodes as functions, arguments, and which values nobody needs after each. Raises ValueError."""
    first = len(program.state) + len(program.constants) + program.inputs
    last_use: dict[int, int] = {}
    nodes: list[tuple[Call, list[Any], list[tuple[str, Any]], list[int]]] = []
    if not 1 <= program.inputs <= 1000 or not first <= program.output < first + len(program.nodes):
        raise ValueError("its inputs or its output are none")
    for number, node in enumerate(program.nodes):
        call = find_operator(node.op)
        if isinstance(call, str):
            raise ValueError(call)
        args = _understood(node.args, first + number)
        kwargs = [(name, _understood(value, first + number)) for name, value in node.kwargs.items()]
        last_use.update(dict.fromkeys([*_used(args), *_used([value for _, value in kwargs])], number))
        nodes.append((call, args, kwargs, []))
    for value, number in last_use.items():
        if value != program.output:
            nodes[number][3].append(value)
    return nodes


def _used(argument: Any) -> list[int]:
    if isinstance(argument, Value):
        return [argument.number]
    return [number for each in argument for number in _used(each)] if isinstance(argument, list) else []


def constant_of(tensor: torch.Tensor) -> Constant:
    """A tensor of the program's own, as JSON holds it. Raises SchemaMismatch: a dtype that has no name."""
    return Constant(dtype_name(tensor), list(tensor.shape), as_numpy(tensor.contiguous()).tobytes())


def _tensor(constant: Constant) -> torch.Tensor:
    spec = Schema([("constant", constant.dtype, tuple(constant.shape))]).tensors[0]
    array = np.frombuffer(constant.data, STORAGE[constant.dtype])
    if array.size != spec.size:
        raise ValueError(f"a constant of {array.size} elements, where its shape says {spec.size}")
    return as_tensor(array.copy(), spec)


def dump_program(program: Program) -> bytes:
    """The program's bytes; equal programs give equal ones."""
    return msgspec.json.encode(program)


def load_program(data: bytes, schema: Schema, name: str = "the program") -> ProgramModule:
    """The module that runs what `dump_program` wrote. It runs nothing yet, whoever wrote it.

    Args:
        schema: of the log that it comes from.
        name: where the bytes came from, for messages.

    Raises:
        SchemaMismatch: it is a program of another model.
        ProgramRefused: it is no program, or asks for what programs may not do, or what this torch cannot.
        UnsupportedFormat: a newer release wrote it.
    """
    try:
        found = msgspec.json.decode(data, type=_Head).format
        if found > FORMAT:
            raise UnsupportedFormat(name, found, FORMAT)
        program = msgspec.json.decode(data, type=Program)
        if program.format != FORMAT:
            raise ProgramRefused(name, f"it has format {program.format}, as no writer writes")
        tied = {row.name: row.tied for row in program.state if row.tied is not None}
        own = sorted((row for row in program.state if row.tied is None), key=lambda row: row.parameter)
        schema.require(Schema([(row.name, row.dtype, tuple(row.shape)) for row in own], tied))
        return ProgramModule(program, name)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProgramRefused(name, f"it is no program: {error}") from error
