"""The exact objects of a signature and a program of format 1: a release that cannot read them breaks every server."""

from __future__ import annotations

import torch

from evergrad.log.signature import TensorInfo, read_program, read_signature, write_signature
from evergrad.pytorch.program import load_program
from evergrad.schema import Schema
from tests.builders import Writer, fresh_log

SIGNATURE = (
    b'{"format":1,"inputs":[{"name":"x","dtype":"F32","shape":[-1,2]}],'
    b'"outputs":[{"name":"output-0","dtype":"F32","shape":[-1,1]}],'
    b'"program":"9e922de0b7db7cae440f714621e0b715","program_bytes":841}'
)
PROGRAM = (
    b'{"format":1,"torch":"2.13.0",'
    b'"state":[{"name":"fc.weight","dtype":"F32","shape":[1,2],"parameter":true},'
    b'{"name":"fc.steps","dtype":"I64","shape":[],"parameter":false},'
    b'{"name":"also","dtype":"F32","shape":[1,2],"parameter":true,"tied":"fc.weight"}],'
    b'"constants":[{"dtype":"F32","shape":[1],"data":"AACAPw=="}],"inputs":1,'
    b'"nodes":[{"op":"aten.sym_size.int","args":[{"value":4},0]},'
    b'{"op":"aten.linear.default","args":[{"value":4},{"value":0},{"value":3}]},'
    b'{"op":"aten.zeros.default","args":[[{"value":5},1]],"kwargs":{"dtype":{"dtype":"F32"},"device":{"device":true}}},'
    b'{"op":"aten.add.Tensor","args":[{"value":6},{"value":7}],"kwargs":{"alpha":2}},'
    b'{"op":"aten.clamp.default","args":[{"value":8},null,{"float":"inf"}]},'
    b'{"op":"aten.clone.default","args":[{"value":9}],"kwargs":{"memory_format":{"memory_format":"contiguous_format"}}}],'
    b'"output":10}'
)
SCHEMA = Schema([("fc.steps", "I64", ()), ("fc.weight", "F32", (1, 2))], {"also": "fc.weight"})
INPUTS, OUTPUTS = (TensorInfo("x", "F32", (-1, 2)),), (TensorInfo("output-0", "F32", (-1, 1)),)


def test_a_signature_is_written_and_read_in_these_bytes() -> None:
    log = Writer(fresh_log(), schema=SCHEMA).begin().log
    written = write_signature(log, INPUTS, OUTPUTS, PROGRAM)
    assert log.store.read(f"signature/{log.id}.json") == SIGNATURE
    assert log.store.read("programs/9e922de0b7db7cae440f714621e0b715.json") == PROGRAM
    assert read_signature(log) == written
    assert read_program(log, written) == PROGRAM


def test_a_program_is_read_and_run_from_these_bytes() -> None:
    module = load_program(PROGRAM, SCHEMA)
    weight = module.get_parameter("fc.weight")
    assert module.get_parameter("also") is weight
    weight.data = torch.tensor([[2.0, 3.0]])
    x = torch.tensor([[1.0, 1.0], [0.0, -1.0], [5.0, 0.5]])
    assert torch.equal(module(x), torch.tensor([[6.0], [-2.0], [12.5]]))
    assert list(module.state_dict()) == ["also", "fc.weight", "fc.steps"]
