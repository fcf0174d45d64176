"""Weights out of a file that a user has, for example torchvision's for ImageNet."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from evergrad.errors import ConfigError, MissingDependency

_OLD_NAME = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")
_HEADS = ("fc.", "classifier.", "fc3.")


def load_pretrained(model: nn.Module, path: Path) -> None:
    """Gives a model the weights in a file of safetensors, or of torch (read with `weights_only`).

    A last layer of another number of classes keeps its own weights. Files from before BatchNorm counted its batches,
    and with DenseNet's old names, are understood.

    Raises:
        ConfigError: no such file, not of these formats, or of another model; the model is as it was.
    """
    found = {_OLD_NAME.sub(r"\1\2", name): tensor for name, tensor in _read(path).items()}
    own = model.state_dict()
    wrong = [
        name
        for name, tensor in own.items()
        if not name.endswith("num_batches_tracked")
        and (name not in found or (found[name].shape != tensor.shape and not name.startswith(_HEADS)))
    ]
    wrong += [name for name in found if name not in own]
    if wrong:
        raise ConfigError("weights", f"{path} is of another model: {', '.join(wrong[:3])} differ, {len(wrong)} in all")
    fitting = {name: tensor for name, tensor in found.items() if tensor.shape == own[name].shape}
    model.load_state_dict({**own, **fitting})


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise MissingDependency("safetensors", "dev") from error
    except Exception as error:  # whatever torch and safetensors raise for what is not theirs
        raise ConfigError("weights", f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise ConfigError("weights", f"{path} holds no state dict: a {type(found).__name__}")
    return found
