"""An ONNX Runtime session whose weights are a replica's own memory: each applied update is in the session at once.

    replica's arrays ──no copy──> OrtValues ──> initialisers of the session (or its inputs, where the model has them so)

ONNX Runtime takes an initialiser for a constant: it folds it into others, fuses it, and packs it anew, all while the
session is made, and never looks at it again. An initialiser that is an input too is only a default, and is left alone
at every level of optimisation; so the weights of the model are made inputs (`onnx_graph.with_inputs`), and their
defaults are the replica's memory (`SessionOptions.add_initializer`). The other initialisers stay constants. What that
costs is the packing ahead and the fusions that need constant weights, such as batch normalisation into convolution.

Example:
    session = OnnxSession("model.onnx", replica.follow())
    outputs, version = session.run({"x": x})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evergrad.adapters.onnx_graph import OnnxGraph, OnnxTensor, read_graph, with_inputs
from evergrad.errors import ConfigError, MissingDependency, SchemaMismatch
from evergrad.replica import Replica
from evergrad.schema import Schema, TensorSpec

if TYPE_CHECKING:
    import onnxruntime

_CPU = "CPUExecutionProvider"
_DTYPES = {
    "F32": 1, "U8": 2, "I8": 3, "U16": 4, "I16": 5, "I32": 6, "I64": 7, "BOOL": 9, "F16": 10, "F64": 11, "U32": 12,
    "U64": 13, "BF16": 16,
}  # fmt: skip
_NAMES = {number: name for name, number in _DTYPES.items()}
_FLOATS = {"F64", "F32", "F16", "BF16"}
_DEFAULTS_SINCE_IR = 4
_ERRORS_ONLY = 3


class OnnxSession:
    """A session that follows a replica. Any number of threads may run it at once.

    Args:
        model: an ONNX file, or its bytes. Its weights must be those of the log, by name, dtype and shape: as
            initialisers, as inputs, or some of each. Every floating-point tensor of the log must be there, or an
            update to it would be lost (an exporter may have folded it into another one: export with that switched
            off); counters that no answer depends on need not be.
        replica: synced at least once; the caller follows with it, and closes it.
        names: ONNX name to the log's tensor name, where the two differ.
        providers: of ONNX Runtime; only the CPU's reads the replica's memory, others are refused.
        options: for the session. They become this session's own: make new ones for another.

    Raises:
        SchemaMismatch: a tensor is missing, or differs in dtype or shape.
        NotSynced: the replica holds no version yet.
        ConfigError: not an ONNX file, one of format 3 or older, or another provider.
        MissingDependency: onnxruntime is not installed.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        replica: Replica,
        *,
        names: Mapping[str, str] | None = None,
        providers: Sequence[str] = (_CPU,),
        options: onnxruntime.SessionOptions | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            if error.name != "onnxruntime":
                raise
            raise MissingDependency("onnxruntime", "onnx") from error
        if set(providers) != {_CPU}:
            raise ConfigError("providers", f"only {_CPU} shares memory with a replica, not {list(providers)}")
        self.replica = replica
        views = _views(replica)
        data = model if isinstance(model, bytes) else Path(model).read_bytes()
        graph = read_graph(data)
        found = _match(graph, replica.schema, names or {})
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(views[spec.name], _DTYPES[spec.dtype])
            for name, spec in found.items()
        }
        options = options or onnxruntime.SessionOptions()
        if not isinstance(model, bytes):  # where weights lie in files beside it
            folder = str(Path(model).resolve().parent)
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        defaults = {name: value for name, value in values.items() if name in graph.initialisers}
        for name, value in defaults.items():
            options.add_initializer(name, value)
        # It warns once for each weight that it is no constant, which is what is wanted.
        severity, options.log_severity_level = options.log_severity_level, _ERRORS_ONLY
        data = with_inputs(data, [graph.initialisers[name] for name in defaults if name not in graph.inputs])
        self._session = onnxruntime.InferenceSession(data, options, providers=list(providers))
        options.log_severity_level = severity
        # The session looks into this memory as long as it lives.
        self._alive = (options, views, values)
        self._fed = {name: value for name, value in values.items() if name not in defaults}
        self._as_value = onnxruntime.OrtValue.ortvalue_from_numpy

    @property
    def inputs(self) -> list[str]:
        """What `run` must be fed with: the model's inputs but for its weights."""
        return [found.name for found in self._session.get_inputs() if found.name not in self._fed]

    @property
    def outputs(self) -> list[str]:
        """The names of what `run` gives, in its order."""
        return [found.name for found in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[list[npt.NDArray[Any]], int]:
        """All outputs for these inputs, computed by one version, and that version.

        Raises:
            Exception: ONNX Runtime's own, where the inputs do not fit.
        """
        with self.replica.pin() as version:
            if not self._fed:
                return self._session.run(None, dict(feeds)), version
            fed = {name: self._as_value(np.ascontiguousarray(array)) for name, array in feeds.items()}
            outputs = self._session.run_with_ort_values(None, {**fed, **self._fed})
            return [output.numpy() for output in outputs], version


def _views(replica: Replica) -> dict[str, npt.NDArray[Any]]:
    """All tensors by name, over the replica's memory, in types that ONNX Runtime knows (booleans not as their bits)."""
    views = {spec.name: replica.weights[spec.name] for spec in replica.schema.tensors}
    booleans = {spec.name for spec in replica.schema.tensors if spec.dtype == "BOOL"}
    return {name: view.view(np.bool_) if name in booleans else view for name, view in views.items()}


def _match(graph: OnnxGraph, schema: Schema, names: Mapping[str, str]) -> dict[str, TensorSpec]:
    """Which inputs and initialisers are weights, by their ONNX names, and of which tensor."""
    known = {**graph.inputs, **graph.initialisers}  # the initialiser of the two tells the shape
    for name, wanted in names.items():
        if name not in known:
            raise SchemaMismatch(wanted, f"an ONNX input or initialiser {name!r}, as in `names`", "none of that name")
        if wanted not in schema.by_name and wanted not in schema.aliases:
            raise SchemaMismatch(wanted, "a tensor of the log, as in `names`", "none of that name")
    found: dict[str, TensorSpec] = {}
    for name, tensor in known.items():
        wanted = names.get(name, name)
        spec = schema.by_name.get(schema.aliases.get(wanted, wanted))
        if spec is None:
            continue
        if not _fits(tensor, spec):
            raise SchemaMismatch(spec.name, f"{spec.dtype} {list(spec.shape)}", _told(tensor))
        found[name] = spec
    covered = {spec.name for spec in found.values()}
    for spec in schema.tensors:
        if spec.dtype in _FLOATS and spec.size and spec.name not in covered:
            raise SchemaMismatch(spec.name, f"an ONNX input or initialiser of {spec.dtype} {list(spec.shape)}", "none")
    if graph.ir_version < _DEFAULTS_SINCE_IR and any(name in graph.initialisers for name in found):
        raise ConfigError("model", f"format {graph.ir_version} knows only constant weights; export it as 4 or newer")
    return found


def _fits(tensor: OnnxTensor, spec: TensorSpec) -> bool:
    if _NAMES.get(tensor.dtype) != spec.dtype:
        return False
    if tensor.shape is None:
        return True
    pairs = zip(tensor.shape, spec.shape, strict=False)
    return len(tensor.shape) == len(spec.shape) and all(a is None or a == b for a, b in pairs)


def _told(tensor: OnnxTensor) -> str:
    shape = "of any shape" if tensor.shape is None else [("any" if d is None else d) for d in tensor.shape]
    return f"{_NAMES.get(tensor.dtype, f'ONNX type {tensor.dtype}')} {shape} in the ONNX model"
