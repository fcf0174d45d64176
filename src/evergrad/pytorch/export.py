"""How a program is made: `torch.export` traces a model in evaluation mode, and its graph is told as `program` has it.

The model itself is traced, with tensors that hold nothing (torch's fake ones), so there is no second copy of the
weights. Its modes, and torch's random numbers, are as before afterwards.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import nn
from torch.export.graph_signature import InputKind, OutputKind

from evergrad.errors import LogUnavailable, ProgramRefused
from evergrad.log import UpdateLog
from evergrad.log.signature import TensorInfo, forget_program, write_signature
from evergrad.pytorch.bridge import device_of, dtype_name, module_tensors, schema_of, tensor_over
from evergrad.pytorch.operators import CHECKS, is_mutable, name_of
from evergrad.pytorch.program import (
    DEVICE,
    FORMAT,
    Constant,
    Node,
    Program,
    StateRow,
    Value,
    constant_of,
    dump_program,
    load_program,
    told,
)

Batch = torch.Tensor | npt.NDArray[Any]
logger = logging.getLogger(__name__)
_TALKATIVE = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch.export._trace")
_MOST_SAID = 300
_ROWS = 2  # torch.export takes a batch of one for a constant
_DROPPED = frozenset({"layout", "pin_memory"})  # arguments that only ever say what holds anyway


@dataclass(frozen=True, slots=True)
class Exported:
    """A program, and what it takes and gives."""

    program: bytes
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def record(log: UpdateLog, model: nn.Module, x: Batch, cast: torch.dtype | None = None) -> bool:
    """Saves in a log how its model computes, for servers that have none of its code; whether that could be done.

    Where it could not, one warning says why, and nothing else has happened: what the log said of another program before
    is taken back.

    Args:
        x: one batch of what the model takes; two rows of it are used.
        cast: as in `bridge.schema_of`: a model whose deployed tensors have another dtype has no program yet.
    """
    try:
        if cast is not None:
            raise ProgramRefused("the program", f"the log holds {cast}, which is not what the model computes in")
        found = export(model, x)
        write_signature(log, found.inputs, found.outputs, found.program)
        return True
    except Exception as error:  # tracing runs the user's code, and may fail in any way; training goes on
        reason = " ".join(str(error).split())[:_MOST_SAID] or type(error).__name__
        logger.warning("how this model computes is not in %s, so servers need its code (--model): %s", log.url, reason)
    with contextlib.suppress(LogUnavailable):
        forget_program(log)
    return False


def export(model: nn.Module, x: Batch) -> Exported:
    """The program that gives what `model` gives for one tensor in evaluation mode, for batches of any length.

    It was tried once: a program that answers otherwise than the model is none.

    Args:
        model: takes one tensor and gives one; on any device.
        x: one batch, a row at least.

    Raises:
        ProgramRefused: it takes an operator that programs may not use, changes its buffers, or answers otherwise.
        Exception: whatever torch.export, or the model itself, raises.
    """
    model = getattr(model, "_orig_mod", model)
    rows = (x if isinstance(x, torch.Tensor) else tensor_over(x))[:_ROWS].detach()
    batch = torch.cat([rows] * _ROWS)[:_ROWS].to(device_of(model))
    with _evaluating(model), torch.no_grad():
        exported = torch.export.export(model, (batch,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        graph = exported.graph_module.graph
        if any(is_mutable(node.target) for node in graph.nodes if name_of(node.target) not in CHECKS):
            exported = exported.run_decompositions({})
        program = dump_program(_Teller(model, exported).program)
        expected = model(batch)
        if not isinstance(expected, torch.Tensor):
            raise ProgramRefused("the program", f"the model gives a {type(expected).__name__}, not one tensor")
        _try(program, model, batch, expected)
    name = next(iter(inspect.signature(model.forward).parameters), "x")
    inputs = TensorInfo(name, dtype_name(batch), (-1, *batch.shape[1:]))
    outputs = TensorInfo("output-0", dtype_name(expected), (-1, *expected.shape[1:]) if expected.ndim else ())
    return Exported(program, (inputs,), (outputs,))


def _try(program: bytes, model: nn.Module, batch: torch.Tensor, expected: torch.Tensor) -> None:
    module = load_program(program, schema_of(model)).to(batch.device)
    own = {found.name: found.tensor for found in module_tensors(model)[0]}
    for found in module_tensors(module)[0]:
        found.tensor.data = own[found.name].detach()
    answer = module(batch)
    tolerance = 1e-5 if answer.dtype in (torch.float32, torch.float64) else 1e-2
    same = answer.shape == expected.shape and answer.dtype == expected.dtype
    if not same or not torch.allclose(answer, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
        raise ProgramRefused("the program", "it answers otherwise than the model, which may draw random numbers")


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    devices = [torch.cuda.current_device()] if device_of(model).type == "cuda" else []
    model.eval()
    try:
        with torch.random.fork_rng(devices), _quiet():
            yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what torch says of its own internals, and the graphs that it prints: the error tells enough."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    before = [each.disabled for each in loggers]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            for each in loggers:
                each.disabled = True
            yield
    finally:
        for each, disabled in zip(loggers, before, strict=True):
            each.disabled = disabled


class _Teller:
    """Tells one exported graph as a `Program`. Raises ProgramRefused where that cannot be."""

    def __init__(self, model: nn.Module, exported: torch.export.ExportedProgram) -> None:
        self._exported = exported
        self._numbers: dict[torch.fx.Node, int] = {}
        state = _state_of(model)
        self._names = {row.name: number for number, row in enumerate(state)}
        self._constants: list[Constant] = []
        self._state_count = len(state)
        placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"]
        specs = dict(zip(placeholders, exported.graph_signature.input_specs, strict=True))
        own = [node for node, spec in specs.items() if not self._is_own(node, spec)]
        for node in own:
            self._numbers[node] = self._state_count + len(self._constants) + own.index(node)
        for spec in exported.graph_signature.output_specs:
            if spec.kind is not OutputKind.USER_OUTPUT:
                raise ProgramRefused("the program", f"the model changes {spec.target!r} in evaluation mode")
        nodes = self._nodes(len(own))
        (outputs,) = next(iter(exported.graph.find_nodes(op="output"))).args
        if len(outputs) != 1 or not isinstance(outputs[0], torch.fx.Node):
            raise ProgramRefused("the program", f"the model gives {len(outputs)} tensors, not one")
        output = self._numbers[outputs[0]]
        self.program = Program(FORMAT, str(torch.__version__), state, self._constants, len(own), nodes, output)

    def _is_own(self, node: torch.fx.Node, spec: Any) -> bool:
        """Takes note of a parameter, buffer or constant; False: it is an input."""
        if spec.kind is InputKind.USER_INPUT:
            return False
        if spec.target in self._names:
            self._numbers[node] = self._names[spec.target]
        elif spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            self._numbers[node] = self._state_count + len(self._constants)
            self._constants.append(constant_of(self._exported.constants[spec.target]))
        else:
            raise ProgramRefused("the program", f"the model holds {spec.target!r}, which is no tensor")
        return True

    def _nodes(self, inputs: int) -> list[Node]:
        nodes: list[Node] = []
        for node in self._exported.graph.nodes:
            if node.op in ("placeholder", "output") or name_of(node.target) in CHECKS:
                continue
            if node.op != "call_function":
                raise ProgramRefused("the program", f"a part of the model that is traced apart, {node.target}")
            try:
                args = [told(self._argument(each)) for each in node.args]
                given = {name: self._argument(each) for name, each in node.kwargs.items() if name not in _DROPPED}
                nodes.append(Node(name_of(node.target), args, {name: told(each) for name, each in given.items()}))
            except ValueError as error:
                raise ProgramRefused("the program", f"{name_of(node.target)} takes {error}") from error
            self._numbers[node] = self._state_count + len(self._constants) + inputs + len(nodes) - 1
        return nodes

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return Value(self._numbers[argument])
        if isinstance(argument, list | tuple):
            return [self._argument(each) for each in argument]
        return DEVICE if isinstance(argument, torch.device) else argument


def _state_of(model: nn.Module) -> list[StateRow]:
    tensors, aliases = module_tensors(model)
    known = {found.name: found for found in tensors}
    rows = []
    for name in model.state_dict(keep_vars=True):
        tied = aliases.get(name)
        found = known[tied or name]
        rows.append(StateRow(name, dtype_name(found.tensor), list(found.tensor.shape), found.parameter, tied))
    return rows
