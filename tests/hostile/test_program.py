"""One hostile program per rejection rule, and arbitrary ones: whoever can write a log runs no code by it."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evergrad.errors import EvergradError, LogUnavailable, ProgramRefused, SchemaMismatch, UnsupportedFormat
from evergrad.log.signature import write_signature
from evergrad.pytorch.module_of import module_of
from evergrad.pytorch.program import load_program
from evergrad.schema import Schema
from tests.builders import Writer, fresh_log

SCHEMA = Schema([("w", "F32", (3, 4))])
STATE = [{"name": "w", "dtype": "F32", "shape": [3, 4], "parameter": True}]
LINEAR = {"op": "aten.linear.default", "args": [{"value": 1}, {"value": 0}]}


def program(nodes: list[Any] | None = None, **fields: Any) -> bytes:
    """One that takes an input (value 1) beside the weight (value 0), and gives what its last node gives."""
    nodes = [LINEAR] if nodes is None else nodes
    known = {"format": 1, "torch": "2.13.0", "state": STATE, "constants": [], "inputs": 1, "nodes": nodes}
    return json.dumps(known | {"output": 1 + len(nodes)} | fields).encode()


def node(op: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"op": op, "args": list(args), "kwargs": kwargs}


X, W = {"value": 1}, {"value": 0}
CALLS = {
    "maps a file": node("aten.from_file.default", "/etc/passwd", False, 100),
    "saves": node("aten.save.default", X, "a.pt"),
    "changes the weights": node("aten.add_.Tensor", W, 1),
    "changes the weights by name": node("aten.mul.out", X, X, out=W),
    "shows memory": node("aten.empty.memory_format", [100]),
    "shows memory like another's": node("aten.empty_like.default", X),
    "looks beyond": node("aten.as_strided.default", X, [1000], [1]),
    "resizes": node("aten.resize.default", X, [1000]),
    "sets storage": node("aten.set_.source_Tensor", W, X),
    "makes text": node("aten.add.str", "a", "b"),
    "another namespace": node("prims.add.default", X, X),
    "python": node("builtins.eval", "1"),
    "python by a path": node("os.system", "true"),
    "python by torch": node("torch.load", "a.pt"),
    "a dunder": node("aten.__class__.__init__"),
    "no overload": node("aten.add", X, X),
    "an overload that is none": node("aten.add.__class__", X, X),
    "loads a library": node("_operator.attrgetter", "x"),
    "empty": node(""),
}
ARGUMENTS = {
    "a value that comes later": {"value": 2},
    "a value below none": {"value": -1},
    "a value that is no number": {"value": "0"},
    "a value that is true": {"value": True},
    "two things at once": {"value": 0, "dtype": "F32"},
    "nothing": {},
    "an unknown kind": {"object": "os"},
    "an unknown dtype": {"dtype": "O"},
    "an unknown float": {"float": "1e999"},
    "a device by name": {"device": "cuda:0"},
    "an unknown memory format": {"memory_format": "torch.load"},
    "a list as a dtype": {"dtype": ["F32"]},
}
PROGRAMS = {
    "empty": b"",
    "no json": b"{",
    "no utf-8": program().replace(b"2.13.0", b"\xff"),
    "nested without end": b'{"format":1,"nodes":' + b"[" * 100_000,
    "arguments nested without end": program().replace(b'"args": [', b'"args": [' + b"[" * 3000 + b"]" * 3000 + b","),
    "no format": program().replace(b'"format": 1, ', b""),
    "format zero": program(format=0),
    "an unknown field": program(pickled="gASVBgAAAA=="),
    "an unknown field of a node": program([LINEAR | {"code": "import os"}]),
    "no nodes": program([]),
    "an output that is no node's": program(output=0),
    "an output beyond": program(output=99),
    "no inputs": program(inputs=0, output=1),
    "constants that do not fill their shape": program(constants=[{"dtype": "F32", "shape": [2], "data": "AAAA"}]),
    "a constant of no known dtype": program(constants=[{"dtype": "O", "shape": [], "data": ""}]),
    "constants that are no base64": program(constants=[{"dtype": "U8", "shape": [1], "data": "!"}]),
    "a constant of a bad shape": program(constants=[{"dtype": "U8", "shape": [-1], "data": ""}]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_call_that_is_not_allowed_is_refused_before_anything_runs(call: dict[str, Any]) -> None:
    with pytest.raises(ProgramRefused, match="2\\.13\\.0"):
        load_program(program([LINEAR, call]), SCHEMA)


@pytest.mark.parametrize("argument", ARGUMENTS.values(), ids=ARGUMENTS.keys())
@pytest.mark.parametrize("nested", [False, True])
def test_an_argument_that_is_none_is_refused(argument: Any, nested: bool) -> None:
    for call in (
        node("aten.relu.default", [argument] if nested else argument),
        node("aten.sum.default", X, a=argument),
    ):
        with pytest.raises(ProgramRefused):
            load_program(program([call]), SCHEMA)


@pytest.mark.parametrize("data", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_what_is_no_program_is_refused(data: bytes) -> None:
    with pytest.raises(ProgramRefused):
        load_program(data, SCHEMA)


def test_one_of_a_newer_release_or_of_a_newer_torch_says_so() -> None:
    with pytest.raises(UnsupportedFormat):
        load_program(program(format=2, nodes="other"), SCHEMA)
    with pytest.raises(ProgramRefused, match=r"'aten.linear.v2'.*torch that is here.*recorded with torch 9\.1"):
        load_program(program([node("aten.linear.v2", X, W)], torch="9.1"), SCHEMA)


NAMES = [
    "forward",
    "training",
    "_nodes",
    "_parameters",
    "a.b." * 200 + "w",
    "",
    ".",
    "a..b",
    "__class__",
    "_constant_0",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_by_a_name_that_a_module_cannot_have_is_refused_or_harmless(name: str) -> None:
    schema, state = Schema([(name, "F32", (3, 4))]), [STATE[0] | {"name": name}]
    constants = [{"dtype": "U8", "shape": [1], "data": "AA=="}]
    linear = node("aten.linear.default", {"value": 2}, W)
    try:
        module = load_program(program([linear], state=state, constants=constants, output=3), schema)
    except ProgramRefused:
        return
    assert module(torch.ones(2, 4)).shape == (2, 3)


STATES: dict[str, list[dict[str, Any]]] = {
    "another shape": [STATE[0] | {"shape": [4, 3]}],
    "another dtype": [STATE[0] | {"dtype": "F64"}],
    "another name": [STATE[0] | {"name": "v"}],
    "more than the log": [*STATE, STATE[0] | {"name": "v", "shape": [1 << 20, 1 << 19]}],
    "none": [],
    "twice": STATE * 2,
    "a negative side": [STATE[0] | {"shape": [-3, 4]}],
    "tied to nothing": [STATE[0] | {"tied": "v"}],
    "more elements than any model": [STATE[0] | {"shape": [1 << 40, 1 << 40]}],
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
def test_a_state_that_is_not_the_logs_is_refused_before_memory_is_taken(state: list[dict[str, Any]]) -> None:
    with pytest.raises((SchemaMismatch, ProgramRefused)):
        load_program(program(state=state), SCHEMA)


def test_numbers_that_grow_without_end_are_stopped() -> None:
    squares = [node("_operator.mul", 1 << 40, 1 << 20)]
    squares += [node("_operator.mul", {"value": 2 + at}, {"value": 2 + at}) for at in range(60)]
    module = load_program(program(squares), SCHEMA)
    with pytest.raises((RuntimeError, ValueError), match="64 bits"):
        module(torch.ones(2, 4))


@pytest.mark.parametrize(
    "call",
    [
        node("_operator.mul", "a", 1 << 40),
        node("_operator.add", [1], [2]),
        node("_operator.getitem", X, 0),
        node("_operator.getitem", X, "__class__"),
        node("_operator.floordiv", 1, 0),
        node("aten.sym_size.int", 5, 0),
        node("aten.sym_size.int", X, 9),
        node("aten.linear.default", X),
        node("aten.linear.default", X, W, None, 5),
        node("aten.relu.default", "text"),
        node("aten.relu.default", X, no_such=1),
    ],
)
def test_a_call_that_cannot_be_made_is_an_error_that_a_server_knows(call: dict[str, Any]) -> None:
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        load_program(program([call]), SCHEMA)(torch.ones(2, 4))


class _Exploit:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


def archive(path: Path) -> bytes:
    """As `torch.export.save` makes, with a pickle that leaves a trace and a member that leads out."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("archive/data/weights/weight_0", pickle.dumps(_Exploit(path)))
        out.writestr("archive/models/model.json", b"{}")
        out.writestr("../../outside", b"x")
    return file.getvalue()


def test_an_archive_of_torch_export_is_none_and_no_pickle_is_ever_read(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for data in (archive(trace), pickle.dumps(_Exploit(trace)), b"PK\x03\x04"):
        log = Writer(fresh_log(), schema=SCHEMA).begin().log
        write_signature(log, (), (), data)
        with pytest.raises(ProgramRefused, match="no program"):
            module_of(log)
    assert list(tmp_path.iterdir()) == []
    pickle.loads(pickle.dumps(_Exploit(trace)))  # noqa: S301
    assert trace.is_dir(), "the pickle does what the test is afraid of"


def test_a_signature_never_leads_out_of_its_log() -> None:
    log = Writer(fresh_log(), schema=SCHEMA).begin().log
    log.store.replace(f"signature/{log.id}.json", b'{"format":1,"program":"../../../../../../../etc/passwd00"}')
    with pytest.raises((ProgramRefused, LogUnavailable)):
        module_of(log)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([X, W, {"dtype": "F32"}])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=8,
)
OPS = st.sampled_from(
    ["aten.linear.default", "aten.add.Tensor", "aten.view.default", "_operator.mul", "aten.cat.default"]
)


@given(st.lists(st.builds(lambda op, args: {"op": op, "args": args}, OPS, st.lists(JSON, max_size=3)), max_size=3))
def test_arbitrary_programs_are_refused_or_fail_by_name(nodes: list[Any]) -> None:
    try:
        module = load_program(program(nodes), SCHEMA)
    except EvergradError:
        return
    try:
        module(torch.ones(2, 4))
    except (RuntimeError, ValueError, IndexError):
        return
