from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import evergrad
from evergrad.errors import LogNotFound, NotSynced, SchemaMismatch
from evergrad.pytorch.bridge import ReplicaModule, as_numpy, as_tensor, load_weights, schema_of, state_of, state_views
from evergrad.pytorch.publisher import Publisher
from evergrad.schema import STORAGE, Schema
from tests.pytorch.models import (
    MODELS,
    Everything,
    Tied,
    batch_norm,
    batches,
    bits,
    linear,
    load_into,
    sgd,
    state_bits,
    train,
)

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32,
    "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def module_of(**buffers: torch.Tensor) -> nn.Module:
    module = nn.Module()
    for name, tensor in buffers.items():
        module.register_buffer(name, tensor)
    return module


def test_a_schema_names_what_state_dict_holds() -> None:
    model = Everything()
    schema = schema_of(model)
    assert {*schema.by_name, *schema.aliases} == set(model.state_dict())
    assert schema.aliases == {"tied_again.weight": "tied.weight"}
    assert "scratch" not in schema.by_name, "buffers that are not persistent stay at home"
    for spec in schema.tensors:
        tensor = model.state_dict()[spec.name]
        assert (DTYPES[spec.dtype], spec.shape) == (tensor.dtype, tuple(tensor.shape))


def test_loading_copies_every_bit_and_keeps_the_modules_storage() -> None:
    url = "memory:load-weights"
    Publisher(source := Everything(), sgd(source), url).detach()
    replica = evergrad.Replica(url)
    torch.manual_seed(8)
    target = Everything()
    places = {name: tensor.data_ptr() for name, tensor in target.state_dict().items()}
    with pytest.raises(NotSynced):
        load_weights(target, replica)
    replica.sync()
    assert state_bits(target) != state_bits(source)
    assert load_weights(target, replica) == 0
    assert state_bits(target) == state_bits(source)
    assert {name: tensor.data_ptr() for name, tensor in target.state_dict().items()} == places
    with pytest.raises(SchemaMismatch, match="no such tensor"):
        load_weights(linear(), replica)


def test_tied_parameters_and_tied_buffers_appear_once() -> None:
    schema = schema_of(Tied())
    assert schema.aliases == {"decoder.weight": "encoder.weight", "decoder.scale": "encoder.scale"}
    assert schema.elements == 48 * 48 + 3 * 48


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 3)])
def test_each_dtype_goes_there_and_back(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(max(1, int(np.prod(shape))))[: int(np.prod(shape))].reshape(shape).to(DTYPES[dtype])
    (spec,) = Schema([("t", dtype, shape)]).tensors
    array = as_numpy(tensor)
    assert array.dtype == STORAGE[dtype]
    back = as_tensor(array.reshape(-1), spec)
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert bits(back) == bits(tensor)
    if back.numel():
        assert back.data_ptr() == tensor.data_ptr(), "memory is shared"


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_state_is_a_copy_with_equal_bits(make: Callable[[], nn.Module]) -> None:
    model = make()
    state = state_of(model)
    before = state_bits(model)
    views = state_views(state)
    assert {name: bits(view) for name, view in views.items()} == {name: before[name] for name in views}
    for array in state.arrays:
        array[:] = 1
    assert state_bits(model) == before
    assert {name: bits(view) for name, view in views.items()} != {name: before[name] for name in views}


@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (torch.zeros(2, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, device="meta"), "meta"),
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (torch.zeros(2, dtype=torch.float8_e5m2), "float8"),
    ],
    ids=["complex", "meta", "sparse", "float8"],
)
def test_tensors_that_cannot_be_deployed_are_named(tensor: torch.Tensor, found: str) -> None:
    with pytest.raises(SchemaMismatch) as caught:
        schema_of(module_of(fine=torch.zeros(1), odd=tensor))
    assert caught.value.tensor == "odd"
    assert found in caught.value.found


def test_extra_state_is_refused() -> None:
    class WithExtra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 1}

    with pytest.raises(SchemaMismatch, match="_extra_state"):
        schema_of(WithExtra(1, 1))


def test_a_replica_module_follows_with_no_copy(url: str) -> None:
    model = batch_norm()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, density=0.1, snapshot_every=2)
    replica = evergrad.Replica(url)
    replica.sync()
    served = batch_norm()
    module = ReplicaModule(served, replica)
    x = next(batches())[0].numpy()
    module.predict(x)
    flat = replica.state.arrays[0]
    low, high = flat.ctypes.data, flat.ctypes.data + flat.nbytes
    assert all(low <= p.data_ptr() < high for p in served.parameters())
    pointers = [p.data_ptr() for p in served.state_dict().values()]
    for step in train(model, optimizer, 4):
        publisher.publish()
        replica.sync()
        outputs, version = module.predict(x)
        assert version == step + 1 == replica.version
        with torch.inference_mode():
            expected = load_into(batch_norm(), replica.weights)(torch.from_numpy(x))
        assert np.array_equal(outputs, expected.numpy())
    assert [p.data_ptr() for p in served.state_dict().values()] == pointers


def test_predict_tells_the_version_that_answered(url: str) -> None:
    """Where an update arrives during a prediction, it waits for its end."""
    model = linear()
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, url, density=0.5), evergrad.Replica(url)
    replica.sync()
    served = linear()
    seen: list[int] = []
    served.register_forward_hook(lambda *_: seen.append(replica.version))
    module = ReplicaModule(served, replica)
    x = next(batches())[0].numpy()
    for _ in train(model, optimizer, 2):
        publisher.publish()
        _, before = module.predict(x)
        replica.sync()
        _, after = module.predict(x)
        assert after == before + 1
    assert seen == [0, 1, 1, 2]


def test_everything_is_served(url: str) -> None:
    model = Everything()
    optimizer = sgd(model)
    publisher, replica = Publisher(model, optimizer, url, density=0.1), evergrad.Replica(url)
    for _ in train(model, optimizer, 3):
        publisher.publish()
    replica.sync()
    served = Everything()
    x = next(batches())[0]
    outputs, version = ReplicaModule(served, replica).predict(x.numpy())
    assert version == 3
    with publisher.deployed() as shown, torch.no_grad():
        assert np.array_equal(outputs, shown.eval()(x).numpy())
        assert state_bits(served) == state_bits(shown)


def test_a_replica_module_of_another_model_is_refused(url: str) -> None:
    model = linear()
    Publisher(model, sgd(model), url)
    with pytest.raises(SchemaMismatch, match=r"1\.weight"):
        ReplicaModule(linear(5), evergrad.Replica(url))


def test_a_replica_module_needs_a_version(url: str) -> None:
    with pytest.raises(LogNotFound):
        ReplicaModule(linear(), evergrad.Replica(url))
    model = linear()
    Publisher(model, sgd(model), url)
    with pytest.raises(NotSynced):
        ReplicaModule(linear(), evergrad.Replica(url)).predict(np.zeros((1, 3, 4, 4), np.float32))
