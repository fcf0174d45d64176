"""What a model server joined of its answers and their labels, followed by a trainer in another process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evergrad.errors import ConfigError
from evergrad.history import History
from evergrad.stream import Batch

JOINED = "joined"


@dataclass(frozen=True, kw_only=True)
class FeedbackStream:
    """The labelled examples that `evergrad serve --feedback DIR` writes, as batches; waits for more at the end.

    A batch is what one request to the server brought, with the outputs that were served for it. The server keeps them
    all, in a `History` in DIR/joined, so batch n is the same whenever it is asked for: a run with checkpoints that is
    killed and started again goes on exactly where it was. The folder need not be there yet.

    Args:
        path: the server's DIR.
        poll_s: how often to look for more, in seconds.
        idle_s: ends after so many seconds without anything new; None: never.
        clock, sleep: seconds, and waiting for some.

    Raises:
        ConfigError: `poll_s` or `idle_s` is below 0.
        HistoryError (while it is iterated): what is there cannot be read.
    """

    path: str
    poll_s: float = 0.002
    idle_s: float | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep

    def __post_init__(self) -> None:
        for key, value in (("poll_s", self.poll_s), ("idle_s", self.idle_s)):
            if value is not None and not value >= 0:
                raise ConfigError(f"stream.{key}", f"must be 0 or more, not {value}")

    def __iter__(self) -> Iterator[Batch]:
        return self.starting_at(0)

    def starting_at(self, number: int) -> Iterator[Batch]:
        """All but the first `number` batches, those that are yet to come among them."""
        with History(Path(self.path) / JOINED, read_only=True) as joined:
            newest_s = self.clock()
            while True:
                while number < joined.batches:
                    yield _batch(joined, number)
                    number, newest_s = number + 1, self.clock()
                if self.idle_s is not None and self.clock() - newest_s > self.idle_s:
                    return
                joined.refresh()
                if number >= joined.batches:
                    self.sleep(self.poll_s)


def _batch(joined: History, number: int) -> Batch:
    ids = np.asarray(joined.batch(number), np.int64)
    found = joined.gather(ids, ["x", "y", "outputs"])
    return Batch(found["x"], found["y"], int(joined.arrived_us(ids)[-1]) / 1e6, found["outputs"])
