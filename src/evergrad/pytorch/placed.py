"""A served module on any device: the replica's state stays in the host's memory, each update's elements go to the copy.

replica (host) ──exclusive lock──> touched elements ──> the module's tensors (device)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evergrad.pytorch.bridge import as_flat, module_tensors, schema_of, views_of
from evergrad.replica import Applied, Replica


class PlacedModule:
    """A `serve.Servable` on a device, e.g. `cuda`. The device holds one copy of the model, the host the replica's.

    Args:
        module: of the log's model; it is moved to the device.

    Raises:
        SchemaMismatch: the log is of another model.
    """

    def __init__(self, module: nn.Module, replica: Replica, device: str | torch.device) -> None:
        replica.schema.require(schema_of(module))
        self._device = torch.device(device)
        self._module, self.replica = module.eval().to(self._device), replica
        self._flat: list[torch.Tensor] = []
        self._torn = True

    def predict(self, x: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int]:
        """The module's outputs for a batch, all computed by one version, and that version.

        Raises:
            NotSynced: no version yet.
        """
        with self.replica.pin() as version, torch.inference_mode():
            if self._torn:
                self._copy_all()
            inputs = torch.from_numpy(np.ascontiguousarray(x)).to(self._device)
            outputs: npt.NDArray[Any] = self._module(inputs).cpu().numpy()
            return outputs, version

    def _copy_all(self) -> None:
        state = self.replica.state
        groups = list(zip(state.schema.groups, state.arrays, strict=True))
        if not self._flat:
            self._flat = [as_flat(array, group.dtype).to(self._device, copy=True) for group, array in groups]
            views = views_of(state.schema, {g.dtype: flat for (g, _), flat in zip(groups, self._flat, strict=True)})
            for found in module_tensors(self._module)[0]:
                found.tensor.data = views[found.name]
            self.replica.on_update(self._on_update)
        else:
            for (group, array), flat in zip(groups, self._flat, strict=True):
                flat.copy_(as_flat(array, group.dtype))
        self._torn = False

    def _on_update(self, applied: Applied) -> None:
        if self._torn or applied.touched is None:
            self._torn = True
            return
        self._torn = True  # until all of it is written: what fails half-way is copied whole by the next prediction
        state = self.replica.state
        with torch.inference_mode():
            for number, positions in applied.touched:
                values = as_flat(state.arrays[number][positions], state.schema.groups[number].dtype)
                at = torch.from_numpy(positions.astype(np.int64, copy=False))
                self._flat[number].index_copy_(0, at.to(self._device), values.to(self._device))
        self._torn = False
