"""The models of the experiments in their standard forms: tensors have torchvision's names, shapes and first values."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from evergrad.demo.lenet import make_lenet5
from experiments.models.densenet import DenseNet161
from experiments.models.mobilenet import MobileNetV2
from experiments.models.pretrained import load_pretrained
from experiments.models.resnet import ResNet18, ResNet50

__all__ = ["MODELS", "DenseNet161", "MobileNetV2", "ResNet18", "ResNet50", "load_pretrained", "make_lenet5"]

MODELS: dict[str, Callable[[], nn.Module]] = {
    "lenet5": make_lenet5,
    "mobilenetv2": MobileNetV2,
    "resnet18": ResNet18,
    "resnet50": ResNet50,
    "densenet161": DenseNet161,
}
