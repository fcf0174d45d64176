"""Between an `nn.Module` and Evergrad's numpy core: which tensors, under which names, in which bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evergrad.errors import SchemaMismatch
from evergrad.replica import Replica
from evergrad.schema import Schema, TensorSpec
from evergrad.update import State

_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint64: "U64", torch.uint32: "U32",
    torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True, slots=True)
class ModuleTensor:
    """One tensor of a module: a parameter, or a persistent buffer."""

    name: str
    tensor: torch.Tensor
    parameter: bool


def module_tensors(module: nn.Module) -> tuple[list[ModuleTensor], dict[str, str]]:
    """All that `state_dict` would hold, each tensor once, and the aliases of the tied ones.

    Buffers come first, then parameters, each in the order of `state_dict`: statistics, many of which move at each step,
    then lie side by side at small indices, which cost few bits.

    Raises:
        SchemaMismatch: a tensor that cannot be deployed (a dtype that safetensors has no name for, or on another device
            than the first).
    """
    module = getattr(module, "_orig_mod", module)  # what torch.compile(module) wraps: its names are the module's own
    found: dict[int, ModuleTensor] = {}
    aliases: dict[str, str] = {}
    device: torch.device | None = None
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            raise SchemaMismatch(name, "a tensor", type(value).__name__)
        if id(value) in found:
            aliases[name] = found[id(value)].name
            continue
        device = value.device if device is None else device
        if value.dtype not in _NAMES or value.is_meta or value.device != device or value.layout != torch.strided:
            where = "the CPU or a GPU" if device.type == "meta" else device
            expected = f"a dense tensor of {', '.join(_TYPES)} on {where}"
            raise SchemaMismatch(name, expected, f"{value.dtype} on {value.device}, {value.layout}")
        found[id(value)] = ModuleTensor(name, value, isinstance(value, nn.Parameter))
    return sorted(found.values(), key=lambda each: each.parameter), aliases


def device_of(module: nn.Module) -> torch.device:
    """Where a module's tensors are. Raises SchemaMismatch."""
    tensors, _ = module_tensors(module)
    return tensors[0].tensor.device if tensors else torch.device("cpu")


def require_cpu(module: nn.Module) -> None:
    """Raises SchemaMismatch where a module's tensors are anywhere else than on the CPU."""
    for found in module_tensors(module)[0]:
        if found.tensor.device.type != "cpu":
            raise SchemaMismatch(found.name, "a tensor on the CPU", f"one on {found.tensor.device}")


def schema_of(module: nn.Module, cast: torch.dtype | None = None) -> Schema:
    """The schema of a module's persistent buffers, then its parameters. Raises SchemaMismatch.

    Args:
        cast: the dtype that float32 tensors are deployed in; None: their own.
    """
    tensors, aliases = module_tensors(module)
    return Schema([(t.name, _NAMES[_deployed_as(t, cast)], tuple(t.tensor.shape)) for t in tensors], aliases)


def _deployed_as(found: ModuleTensor, cast: torch.dtype | None) -> torch.dtype:
    return cast if cast is not None and found.tensor.dtype == torch.float32 else found.tensor.dtype


def dtype_name(tensor: torch.Tensor) -> str:
    """The safetensors name of a tensor's dtype. Raises SchemaMismatch where there is none."""
    if tensor.dtype not in _NAMES:
        raise SchemaMismatch("a tensor", f"one of {', '.join(_TYPES)}", str(tensor.dtype))
    return _NAMES[tensor.dtype]


def as_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The tensor's elements in storage types (BF16 and BOOL as their bits); shares memory where it is on the CPU."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    elif tensor.dtype == torch.bool:
        tensor = tensor.view(torch.uint8)
    array: npt.NDArray[Any] = tensor.numpy()
    return array


def tensor_over(array: npt.NDArray[Any]) -> torch.Tensor:
    """Over the same memory; a copy of an array that is read-only, such as a file's, which torch would warn of."""
    return torch.from_numpy(np.require(array, requirements=("C", "W")))


def as_tensor(array: npt.NDArray[Any], spec: TensorSpec) -> torch.Tensor:
    """The inverse of `as_numpy`, in the shape of `spec`; shares the array's memory."""
    return as_flat(array, spec.dtype).view(spec.shape)


def as_flat(array: npt.NDArray[Any], dtype: str) -> torch.Tensor:
    """As `as_tensor`, in the array's own shape."""
    return torch.from_numpy(array).view(_TYPES[dtype])


def state_views(state: State) -> dict[str, torch.Tensor]:
    """Writable tensors over a state's own memory, by name, aliases not included."""
    groups = zip(state.schema.groups, state.arrays, strict=True)
    return views_of(state.schema, {group.dtype: as_flat(array, group.dtype) for group, array in groups})


def views_of(schema: Schema, flat: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors over flat ones that hold a schema's groups, by name, aliases not included.

    Args:
        flat: by dtype; groups that it lacks are left out.
    """
    starts = {group.dtype: group.start for group in schema.groups}
    views: dict[str, torch.Tensor] = {}
    for spec in schema.tensors:
        if spec.dtype in flat:
            start = spec.offset - starts[spec.dtype]
            views[spec.name] = flat[spec.dtype][start : start + spec.size].view(spec.shape)
    return views


def state_of(module: nn.Module, cast: torch.dtype | None = None) -> State:
    """A copy of a module's tensors as a state; `cast` as in `schema_of`. Raises SchemaMismatch."""
    tensors, _ = module_tensors(module)
    arrays = {t.name: as_numpy(t.tensor.detach().to(_deployed_as(t, cast))) for t in tensors}
    return State.from_tensors(schema_of(module, cast), arrays)


def load_weights(module: nn.Module, replica: Replica) -> int:
    """Copies the weights that a replica holds into a module on any device, in place; gives their version.

    Raises:
        SchemaMismatch: the log is of another model. NotSynced: the replica holds no version yet.
    """
    replica.schema.require(schema_of(module))
    with replica.pin() as version, torch.no_grad():
        views = state_views(replica.state)
        for found in module_tensors(module)[0]:
            found.tensor.copy_(views[found.name])
    return version


class ReplicaModule:
    """A module whose tensors are a replica's own memory: each applied update is in the module at once, with no copy.

    Args:
        module: of the log's model; its tensors' storage is replaced.
        replica: synced at least once before the first `predict`.

    Raises:
        SchemaMismatch: the log is of another model, or the module is not on the CPU.
    """

    def __init__(self, module: nn.Module, replica: Replica) -> None:
        require_cpu(module)
        self._module, self.replica = module.eval(), replica
        self._attached = False
        replica.schema.require(schema_of(module))

    def predict(self, x: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int]:
        """The module's outputs for a batch, all computed by one version, and that version.

        Raises:
            NotSynced: no version yet.
        """
        with self.replica.pin() as version, torch.inference_mode():
            if not self._attached:
                self._attach()
            outputs: npt.NDArray[Any] = self._module(tensor_over(x)).numpy()
            return outputs, version

    def _attach(self) -> None:
        views = state_views(self.replica.state)
        tensors, _ = module_tensors(self._module)
        for found in tensors:
            found.tensor.data = views[found.name]
        self._attached = True


def batch_tensors(columns: Mapping[str, npt.NDArray[Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns x and y of a batch as tensors, over the same memory."""
    return torch.from_numpy(columns["x"]), torch.from_numpy(columns["y"])
