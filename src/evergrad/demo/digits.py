"""Handwritten digits that slowly rotate: scikit-learn's bundled set, or MNIST where a folder holds it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evergrad.errors import ConfigError, MissingDependency

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
_IDX_TYPES = {0x08: np.dtype("u1")}


@dataclass(frozen=True, slots=True)
class Digits:
    """Images [n, 1, side, side] in [0, 1], labels [n], in a fixed order; `mean` and `sd` of pixels normalise."""

    name: str
    images: Images
    labels: Labels
    mean: float
    sd: float

    def inputs(self, rows: npt.NDArray[np.int64], degrees: float = 0.0) -> Images:
        """The images of `rows`, turned by `degrees` and normalised: what a model is fed."""
        turned = rotate(self.images[rows], degrees) if degrees else self.images[rows]
        return np.ascontiguousarray((turned - self.mean) / self.sd, dtype=np.float32)


def load_digits(folder: Path | None) -> Digits:
    """MNIST's training set out of `folder` or its subfolder mnist; where there is none, scikit-learn's 8x8 digits."""
    for place in (folder, folder / "mnist") if folder else ():
        images = place / "train-images-idx3-ubyte.gz"
        if images.exists():
            labels = read_idx(place / "train-labels-idx1-ubyte.gz")
            pixels = (read_idx(images)[:, None] / 255).astype(np.float32)
            return Digits("MNIST", pixels, labels.astype(np.int64), 0.1307, 0.3081)
    try:
        from sklearn.datasets import load_digits as bundled
    except ModuleNotFoundError as error:
        raise MissingDependency("scikit-learn", "demo") from error
    found = bundled()
    order = np.random.default_rng(0).permutation(len(found.target))
    images8 = (found.images[order][:, None] / 16).astype(np.float32)
    return Digits("scikit-learn digits", images8, found.target[order].astype(np.int64), 0.3053, 0.3759)


def read_idx(path: Path) -> npt.NDArray[Any]:
    """The array in a gzipped IDX file (LeCun's format: two zeros, type, rank, big-endian sides, data).

    Raises:
        ConfigError: no such file, or not of that format.
    """
    try:
        data = gzip.decompress(path.read_bytes())
        rank = data[3]
        sides = np.frombuffer(data, dtype=">i4", count=rank, offset=4)
        return np.frombuffer(data, dtype=_IDX_TYPES[data[2]], offset=4 + 4 * rank).reshape(sides)
    except (OSError, EOFError, IndexError, KeyError, ValueError) as error:
        raise ConfigError("data", f"{path} is not a gzipped IDX file of bytes: {error}") from error


def rotate(images: Images, degrees: float) -> Images:
    """The images turned counter-clockwise about their centres, bilinear, empty corners black."""
    from scipy import ndimage

    turned = ndimage.rotate(images, degrees, axes=(3, 2), reshape=False, order=1)
    return np.ascontiguousarray(turned, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class RotatingStream:
    """Batches of digits in their order, over and over up to `examples`, the angle growing from 0 to `degrees`."""

    digits: Digits
    first: int
    examples: int
    batch: int
    degrees: float

    def __iter__(self) -> Iterator[tuple[Images, Labels]]:
        available = len(self.digits.labels) - self.first
        for start in range(0, self.examples, self.batch):
            rows = self.first + np.arange(start, min(start + self.batch, self.examples)) % available
            angle = self.degrees * start / self.examples
            yield self.digits.inputs(rows, angle), self.digits.labels[rows]
