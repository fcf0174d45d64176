"""Data out of a folder that the user names; here images: MNIST's four idx files, CIFAR-10's binary version.

Pixels stay bytes, a quarter of the memory and of the history's disk; models normalise what they get (`normalising`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evergrad.demo.digits import read_idx
from evergrad.errors import ConfigError

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
SOURCES = {
    "mnist": "the four files of MNIST (for example from https://ossci-datasets.s3.amazonaws.com/mnist/)",
    "cifar-10-batches-bin": "CIFAR-10's binary version (https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz)",
    "movielens-latest-small-2016": "ratings.csv and movies.csv of MovieLens, each gzipped "
    "(https://grouplens.org/datasets/movielens/)",
    "bikeshare": "hour.csv of Bike Sharing, gzipped (https://archive.ics.uci.edu/dataset/275/bike+sharing+dataset)",
}
IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CIFAR_ROW = 1 + 3 * 32 * 32


@dataclass(frozen=True, slots=True)
class Images:
    """A training and a test set in file order: pixels [n, channels, height, width], labels [n].

    Attributes:
        mean, sd: of each channel's pixels in [0, 1], to normalise by.
    """

    x: Pixels
    y: Labels
    test_x: Pixels
    test_y: Labels
    mean: tuple[float, ...]
    sd: tuple[float, ...]


def load_mnist(data: Path) -> Images:
    """MNIST, from the subfolder mnist: 60,000 and 10,000 images of 28x28.

    Raises:
        ConfigError: a file is missing, or not of its format.
    """
    parts = []
    for part in ("train", "t10k"):
        parts.append(read_idx(find(data, f"mnist/{part}-images-idx3-ubyte.gz"))[:, None])
        parts.append(read_idx(find(data, f"mnist/{part}-labels-idx1-ubyte.gz")).astype(np.int64))
    return Images(*parts, mean=(0.1307,), sd=(0.3081,))


def load_cifar10(data: Path) -> Images:
    """CIFAR-10, from the subfolder cifar-10-batches-bin: 50,000 and 10,000 images of 32x32; ImageNet's mean and sd.

    Raises:
        ConfigError: a file is missing, or not of its format.
    """
    train = read_cifar10(data, *(f"data_batch_{number}.bin" for number in range(1, 6)))
    test = read_cifar10(data, "test_batch.bin")
    return Images(*train, *test, mean=IMAGENET_MEAN, sd=IMAGENET_SD)


def read_cifar10(data: Path, *files: str) -> tuple[Pixels, Labels]:
    """The images and labels in some of the files, one after another. Raises as `load_cifar10`."""
    found = []
    for file in files:
        path = find(data, f"cifar-10-batches-bin/{file}")
        rows = np.fromfile(path, np.uint8)
        if len(rows) % _CIFAR_ROW:
            raise ConfigError("data", f"{path} has {len(rows)} bytes, no whole rows of {_CIFAR_ROW}; unpack it anew")
        found.append(rows.reshape(-1, _CIFAR_ROW))
    rows = np.concatenate(found)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def find(data: Path, name: str) -> Path:
    """The file of that name. Raises ConfigError, which says where to get it, where there is none."""
    path = data / name
    if not path.is_file():
        raise ConfigError(
            "data", f"{path} is missing; --data or EVERGRAD_DATA names the folder that holds {name}: "
            f"{SOURCES[name.partition('/')[0]]}",
        )  # fmt: skip
    return path


def normalising(model: nn.Module, mean: tuple[float, ...], sd: tuple[float, ...]) -> nn.Module:
    """The model, now fed with pixels as bytes; its tensors keep their names."""
    shift = torch.tensor(mean)[:, None, None]
    scale = torch.tensor(sd)[:, None, None]

    def normalise(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        x = inputs[0]
        return (x.float().div_(255) - shift.to(x.device)) / scale.to(x.device)

    model.register_forward_pre_hook(normalise)
    return model
