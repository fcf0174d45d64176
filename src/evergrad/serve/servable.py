"""What a server serves: the one seam between this package and a framework's models."""

from __future__ import annotations

from typing import Protocol

from evergrad.replica import Replica
from evergrad.serve.tensors import Array


class Servable(Protocol):
    """What a server serves; `evergrad.pytorch.bridge.ReplicaModule` is one.

    Attributes:
        replica: where the weights come from.
    """

    replica: Replica

    def predict(self, x: Array) -> tuple[Array, int]:
        """The outputs for a batch, and the version that computed them all.

        A RuntimeError, ValueError or IndexError says that the model cannot take this batch.
        """
