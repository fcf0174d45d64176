"""Small models with one difficulty each, one with all of them, and the loops that train them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from evergrad import Replica
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.settings import Forward
from evergrad.update import digest

INPUT_SHAPE = (3, 4, 4)
FORWARDS: tuple[Forward, ...] = ("deployed", "master")


def linear(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.Tanh(), nn.Linear(width, 2))


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def channels_last() -> nn.Module:
    return batch_norm().to(memory_format=torch.channels_last)


class Tied(nn.Module):
    """One weight, and one buffer, under two names each."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(48, 48)
        self.decoder = nn.Linear(48, 48)
        self.decoder.weight = self.encoder.weight
        self.encoder.register_buffer("scale", torch.ones(48))
        self.decoder.register_buffer("scale", self.encoder.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.encoder.scale.mul_(1.01)
        return self.decoder(torch.tanh(self.encoder(x.flatten(1)))) * self.decoder.scale


class Everything(nn.Module):
    """Each kind of tensor that a module may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = channels_last()
        self.tied = nn.Linear(2, 2)
        self.tied_again = nn.Linear(2, 2)
        self.tied_again.weight = self.tied.weight
        self.weight_bf16 = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.weight_f16 = nn.Parameter(torch.ones(2, dtype=torch.float16))
        self.weight_f64 = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.scalar = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.codes = nn.Parameter(torch.arange(3), requires_grad=False)
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("calls", torch.tensor(0, dtype=torch.int32))
        self.register_buffer("seen", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("mean_double", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("mean_brain", torch.zeros(2, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        self.register_buffer("scratch", torch.zeros(5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
            self.seen[int(self.calls) % 3] ^= True
            self.mean_double += x.mean().double()
            self.mean_brain += x.mean().bfloat16()
            self.scratch += 1
        out = self.tied_again(torch.tanh(self.tied(self.trunk(x))))
        out = out * self.weight_bf16.float() + self.weight_f16.float() - self.weight_f64.float() * self.scalar
        return out * self.frozen


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": linear,
    "batch_norm": batch_norm,
    "channels_last": channels_last,
    "tied": Tied,
    "everything": Everything,
}

Params = list[nn.Parameter]


def _groups(params: Params) -> list[dict[str, Any]]:
    return [{"params": params[::2], "lr": 0.1}, {"params": params[1::2], "lr": 0.01}]


OPTIMIZERS: dict[str, Callable[[Params], torch.optim.Optimizer]] = {
    "sgd_momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "sgd_groups": lambda params: torch.optim.SGD(_groups(params), lr=0.1, weight_decay=1e-3),
    "adam_amsgrad": lambda params: torch.optim.Adam(params, lr=0.01, amsgrad=True),
    "adamw_fused": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    "adamw_foreach": lambda params: torch.optim.AdamW(params, lr=0.01, foreach=True),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.05),
}


def trainable(model: nn.Module) -> Params:
    """What an optimizer is given: what requires a gradient, but for `unused`, which stays outside."""
    return [p for name, p in model.named_parameters() if p.requires_grad and "unused" not in name]


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(trainable(model), lr=lr)


def batches(seed: int = 7) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random examples, the same for the same seed, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(8, *INPUT_SHAPE, generator=generator, dtype=torch.float32)
        yield x, torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1)


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    device = next(model.parameters()).device
    return F.mse_loss(model(x.to(device))[:, :2].float(), y.to(device))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 7) -> Iterator[int]:
    """Takes `steps` plain steps, and gives the number of each after it was taken."""
    for number, (x, y) in zip(range(steps), batches(seed), strict=False):
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        optimizer.step()
        yield number


def idle(optimizer: torch.optim.Optimizer, steps: int) -> Iterator[int]:
    """Takes `steps` steps whose gradient is zero everywhere."""
    for number in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        yield number


def bits(tensor: torch.Tensor) -> bytes:
    """The elements in row-major order, as their bytes."""
    here = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return here.reshape(-1).view(torch.uint8).numpy().tobytes()


def state_bits(model: nn.Module) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in model.state_dict().items()}


def replica_bits(replica: Replica) -> dict[str, bytes]:
    return {name: np.ascontiguousarray(array).tobytes() for name, array in replica.weights.items()}


def deployed_bits(publisher: Publisher) -> dict[str, bytes]:
    with publisher.deployed() as model:
        return state_bits(model)


def assert_equal(publisher: Publisher, replica: Replica) -> None:
    """The replica is at the publisher's version, and every tensor of it is the deployed one, bit for bit."""
    replica.sync()
    assert replica.version == publisher.version
    assert replica.digest == publisher.digest == digest(replica.schema, replica.state.arrays)
    assert replica_bits(replica) == deployed_bits(publisher)


def distance(publisher: Publisher) -> float:
    """The largest |master - deployed| over all floating-point parameters."""
    with publisher.master() as model:
        master = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    with publisher.deployed() as model:
        return max(
            float((p.detach().double() - master[name]).abs().max())
            for name, p in model.named_parameters()
            if p.is_floating_point() and p.numel()
        )


def load_into(model: nn.Module, weights: Mapping[str, npt.NDArray[Any]]) -> nn.Module:
    """A model that loads a replica's weights as a user would."""
    own = model.state_dict()
    found = {}
    for name, array in weights.items():
        tensor = torch.from_numpy(np.array(array))
        if own[name].dtype in (torch.bfloat16, torch.bool):
            tensor = tensor.view(own[name].dtype)
        found[name] = tensor
    model.load_state_dict(found)
    return model.eval()
