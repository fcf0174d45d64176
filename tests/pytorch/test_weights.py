"""What the parameters show, when; and who may write where."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import evergrad
from evergrad.errors import NonFiniteWeights, SchemaMismatch, WeightsChanged
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.settings import Forward
from tests.pytorch.models import (
    FORWARDS,
    OPTIMIZERS,
    Everything,
    assert_equal,
    batch_norm,
    batches,
    channels_last,
    deployed_bits,
    linear,
    loss_of,
    replica_bits,
    sgd,
    state_bits,
    train,
    trainable,
)


def trained(url: str, forward: Forward, steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer, Publisher]:
    model = batch_norm()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, density=0.02, forward=forward)
    for _ in train(model, optimizer, steps):
        publisher.publish()
    return model, optimizer, publisher


def parameter_bits(model: nn.Module) -> dict[str, bytes]:
    names = {name for name, _ in model.named_parameters()}
    return {name: found for name, found in state_bits(model).items() if name in names}


def test_between_steps_a_closed_loop_shows_the_deployed_weights(url: str) -> None:
    model, _, publisher = trained(url, "deployed")
    shown = parameter_bits(model)
    with publisher.deployed():
        assert parameter_bits(model) == shown
    with publisher.master():
        assert parameter_bits(model) != shown
    assert parameter_bits(model) == shown


def test_between_steps_an_open_loop_shows_the_master(url: str) -> None:
    model, _, publisher = trained(url, "master")
    shown = parameter_bits(model)
    with publisher.master():
        assert parameter_bits(model) == shown
    with publisher.deployed():
        assert parameter_bits(model) != shown
    assert parameter_bits(model) == shown


@pytest.mark.parametrize("forward", FORWARDS)
def test_the_gradient_is_taken_where_the_loop_says(forward: Forward, url: str) -> None:
    model, optimizer, publisher = trained(url, forward)
    x, y = next(batches(5))
    twin = batch_norm()
    with publisher.deployed() if forward == "deployed" else publisher.master():
        twin.load_state_dict(model.state_dict())
    loss_of(twin, x, y).backward()
    optimizer.zero_grad()
    loss_of(model, x, y).backward()
    for mine, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine.grad, expected.grad)


@pytest.mark.parametrize("forward", FORWARDS)
def test_contexts_restore_after_an_exception(forward: Forward, url: str) -> None:
    model, _, publisher = trained(url, forward)
    before = state_bits(model)
    for context in (publisher.master, publisher.deployed):
        with pytest.raises(ZeroDivisionError), context():
            raise ZeroDivisionError
        assert state_bits(model) == before


@pytest.mark.parametrize("forward", FORWARDS)
def test_contexts_nest(forward: Forward, url: str) -> None:
    model, optimizer, publisher = trained(url, forward)
    before = state_bits(model)
    with publisher.master(), torch.no_grad():
        master = parameter_bits(model)
        with publisher.deployed():
            deployed = parameter_bits(model)
            with publisher.master():
                assert parameter_bits(model) == master
            assert parameter_bits(model) == deployed
        assert parameter_bits(model) == master
    assert state_bits(model) == before
    replica = evergrad.Replica(url)
    for _ in train(model, optimizer, 2):
        publisher.publish()
        assert_equal(publisher, replica)


@pytest.mark.parametrize("forward", FORWARDS)
def test_what_is_changed_in_the_master_is_deployed_by_later_steps(forward: Forward, url: str) -> None:
    model, optimizer, publisher = trained(url, forward)
    replica = evergrad.Replica(url)
    with publisher.master(), torch.no_grad():
        model[4].bias.add_(1.0)
        with publisher.deployed():
            pass
        model[4].bias.add_(1.0)
        target = model[4].bias.clone()
    optimizer.param_groups[0]["lr"] = 0.0
    for _ in train(model, optimizer, 150):
        publisher.publish()
        assert_equal(publisher, replica)
    assert replica.weights["4.bias"].tolist() == pytest.approx(target.tolist(), abs=1e-5)


@pytest.mark.parametrize("forward", FORWARDS)
def test_evaluation_that_forgot_eval_harms_no_deployed_statistic(forward: Forward, url: str) -> None:
    model, optimizer, publisher = trained(url, forward)
    replica = evergrad.Replica(url)
    before = deployed_bits(publisher)
    live = state_bits(model)
    with publisher.deployed(), torch.no_grad():
        model(next(batches())[0])
    assert deployed_bits(publisher) == before
    assert state_bits(model) == live
    for _ in train(model, optimizer, 3):
        publisher.publish()
        assert_equal(publisher, replica)


@pytest.mark.parametrize("forward", FORWARDS)
def test_writing_to_the_deployed_weights_in_their_own_context_is_told(forward: Forward, url: str) -> None:
    model, _, publisher = trained(url, forward)
    with pytest.raises(WeightsChanged, match=r"0\.bias"), publisher.deployed(), torch.no_grad():
        model[0].bias.mul_(2)


@pytest.mark.parametrize("forward", FORWARDS)
def test_other_storage_in_place_of_a_parameters_own_is_told(forward: Forward, url: str) -> None:
    """`model.to(...)` and `p.data = ...` would be undone silently by the next step."""
    model, optimizer, publisher = trained(url, forward)
    model[0].bias.data = model[0].bias.data.clone()
    with pytest.raises(WeightsChanged, match=r"0\.bias"):
        publisher.publish()
    with pytest.raises(WeightsChanged, match=r"0\.bias"):
        optimizer.step()


class Reassigned(nn.Module):
    """Keeps a mean as many user modules do: a new tensor at each call, not in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 2)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layer(x.flatten(1))
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * out.mean(0).detach()
        return out - self.mean


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_buffer_that_the_module_replaces_is_followed(forward: Forward, url: str) -> None:
    model = Reassigned()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, density=0.1, forward=forward, buffer_tolerance=0.0)
    replica = evergrad.Replica(url)
    for _ in train(model, optimizer, 3):
        publisher.publish()
        assert_equal(publisher, replica)
        assert replica_bits(replica)["mean"] == state_bits(model)["mean"]
    model.mean = torch.zeros(3)
    with pytest.raises(SchemaMismatch) as caught:
        publisher.publish()
    assert (caught.value.tensor, caught.value.expected, caught.value.found) == (
        "mean",
        "torch.float32 [2]",
        "torch.float32 [3]",
    )


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_memory_format_does_not_change_what_an_optimizer_does(optimizer_name: str, forward: Forward, url: str) -> None:
    """Fused optimizers walk parameter and gradient by address; both must lie in memory in one order."""
    model, twin = channels_last(), batch_norm()
    twin.load_state_dict(model.state_dict())
    assert model[0].weight.stride() != twin[0].weight.stride()
    for one in (model, twin):
        optimizer = OPTIMIZERS[optimizer_name](trainable(one))
        publisher = Publisher(one, optimizer, f"{url}{id(one)}", density=0.1, forward=forward)
        for _ in range(3):
            # Its gradient is exact, so that both models have the same bits in it.
            sum((p * torch.arange(p.numel()).reshape(p.shape)).sum() for p in one.parameters()).backward()
            optimizer.step()
            publisher.publish()
        publisher.detach()
    assert state_bits(model) == state_bits(twin)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_begins_no_log(value: float, url: str) -> None:
    model = linear()
    with torch.no_grad():
        model[3].weight[1, 2] = value
    with pytest.raises(NonFiniteWeights) as caught:
        Publisher(model, sgd(model), url)
    assert (caught.value.tensor, caught.value.step) == ("3.weight", 0)
    assert not evergrad.open_log(url).begun()


@pytest.mark.parametrize("name", ["3.weight", "norm"])
def test_a_model_that_is_not_finite_continues_no_log(name: str, url: str) -> None:
    model = linear()
    model.register_buffer("norm", torch.ones(4))
    with Publisher(model, sgd(model), url):
        pass
    model.state_dict()[name].reshape(-1)[1] = float("nan")
    optimizer = sgd(model)
    with pytest.raises(NonFiniteWeights) as caught:
        Publisher(model, optimizer, url)
    assert (caught.value.tensor, caught.value.step) == (name, 0)
    assert evergrad.open_log(url).updates() == []
    model.state_dict()[name].reshape(-1)[1] = 1.0
    Publisher(model, optimizer, url).close()


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_dtype_does_not_matter(default: torch.dtype, url: str) -> None:
    model = Everything()
    optimizer = sgd(model)
    torch.set_default_dtype(default)
    try:
        publisher = Publisher(model, optimizer, url, density=0.05)
        for _ in train(model, optimizer, 2):
            publisher.publish()
    finally:
        torch.set_default_dtype(torch.float32)
    assert_equal(publisher, evergrad.Replica(url))
