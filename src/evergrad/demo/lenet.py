"""The demo's models, importable by the server that the demo starts."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn


def make_lenet5() -> nn.Module:
    """LeNet5 for 28x28 images as in Prapas et al. 2021, 61,706 parameters: [batch, 1, 28, 28] to [batch, 10]."""
    return _lenet(nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5), 400)


def make_lenet5_8x8() -> nn.Module:
    """The same network with 3x3 kernels for 8x8 images, 19,754 parameters: [batch, 1, 8, 8] to [batch, 10]."""
    return _lenet(nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 16, 3, padding=1), 64)


def _lenet(first: nn.Conv2d, second: nn.Conv2d, flat: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=first, relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
            conv2=second, relu2=nn.ReLU(), pool2=nn.MaxPool2d(2), flatten=nn.Flatten(),
            fc1=nn.Linear(flat, 120), relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84), relu4=nn.ReLU(),
            fc3=nn.Linear(84, 10),
        )
    )  # fmt: skip


def train_dense(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    epochs: int,
    batch_size: int,
) -> None:
    """Ordinary training, for the model that is deployed first: cross-entropy, shuffled by torch's generator."""
    model.train()
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x)), batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that is ready to be deployed.

    Attributes:
        model, optimizer, loss: as `evergrad.run` takes them; training goes on with the same optimizer.
        factory: the import path that builds such a model.
        predict_frozen: outputs of a copy of the model that nobody will ever update.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    factory: str
    predict_frozen: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


def train_first(x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], *, epochs: int, lr: float, seed: int) -> Trained:
    """Trains the LeNet5 that fits the images `x` on the first part of the data."""
    torch.manual_seed(seed)
    make = make_lenet5 if x.shape[-1] == 28 else make_lenet5_8x8
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, amsgrad=True)
    train_dense(model, optimizer, torch.from_numpy(x), torch.from_numpy(y), epochs=epochs, batch_size=64)
    frozen = copy.deepcopy(model).eval()

    def predict_frozen(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with torch.inference_mode():
            outputs: npt.NDArray[Any] = frozen(torch.from_numpy(images)).numpy()
            return outputs

    return Trained(model, optimizer, nn.functional.cross_entropy, f"{__name__}:{make.__name__}", predict_frozen)
