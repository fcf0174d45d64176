"""A copy of a state on a model's device, where its forward passes see it: of a publisher's, or of a replica's.

The state in the host's memory stays the truth: what moves is worked out there, and its elements are written to the
copy, as bits, on the stream that the model runs on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evergrad.errors import WeightsChanged
from evergrad.pytorch.bridge import as_flat, as_numpy, views_of
from evergrad.update import Change, State
from evergrad.update.digest import Array, Indices


class Mirror:
    """Groups of a state on a device.

    Args:
        state: what it is a copy of.
        dtypes: which groups.

    Attributes:
        flat: each group's elements, by dtype.
        views: its tensors, row-major, by name.
    """

    def __init__(self, state: State, device: torch.device, dtypes: Collection[str]) -> None:
        self._state, self._device = state, device
        self._numbers = {number: g.dtype for number, g in enumerate(state.schema.groups) if g.dtype in dtypes}
        self.flat = {
            dtype: as_flat(state.arrays[number], dtype).to(device, copy=True) for number, dtype in self._numbers.items()
        }
        self.views = views_of(state.schema, self.flat)

    def write(self, change: Change) -> None:
        """Writes a change that the state has been through."""
        for part in change.parts:
            self._put(part.group, part.positions, part.new)

    def refresh(self, touched: Iterable[tuple[int, Indices]] | None = None) -> None:
        """Reads elements anew from the state: (number of the group, positions in it); None: all."""
        if touched is None:
            for number, dtype in self._numbers.items():
                self.flat[dtype].copy_(as_flat(self._state.arrays[number], dtype))
            return
        for number, positions in touched:
            self._put(number, positions, self._state.arrays[number][positions])

    def _put(self, number: int, positions: Indices, values: Array) -> None:
        dtype = self._numbers.get(number)
        if dtype is not None and len(positions):
            at = self._sent(torch.from_numpy(positions.astype(np.int64, copy=False)))
            self.flat[dtype].index_copy_(0, at, self._sent(as_flat(values, dtype)))

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        pinned = tensor.pin_memory() if self._device.type == "cuda" else tensor
        return pinned.to(self._device, non_blocking=True)

    def check(self) -> None:
        """Raises WeightsChanged where an element is not the state's, in bits."""
        for number, dtype in self._numbers.items():
            mine, own = _bits(as_numpy(self.flat[dtype])), _bits(self._state.arrays[number])
            if not np.array_equal(mine, own):
                raise WeightsChanged("a parameter")


def _bits(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.view(f"u{array.itemsize}")
