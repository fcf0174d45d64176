"""A served module on any device: the replica's state stays in the host's memory, each update's elements go to the copy.

replica (host) ──exclusive lock──> touched elements ──> the module's tensors (device)
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from evergrad.pytorch.bridge import module_tensors, schema_of, tensor_over
from evergrad.pytorch.mirror import Mirror
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
        self._mirror: Mirror | None = None
        self._torn = True

    def predict(self, x: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int]:
        """The module's outputs for a batch, all computed by one version, and that version.

        Raises:
            NotSynced: no version yet.
        """
        with self.replica.pin() as version, torch.inference_mode():
            if self._torn:
                self._copy_all()
            outputs: npt.NDArray[Any] = self._module(tensor_over(x).to(self._device)).cpu().numpy()
            return outputs, version

    def _copy_all(self) -> None:
        if self._mirror is None:
            state = self.replica.state
            self._mirror = Mirror(state, self._device, {group.dtype for group in state.schema.groups})
            for found in module_tensors(self._module)[0]:
                found.tensor.data = self._mirror.views[found.name]
            self.replica.on_update(self._on_update)
        else:
            self._mirror.refresh()
        self._torn = False

    def _on_update(self, applied: Applied) -> None:
        if self._torn or applied.touched is None or self._mirror is None:
            self._torn = True
            return
        self._torn = True  # until all of it is written: what fails half-way is copied whole by the next prediction
        with torch.inference_mode():
            self._mirror.refresh(applied.touched)
        self._torn = False
