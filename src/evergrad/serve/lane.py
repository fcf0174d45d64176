"""A lane: one servable, the thread that computes with it, and what it counts. A served model has one, or two."""

from __future__ import annotations

import logging
from concurrent.futures import Future

import numpy as np

from evergrad.errors import EvergradError, NotSynced
from evergrad.replica import Replica
from evergrad.serve.batch import Batcher, Batching, Computed
from evergrad.serve.info import one_line
from evergrad.serve.metrics import Metrics
from evergrad.serve.sdk import InvalidInput
from evergrad.serve.servable import Late, Servable
from evergrad.serve.signature import TensorType
from evergrad.serve.tensors import Array, datatype_of

logger = logging.getLogger(__name__)


class Lane:
    """Computes batches by whole versions of one replica.

    An update is written in between two batches: the replica's thread waits for the batch that is being computed, and
    the next batch waits for the write, which takes microseconds. An older version out of the undo ring is computed by
    taking the changed elements back for that batch (`Replica.at`); no other batch runs meanwhile.

    Args:
        track: "stable" or "candidate"; its label in metrics.
    """

    def __init__(self, servable: Servable, track: str, batching: Batching, metrics: Metrics) -> None:
        self.servable, self.track = servable, track
        self._late = servable if isinstance(servable, Late) else None
        # `track` is looked up each time: a candidate that was promoted is the stable one from then on.
        self._batcher = Batcher(self._compute, batching, lambda n, rows: metrics.batched(self.track, n, rows))

    @property
    def replica(self) -> Replica:
        """Where its weights come from."""
        return self.servable.replica

    @property
    def missing(self) -> str | None:
        """Why nothing can be computed yet, though there may be a version, in one line; None: it can."""
        return None if self._late is None else self._late.missing

    @property
    def recorded(self) -> tuple[TensorType, TensorType] | None:
        """Input and output as the log tells them, where its signature was read."""
        return None if self._late is None else self._late.recorded

    @property
    def version(self) -> int | None:
        """The version served now; None: none yet. Waits for nothing."""
        try:
            return None if self.missing else self.replica.version
        except NotSynced:
            return None

    @property
    def versions(self) -> list[int]:
        """The versions that can be asked for, ascending. Waits for a batch of an older one that is being computed."""
        return [] if self.missing else self.replica.versions

    @property
    def waiting(self) -> int:
        """How many requests wait to be computed."""
        return len(self._batcher)

    def follow(self) -> None:
        """Lets the replica follow its log; what could not be built yet is, as soon as it can be."""
        self.replica.follow()
        if self._late is not None:
            self._late.follow()

    def submit(self, x: Array, version: int | None = None) -> Future[Computed]:
        """The outputs for a batch, to come.

        Args:
            version: None: the newest.

        Raises (from the future):
            InvalidInput: the model cannot take it. VersionNotHeld: that version is not in the undo ring.
            NotSynced: there is no version yet.
        """
        return self._batcher.submit(x, version)

    def _compute(self, x: Array, version: int | None) -> Computed:
        replica = self.replica
        with replica.pin() if version is None else replica.at(version):
            try:
                outputs, found = self.servable.predict(x)
            except EvergradError:
                raise
            except (RuntimeError, ValueError, IndexError) as error:
                problem = f"the model does not take {datatype_of(x)} {list(x.shape)}: {one_line(error)}"
                logger.warning("%s", problem)
                raise InvalidInput(problem) from error
            # A copy: outputs may be views of the weights.
            return Computed(np.array(outputs), found, replica.digest, replica.staleness_s())

    def close(self) -> None:
        """Answers what waits, then ends the thread and the replica's."""
        self._batcher.close()
        if self._late is not None:
            self._late.close()
        self.replica.close()
