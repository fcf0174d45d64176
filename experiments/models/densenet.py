"""DenseNet161 (Huang et al. 2017, "Densely Connected Convolutional Networks")."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn


class DenseLayer(nn.Module):
    """Adds `growth` channels to those that it gets, by a 1x1 and a 3x3 convolution."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(self.relu(self.norm1(x)))
        return torch.cat((x, self.conv2(self.relu(self.norm2(y)))), 1)


class DenseNet161(nn.Module):
    """[batch, 3, height, width] to [batch, classes]; 26,494,090 parameters for ten classes."""

    BLOCKS, GROWTH, FIRST = (6, 12, 36, 24), 48, 96

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        channels = self.FIRST
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, channels, 7, 2, 3, bias=False),
            norm0=nn.BatchNorm2d(channels),
            relu0=nn.ReLU(),
            pool0=nn.MaxPool2d(3, 2, 1),
        )
        for number, count in enumerate(self.BLOCKS, 1):
            block = OrderedDict[str, nn.Module]()
            for layer in range(1, count + 1):
                block[f"denselayer{layer}"] = DenseLayer(channels, self.GROWTH)
                channels += self.GROWTH
            layers[f"denseblock{number}"] = nn.Sequential(block)
            if number < len(self.BLOCKS):
                layers[f"transition{number}"] = _transition(channels)
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.relu(self.features(x)).mean((2, 3)))


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )
