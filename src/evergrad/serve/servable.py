"""What a server serves, and what may take its place: the one seam between this package and a framework's models."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from evergrad.errors import ConfigError, FactoryNotTrusted, ModuleUnknown, NotSynced
from evergrad.replica import Replica
from evergrad.serve.signature import TensorType
from evergrad.serve.tensors import Array

logger = logging.getLogger(__name__)
Types = tuple[TensorType, TensorType]
"""What a model takes, and what it gives."""
_LOOK_S, _MAX_WAIT_S = 0.05, 1.0


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
    """A servable that is built when its log allows it: once it is begun, and says how its model computes.

    A trainer records that with its first batch (`Publisher.record`), after the first version and before the first
    update. A log that is further and does not say it is written by somebody who does not record.

    Args:
        build: makes the servable of `replica`, which holds a version, and tells its input and output where they are
            known.

    Attributes:
        missing: why there is nothing to compute with yet, in one line; None: there is.
        recorded: its input and output, where the log told them.
    """

    def __init__(self, replica: Replica, build: Callable[[], tuple[Servable, Types | None]]) -> None:
        self.replica, self._build = replica, build
        self.missing: str | None = "not looked for yet"
        self.recorded: Types | None = None
        self._built: Servable | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> str | None:
        """Builds it, if that can be; gives what it waits for, in one line, None: for nothing.

        Raises:
            ModuleUnknown, FactoryNotTrusted: the log has updates, and does not say how its model computes.
            EvergradError: what building it raises: waiting does not heal that.
        """
        version = self.replica.stats().version  # looked at before the signature, which is there before an update is
        if version is None:
            self.missing = f"waiting for the first version of {self.replica.log.url}"
            return self.missing
        try:
            self._built, self.recorded = self._build()
        except (ModuleUnknown, FactoryNotTrusted) as error:
            self.missing = str(error)
            if version > self.replica.log.begins:
                raise
            self.missing = f"waiting for the trainer's first batch; so far {error}"
            return self.missing
        except Exception as error:
            self.missing = str(error)
            raise
        self.missing = None
        return None

    def predict(self, x: Array) -> tuple[Array, int]:
        """As the servable itself. Raises NotSynced where it is not built."""
        if self._built is None:
            raise NotSynced(self.replica.log.url)
        return self._built.predict(x)

    def follow(self) -> None:
        """Looks again and again, in a thread that ends with the first success or `close`; tells what keeps it."""
        if self._built is None and self._thread is None:
            self._thread = threading.Thread(target=self._wait, name="evergrad-late", daemon=True)
            self._thread.start()

    def _wait(self) -> None:
        wait_s, told = _LOOK_S, ""
        while not self._stopping.wait(wait_s):
            failed = ""
            try:
                if self.look() is None:
                    logger.info("version %d can be served from now on", self.replica.version)
                    return
            except Exception as error:  # whatever it is: a thread that ends leaves a server that never serves
                failed = f"{type(error).__name__}: {error}"
            if failed and failed != told:
                logger.error("nothing can be served yet: %s", failed)
            told, wait_s = failed, min(2 * wait_s, _MAX_WAIT_S)

    def close(self) -> None:
        """Ends the waiting."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()


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
