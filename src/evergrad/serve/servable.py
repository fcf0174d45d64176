"""What a server serves, and what may take its place: the one seam between this package and a framework's models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from evergrad.errors import ConfigError
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


class Late:
    """A servable of a log that nobody has begun yet: it is built when the first version is there.

    Args:
        build: makes the servable of `replica`.
    """

    def __init__(self, replica: Replica, build: Callable[[], Servable]) -> None:
        self.replica, self._build = replica, build
        self._built: Servable | None = None

    def predict(self, x: Array) -> tuple[Array, int]:
        """As the servable itself; raises what building it raises."""
        if self._built is None:
            self._built = self._build()
        return self._built.predict(x)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidate:
    """What may take the served model's place.

    Attributes:
        servable: of a model with the same inputs and outputs; its replica follows its own log, and is closed with the
            server. It is a second model in memory.
        share: fraction of the requests that go to it.
        shadow: whether its answers are only compared, and never given.

    Raises:
        ConfigError: a share that is none.
    """

    servable: Servable
    share: float = 0.1
    shadow: bool = False

    def __post_init__(self) -> None:
        require_share(self.share)


def require_share(share: float) -> float:
    """Gives it back. Raises ConfigError where it is no fraction."""
    if not 0 <= share <= 1:
        raise ConfigError("share", f"must lie in 0 to 1, not {share}")
    return share
