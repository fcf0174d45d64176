"""Programs: recorded, loaded without the model's code, and kept fresh in place; they answer as the model does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from experiments.models import ResNet18
from torch import nn

from evergrad.demo.lenet import make_lenet5
from evergrad.errors import FactoryNotTrusted, LogNotFound, ModuleUnknown, ProgramRefused, SchemaMismatch
from evergrad.log import UpdateLog
from evergrad.log.signature import TensorInfo, read_signature, write_signature
from evergrad.pytorch.attach import attach
from evergrad.pytorch.bridge import ReplicaModule, schema_of
from evergrad.pytorch.export import export
from evergrad.pytorch.module_of import module_of
from evergrad.pytorch.program import load_program
from evergrad.pytorch.publisher import Publisher
from evergrad.replica import Replica
from evergrad.testing import FaultyStore
from tests.builders import fresh_log, fresh_store


class Tied(nn.Module):
    """Tied weights, constants of its own, arithmetic with the batch's length, and changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.table.weight
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("places", torch.arange(32.0).view(1, 8, 4), persistent=False)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        rows, length = words.shape
        x = self.table(words) + self.places[:, :length]
        x = self.norm(x.view(rows * length, 4)).view(rows, -1, 4)
        x *= torch.tensor([1.0, 2.0, 3.0, 4.0], device=words.device)
        x = nn.functional.relu(self.drop(x), inplace=True)
        x = x.masked_fill(words[..., None] == 0, float("-inf")).clamp(min=-9.0)
        return self.head(x.mean(1)) + torch.zeros(rows, 1, device=words.device)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Wide(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(2, 4, 3, padding="same", groups=2), nn.GroupNorm(2, 4), nn.SiLU(), nn.Upsample(scale_factor=2),
            nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Softmax(-1),
        )  # fmt: skip


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(x).mean(1)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], torch.Tensor]]] = {
    "lenet5": (make_lenet5, lambda rows: torch.randn(rows, 1, 28, 28)),
    "resnet18": (ResNet18, lambda rows: torch.randn(rows, 3, 32, 32)),
    "tied": (Tied, lambda rows: torch.randint(0, 9, (rows, 5))),
    "recurrent": (Recurrent, lambda rows: torch.randn(rows, 4, 8)),
    "wide": (Wide, lambda rows: torch.randn(rows, 2, 6, 6)),
}


class Training:
    """A model that is trained, and published at each step."""

    def __init__(self, model: nn.Module, log: UpdateLog | None = None, **settings: Any) -> None:
        self.model, self.log = model, log or fresh_log()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        self.publisher = Publisher(model, self.optimizer, self.log, **{"density": 0.2, **settings})

    def step(self, x: torch.Tensor) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        self.model(x).square().mean().backward()
        self.optimizer.step()
        self.publisher.publish()

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        self.model.eval()
        with torch.inference_mode(), self.publisher.deployed():
            found: torch.Tensor = self.model(x).clone()
        return found


@pytest.mark.parametrize(("make", "batch"), MODELS.values(), ids=MODELS.keys())
def test_a_program_answers_bit_for_bit_as_its_model_while_updates_are_applied_in_place(
    make: Callable[[], nn.Module], batch: Callable[[int], torch.Tensor]
) -> None:
    torch.manual_seed(0)
    training = Training(make())
    assert training.publisher.record(batch(3))
    served = module_of(training.log)
    assert schema_of(served) == schema_of(training.model)
    own = make().eval()  # not the trainer's: some kernels round otherwise where tensors are aligned otherwise
    with attach(served, training.log, follow=False) as attached, attach(own, training.log, follow=False) as beside:
        pointers = [tensor.data_ptr() for tensor in served.state_dict().values()]
        for _ in range(3):
            training.step(batch(4))
            assert attached.replica.sync() == beside.replica.sync() == training.publisher.version
            for rows in (1, 2, 7):
                x = batch(rows)
                assert torch.equal(served(x), own(x))
        assert [tensor.data_ptr() for tensor in served.state_dict().values()] == pointers


def test_a_model_that_takes_shortcuts_which_are_not_traced_is_answered_for_within_rounding() -> None:
    training = Training(Attentive())
    assert training.publisher.record(torch.randn(2, 5, 8))
    with attach(module_of(training.log), training.log, follow=False) as attached:
        x = torch.randn(3, 5, 8)
        torch.testing.assert_close(attached.module(x), training.outputs(x), rtol=1e-5, atol=1e-6)


def test_a_servable_of_a_program_is_one_of_its_model() -> None:
    training = Training(make_lenet5())
    x = torch.randn(5, 1, 28, 28)
    training.publisher.record(x)
    replica = Replica(training.log)
    replica.sync()
    servable = ReplicaModule(module_of(training.log), replica)
    for _ in range(2):
        training.step(x)
        replica.sync()
        outputs, version = servable.predict(x.numpy())
        assert version == training.publisher.version
        assert np.array_equal(outputs, training.outputs(x).numpy())


def test_evaluation_is_recorded_and_training_goes_on_as_without() -> None:
    states = []
    for recorded in (False, True):
        torch.manual_seed(3)
        model = Tied()
        model.norm.eval()  # a part that is kept so
        training = Training(model)
        torch.manual_seed(4)
        x = torch.randint(0, 9, (4, 5))
        if recorded:
            model.train()
            model.norm.eval()
            assert training.publisher.record(x)
            assert [module.training for module in (model, model.drop, model.norm)] == [True, True, False]
            assert not any(isinstance(p, torch._subclasses.FakeTensor) for p in model.state_dict().values())
        for _ in range(3):
            training.step(x)
        states.append((training.publisher.digest, {k: v.clone() for k, v in model.state_dict().items()}))
    assert states[0][0] == states[1][0]
    assert all(torch.equal(states[0][1][name], states[1][1][name]) for name in states[0][1])


def test_inputs_and_outputs_are_named_and_typed() -> None:
    found = export(Tied(), torch.randint(0, 9, (1, 5)))
    assert found.inputs == (TensorInfo("words", "I64", (-1, 5)),)
    assert found.outputs == (TensorInfo("output-0", "F32", (-1, 9)),)
    as_array = export(make_lenet5(), np.zeros((2, 1, 28, 28), np.float32))
    assert as_array.inputs == (TensorInfo("input", "F32", (-1, 1, 28, 28)),)


def test_a_program_holds_no_weights_and_equal_models_have_equal_ones() -> None:
    x = torch.randn(2, 3, 32, 32)
    first, second = export(ResNet18(), x), export(ResNet18(), x)
    assert first.program == second.program
    assert len(first.program) < 20_000
    assert not load_program(first.program, schema_of(ResNet18())).get_parameter("conv1.weight").any()


def test_a_compiled_model_is_recorded_as_the_model_in_it() -> None:
    model = make_lenet5()
    x = torch.randn(2, 1, 28, 28)
    assert export(torch.compile(model, backend="eager"), x).program == export(model, x).program


def test_another_structure_brings_its_own_program() -> None:
    class Growing(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    model = Growing(nn.Linear(4, 3))
    training = Training(model)
    x = torch.randn(5, 4)
    training.publisher.record(x)
    training.step(x)
    first = read_signature(training.log)
    later = nn.Linear(3, 2)
    model.append(later)
    training.optimizer.add_param_group({"params": list(later.parameters())})
    training.step(x)
    training.log.reread()
    second = read_signature(training.log)
    assert first is not None
    assert second is not None
    assert first.program != second.program
    assert second.outputs[0].shape == (-1, 2)
    with attach(module_of(training.log), training.log, follow=False) as attached:
        assert torch.equal(attached.module(x), training.outputs(x))


# -- what cannot be recorded ------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) if x.sum() > 0 else self.head(-x)


class Counting(Branching):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return self.head(x)


class Random(Branching):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.dropout(x, 0.5, training=True))


class Two(Branching):
    def forward(self, x: torch.Tensor) -> Any:
        return self.head(x), x


class Fails(Branching):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such column")


class Fixed(Branching):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.reshape(2, 4))


class Unfilled(Branching):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) * torch.empty(2).fill_(2.0)


@pytest.mark.parametrize("make", [Branching, Counting, Random, Two, Fails, Fixed, Unfilled])
def test_a_model_that_cannot_be_recorded_says_so_once_and_trains_on(
    make: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    training = Training(make())
    write_signature(training.log, (), (), b"of the code before")
    before, rng = training.publisher.version, torch.get_rng_state()
    with caplog.at_level(logging.WARNING, "evergrad"):
        assert not training.publisher.record(torch.ones(2, 4))
    assert len(caplog.records) == 1
    assert "servers need its code (--model)" in caplog.text
    assert capfd.readouterr() == ("", "")
    assert training.model.training
    assert torch.equal(torch.get_rng_state(), rng)
    found = read_signature(training.log)
    assert found is not None
    assert found.program is None
    with pytest.raises(ModuleUnknown):
        module_of(training.log)
    if make not in (Two, Fails):
        training.step(torch.ones(2, 4))
        assert training.publisher.version == before + 1


def test_a_log_of_another_dtype_has_no_program_yet(caplog: pytest.LogCaptureFixture) -> None:
    training = Training(nn.Linear(4, 2), values="bf16", forward="master", density=None)
    assert not training.publisher.record(torch.ones(2, 4))
    assert "bfloat16" in caplog.text


@pytest.mark.parametrize("x", [np.array(["text"]), np.zeros((0, 4), np.float32), np.array(5.0), torch.ones(2, 9)])
def test_a_batch_that_the_model_cannot_take_is_a_warning(x: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "evergrad"):
        assert not Training(nn.Linear(4, 2)).publisher.record(x)
    assert len(caplog.records) == 1


def test_a_publisher_that_shall_not_record_does_not() -> None:
    training = Training(nn.Linear(4, 2), program=False)
    assert not training.publisher.record(torch.ones(2, 4))
    assert read_signature(training.log) is None


def test_a_log_that_fails_meanwhile_costs_the_program_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    store = FaultyStore(fresh_store())
    training = Training(nn.Linear(4, 2), UpdateLog(store, "memory:test"))
    store.fail_create = {f"signature/{training.log.id}.json"}
    assert not training.publisher.record(torch.ones(2, 4))
    assert "no space" in caplog.text
    training.step(torch.ones(2, 4))
    store.fail_create = set()
    assert training.publisher.record(torch.ones(2, 4))


# -- what a log says, or does not -------------------------------------------------------------------------------------


def test_a_log_without_a_signature_says_what_to_do() -> None:
    with pytest.raises(ModuleUnknown, match="--model"):
        module_of(Training(nn.Linear(4, 2)).log)
    with pytest.raises(LogNotFound):
        module_of("memory:nobody-ever-wrote-here")


def test_an_import_path_is_followed_only_where_that_is_allowed() -> None:
    log = Training(make_lenet5(), factory="evergrad.demo.lenet:make_lenet5").log
    with pytest.raises(FactoryNotTrusted, match="lenet:make_lenet5"):
        module_of(log)
    assert schema_of(module_of(log, trust_factory=True)) == log.schema


def test_an_import_path_of_another_model_names_the_tensor() -> None:
    log = Training(nn.Linear(4, 2), factory="evergrad.demo.lenet:make_lenet5").log
    with pytest.raises(SchemaMismatch):
        module_of(log, trust_factory=True)


def test_a_program_goes_before_an_import_path() -> None:
    training = Training(nn.Linear(4, 2), factory="no.such:module")
    training.publisher.record(torch.ones(2, 4))
    assert module_of(training.log)(torch.ones(3, 4)).shape == (3, 2)


def test_a_program_of_another_model_names_the_tensor() -> None:
    training = Training(nn.Linear(4, 2))
    found = export(nn.Linear(4, 3), torch.ones(2, 4))
    write_signature(training.log, found.inputs, found.outputs, found.program)
    with pytest.raises(SchemaMismatch, match="weight"):
        module_of(training.log)


def test_a_damaged_program_is_refused_by_name() -> None:
    training = Training(nn.Linear(4, 2))
    training.publisher.record(torch.ones(2, 4))
    (name,) = training.log.store.names("programs")
    training.log.store.replace(name, (training.log.store.read(name) or b"").replace(b"linear", b"linear"[::-1]))
    with pytest.raises(ProgramRefused, match=name):
        module_of(training.log)


def test_inputs_that_a_program_cannot_take_are_errors_that_a_server_knows() -> None:
    training = Training(nn.Linear(4, 2))
    training.publisher.record(torch.ones(2, 4))
    module = module_of(training.log)
    for x in (torch.ones(3, 5), torch.ones(3, 4, dtype=torch.float64), torch.ones(())):
        with pytest.raises((RuntimeError, IndexError)):
            module(x)
    with pytest.raises(RuntimeError, match="takes 1 inputs"):
        module()
