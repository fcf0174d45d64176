"""The models that benchmarks train are the standard ones: their size, and the names of their tensors."""

from __future__ import annotations

import pytest
import torch
from benchmarks.models import MobileNetV2, ResNet18
from torch import nn


@pytest.mark.parametrize(
    ("model", "parameters", "tensors"), [(MobileNetV2(), 2_236_682, 314), (ResNet18(), 11_181_642, 122)]
)
def test_a_model_has_its_parameters_and_tensors_and_ten_outputs(
    model: nn.Module, parameters: int, tensors: int
) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_mobilenet_has_its_standard_names_and_shapes() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in MobileNetV2().state_dict().items()}
    assert shapes["features.0.0.weight"] == (32, 3, 3, 3)
    assert shapes["features.1.conv.0.0.weight"] == (32, 1, 3, 3)
    assert shapes["features.1.conv.2.running_mean"] == (16,)
    assert shapes["features.2.conv.1.0.weight"] == (96, 1, 3, 3)
    assert shapes["features.17.conv.2.weight"] == (320, 960, 1, 1)
    assert shapes["features.18.1.num_batches_tracked"] == ()
    assert shapes["classifier.1.weight"] == (10, 1280)


def test_mobilenet_halves_an_image_five_times() -> None:
    assert MobileNetV2().eval().features(torch.zeros(1, 3, 64, 96)).shape == (1, 1280, 2, 3)
