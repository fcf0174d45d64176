"""ONNX Runtime over a replica's memory: every update is in the session at once, at every level of optimisation."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from evergrad.adapters.onnx import OnnxSession
from evergrad.errors import ConfigError, NotSynced, SchemaMismatch
from evergrad.log import UpdateLog
from evergrad.replica import Replica
from evergrad.schema import Schema
from evergrad.testing import FaultyStore
from evergrad.update import State
from tests.builders import NEWEST_US, RUN, Writer, fresh_log, fresh_store, new_state, steps, update_name, update_of
from tests.builders import values as set_to

Array = npt.NDArray[Any]
MLP = Schema([("w1", "F32", (8, 4)), ("b1", "F32", (8,)), ("w2", "F32", (8, 2)), ("b2", "F32", (2,))])
CONV = Schema(
    [
        *[("conv", "F32", (3, 2, 3, 3)), ("gain", "F32", (3,)), ("bias", "F32", (3,)), ("mean", "F32", (3,))],
        *[("var", "F32", (3,)), ("calls", "I64", ())],
    ]
)
LEVELS = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]
KINDS = ["initialisers", "inputs", "both"]
RNG = np.random.default_rng(5)
X = RNG.standard_normal((3, 4)).astype("f4")
IMAGE = RNG.standard_normal((2, 2, 5, 5)).astype("f4")


class Walk(Writer):
    """A publisher of another schema, whose every update moves a third of the elements."""

    def __init__(self, log: UpdateLog, schema: Schema) -> None:
        self.log, self.run, self.version = log, RUN, 0
        self.state = new_state(schema, 3)
        if "var" in schema.by_name:
            group = self.state.arrays[0]
            spec = schema.by_name["var"]
            group[spec.offset : spec.offset + spec.size] = 30.0  # no step of this walk makes a variance negative
            self.state = State(schema, self.state.arrays)
        self.begin()

    def next_update(self) -> Any:
        size = self.state.schema.groups[0].size
        at = range(self.version % 3, size, 3)
        sections = [steps(list(at), 0.25)]
        if len(self.state.schema.groups) > 1:
            sections.append(set_to([size], [self.version], "I64"))  # type: ignore[arg-type]
        newest_us = NEWEST_US + self.version
        return update_of(self.state, self.version, *sections, newest_us=newest_us)


def model_of(
    nodes: Sequence[onnx.NodeProto], schema: Schema, shape: list[Any], kind: str, names: Sequence[str], **options: Any
) -> onnx.ModelProto:
    """A model from x to y whose weights `names` are initialisers of zeros, or inputs, or one and the other."""
    tensors = [schema.by_name[name] for name in names]
    fed = {"initialisers": [], "inputs": tensors, "both": tensors[::2]}[kind]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    inputs += [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in fed]
    zeros = [numpy_helper.from_array(np.zeros(t.shape, "f4"), t.name) for t in tensors if t not in fed]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", inputs, [output], zeros)
    return helper.make_model(graph, **{"opset_imports": [helper.make_opsetid("", 17)], "ir_version": 8, **options})


def mlp(kind: str = "initialisers", **options: Any) -> bytes:
    """One layer with a transposed weight, which is what constant folding looks for, and one without."""
    nodes = [
        helper.make_node("Transpose", ["w1"], ["w1t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "w1t"], ["h"]),
        helper.make_node("Add", ["h", "b1"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    return model_of(nodes, MLP, [None, 4], kind, list(MLP.by_name), **options).SerializeToString()  # type: ignore[no-any-return]


def conv(kind: str = "initialisers") -> bytes:
    """Convolution and batch normalisation, which are fused into one where both are constant."""
    names = ["conv", "gain", "bias", "mean", "var"]
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *names[1:]], ["n"]),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    return model_of(nodes, CONV, [None, 2, 5, 5], kind, names).SerializeToString()  # type: ignore[no-any-return]


def mlp_by_numpy(w: dict[str, Array]) -> Array:
    found: Array = np.maximum(X @ w["w1"].T + w["b1"], 0) @ w["w2"] + w["b2"]
    return found


def conv_by_numpy(w: dict[str, Array]) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(IMAGE, (3, 3), axis=(2, 3))
    out = np.einsum("nchwij,ocij->nohw", windows, w["conv"])
    gain, bias, mean, var = (w[name][:, None, None] for name in ("gain", "bias", "mean", "var"))
    found: Array = np.maximum((out - mean) / np.sqrt(var + 1e-5) * gain + bias, 0)
    return found


def synced(log: UpdateLog) -> Replica:
    replica = Replica(log)
    replica.sync()
    return replica


def level(name: str) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, name)
    return options


CASES = {"mlp": (MLP, mlp, mlp_by_numpy, X), "conv": (CONV, conv, conv_by_numpy, IMAGE)}


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_each_of_fifty_updates_is_in_the_session_at_once(case: str, kind: str, name: str) -> None:
    schema, make, by_numpy, x = CASES[case]
    writer = Walk(fresh_log(), schema)
    replica = synced(writer.log)
    session = OnnxSession(make(kind), replica, options=level(name))
    assert (session.inputs, session.outputs) == (["x"], ["y"])
    before = None
    for version in range(51):
        (found,), told = session.run({"x": x})
        assert told == version
        np.testing.assert_allclose(found, by_numpy(writer.state.tensors()), rtol=1e-4, atol=1e-4)
        assert before is None or not np.array_equal(found, before)
        before = found
        writer.append()
        replica.sync()


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_and_a_rollback_are_in_the_session_too(kind: str) -> None:
    store = fresh_store()
    writer = Walk(UpdateLog(store, "memory:test"), MLP)
    faulty = FaultyStore(store)
    replica = synced(UpdateLog(faulty, "memory:test"))
    session = OnnxSession(mlp(kind), replica)
    faulty.instead[update_name(1)] = b"damaged"
    writer.append(2).log.write_snapshot(writer.snapshot())
    assert replica.sync() == 2
    (snapshot,), version = session.run({"x": X})
    assert version == 2
    np.testing.assert_allclose(snapshot, mlp_by_numpy(writer.state.tensors()), rtol=1e-4, atol=1e-4)
    writer.append(3)
    assert replica.sync() == 5
    (newest,), version = session.run({"x": X})
    assert version == 5
    np.testing.assert_allclose(newest, mlp_by_numpy(writer.state.tensors()), rtol=1e-4, atol=1e-4)
    replica.rollback(2)
    (back,), version = session.run({"x": X})
    assert version == 2
    assert np.array_equal(back, snapshot)
    assert not np.array_equal(back, newest)


def test_names_map_onnx_names_to_tensors_and_aliases_are_names() -> None:
    tied = Schema([("w", "F32", (4, 4))], {"again": "w"})
    nodes = [helper.make_node("MatMul", ["x", "again"], ["h"]), helper.make_node("MatMul", ["h", "onnx::7"], ["y"])]
    schema = Schema([("again", "F32", (4, 4)), ("onnx::7", "F32", (4, 4))])
    model = model_of(nodes, schema, [None, 4], "initialisers", list(schema.by_name)).SerializeToString()
    writer = Walk(fresh_log(), tied)
    replica = synced(writer.log)
    session = OnnxSession(model, replica, names={"onnx::7": "w"})
    for _ in range(2):
        w = writer.state.tensors()["w"]
        np.testing.assert_allclose(session.run({"x": X})[0][0], X @ w @ w, rtol=1e-4, atol=1e-4)
        writer.append()
        replica.sync()


def test_each_dtype_is_shared() -> None:
    dtypes = {"F64": 11, "F16": 10, "BF16": 16, "I32": 6, "U8": 2, "BOOL": 9}
    schema = Schema([(name, name, (3,)) for name in dtypes])
    nodes = [helper.make_node("Identity" if n != "BF16" else "Cast", [n], [f"{n}_out"]) for n in dtypes]
    nodes[list(dtypes).index("BF16")].attribute.append(helper.make_attribute("to", 1))
    outputs = [helper.make_tensor_value_info(f"{n}_out", 1 if n == "BF16" else t, [3]) for n, t in dtypes.items()]
    zeros = [helper.make_tensor(name, t, [3], [0] * 3) for name, t in dtypes.items()]
    graph = helper.make_graph(nodes, "g", [], outputs, zeros)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    log = fresh_log()
    writer = Writer(log)
    writer.state = new_state(schema)
    writer.begin()
    replica = synced(log)
    session = OnnxSession(model, replica)
    outputs_before, _ = session.run({})
    kept = [output.copy() for output in outputs_before]
    sections = [
        set_to([g.start], [1 - int(a[0] != 0)], g.dtype)
        for g, a in zip(schema.groups, replica.state.arrays, strict=True)
    ]
    update = update_of(writer.state, 0, *sections)
    log.append(update)
    replica.sync()
    found, version = session.run({})
    assert version == 1
    for name, output, before, old in zip(dtypes, found, outputs_before, kept, strict=True):
        expected = replica.weights[name]
        if name == "BF16":
            expected = (expected.astype("u4") << 16).view("f4")
        assert np.array_equal(output.astype(expected.dtype), expected), name
        assert np.array_equal(before, old), f"an answer of {name} is its own, and stays as it was given"
        assert not np.array_equal(output, before), name


def test_a_file_with_its_weights_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = onnx.load_from_string(mlp())
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").exists()
    writer = Walk(fresh_log(), MLP)
    for place in (path, str(path)):
        (found,), _ = OnnxSession(place, synced(writer.log)).run({"x": X})
        np.testing.assert_allclose(found, mlp_by_numpy(writer.state.tensors()), rtol=1e-4, atol=1e-4)


OTHERS = {
    "shape": (
        Schema([("w1", "F32", (4, 8)), *[("b1", "F32", (8,)), ("w2", "F32", (8, 2)), ("b2", "F32", (2,))]]),
        "w1",
    ),
    "dtype": (Schema([("w1", "F32", (8, 4)), ("b1", "F32", (8,)), ("w2", "F64", (8, 2)), ("b2", "F32", (2,))]), "w2"),
    "one more": (Schema([*[(t.name, t.dtype, t.shape) for t in MLP.tensors], ("w3", "F32", (1,))]), "w3"),
    "rank": (Schema([("w1", "F32", (8, 4)), ("b1", "F32", (8, 1)), ("w2", "F32", (8, 2)), ("b2", "F32", (2,))]), "b1"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("schema", "tensor"), OTHERS.values(), ids=OTHERS)
def test_another_model_is_refused(schema: Schema, tensor: str, kind: str) -> None:
    replica = synced(Walk(fresh_log(), schema).log)
    with pytest.raises(SchemaMismatch) as caught:
        OnnxSession(mlp(kind), replica)
    assert caught.value.tensor == tensor


@pytest.mark.parametrize("names", [{"no such": "w1"}, {"w1": "no such"}])
def test_a_name_that_is_not_there_is_refused(names: dict[str, str]) -> None:
    with pytest.raises(SchemaMismatch, match="names"):
        OnnxSession(mlp(), synced(Walk(fresh_log(), MLP).log), names=names)


def test_a_tensor_that_lies_under_another_name_is_refused() -> None:
    model = onnx.load_from_string(mlp())
    model.graph.initializer[0].name = model.graph.node[0].input[0] = "onnx::Transpose_1"
    with pytest.raises(SchemaMismatch) as caught:
        OnnxSession(model.SerializeToString(), synced(Walk(fresh_log(), MLP).log))
    assert (caught.value.tensor, caught.value.found) == ("w1", "none")


def test_what_cannot_be_done_is_refused() -> None:
    replica = synced(Walk(fresh_log(), MLP).log)
    for data in (b"", b"no model at all", mlp()[:-5], b"\x08\x08\x3b", b"\x08" + b"\xff" * 12):
        with pytest.raises(ConfigError, match="no ONNX file"):
            OnnxSession(data, replica)
    with pytest.raises(ConfigError, match="providers"):
        OnnxSession(mlp(), replica, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    old = onnx.load_from_string(mlp())
    old.ir_version = 3
    with pytest.raises(ConfigError, match="format 3"):
        OnnxSession(old.SerializeToString(), replica)
    with pytest.raises(NotSynced):
        OnnxSession(mlp(), Replica(Walk(fresh_log(), MLP).log))


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_is_a_mix(kind: str) -> None:
    schema = Schema([("low", "F32", (4,)), ("high", "F32", (20_000,))])
    nodes = [
        helper.make_node("Concat", ["low", "high"], ["all"], axis=0),
        helper.make_node("ReduceMin", ["all"], ["min"], keepdims=1),
        helper.make_node("ReduceMax", ["all"], ["max"], keepdims=1),
        helper.make_node("Concat", ["x", "min", "max"], ["y"], axis=0),
    ]
    model = model_of(nodes, schema, [1], kind, list(schema.by_name)).SerializeToString()
    writer = Writer(fresh_log())
    writer.state = State(schema, [np.zeros(20_004, "f4")])
    writer.begin()
    replica, stop, torn = synced(writer.log), threading.Event(), list[object]()
    session, seen = OnnxSession(model, replica), set[int]()

    def keep_asking() -> None:
        while not stop.is_set():
            (found,), version = session.run({"x": np.zeros(1, "f4")})
            seen.add(version)
            if found.tolist() != [0, version, version]:
                torn.append((version, found))

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for version in range(1, 101):
            update = update_of(writer.state, version - 1, set_to(range(20_004), [version] * 20_004))
            writer.log.append(update)
            writer.state.commit(writer.state.check(update, version - 1))
            replica.sync()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert torn == []
    assert len(seen) > 10
