"""Models of any size and updates of any density, without training: what the replica's benchmarks are fed with."""

from __future__ import annotations

import numpy as np

from evergrad.log import UpdateLog
from evergrad.schema import Schema
from evergrad.update import Snapshot, State, Steps, Update, short_fingerprint

RUN = 0x5EED


class SyntheticWriter:
    """Writes updates of `k` one-bit steps at uniform random positions of a float32 model to a log.

    Args:
        log: a log that has not begun.
        elements: of the model.
        k: elements an update moves.
    """

    def __init__(self, log: UpdateLog, elements: int, k: int, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        schema = Schema([("w", "F32", (elements,))])
        self.log, self.k, self.version = log, k, 0
        self.state = State(schema, [self._rng.standard_normal(elements, dtype=np.float32)])
        log.begin(self.snapshot())

    def snapshot(self) -> Snapshot:
        return Snapshot(version=self.version, run=RUN, newest_us=1, state=self.state)

    def next_update(self) -> Update:
        elements = self.state.schema.elements
        indices = np.unique(self._rng.integers(0, elements, self.k))
        steps = Steps(indices, self._rng.random(len(indices)) < 0.5, 1e-3)
        change = self.state.resolve([steps])
        update = Update(
            base_version=self.version,
            version=self.version + 1,
            run=RUN,
            schema=short_fingerprint(self.state.schema),
            digest_before=change.digest_before,
            digest_after=change.digest,
            newest_us=1,
            sections=(steps,),
        )
        self.state.commit(change)
        self.version += 1
        return update

    def append(self, count: int, *, folds: bool = False) -> int:
        """Appends `count` updates; gives the bytes of them, and of their folds where asked for."""
        written = 0
        for _ in range(count):
            written += self.log.append(self.next_update())
            if folds:
                written += self.log.write_folds(self.version, self.state)
        return written
