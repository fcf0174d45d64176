"""A run's telemetry: one JSON object per line, one line per event.

Every record has `event` (what happened) and `time_s` (when, seconds since 1970). Readers skip what they do not know,
and a last line that a crash cut off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import msgspec

Record = dict[str, Any]


class RecordWriter:
    """Appends records to a file, each one flushed, so that others can follow it.

    Args:
        path: made with its folder where it does not exist; appended to where it does.
        clock: seconds since 1970.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - kept open for the run's length
        self._clock = clock

    def write(self, event: str, **fields: Any) -> None:
        """Writes one record; numpy scalars become numbers."""
        record = {"event": event, "time_s": self._clock(), **fields}
        self._file.write(msgspec.json.encode(record, enc_hook=lambda value: value.item()) + b"\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_records(path: str | Path) -> Iterator[Record]:
    """The records of a file, oldest first."""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line, type=Record)
