"""A run's telemetry: one JSON object per line, one line per event.

Every record has `event` (what happened) and `time_s` (when, seconds since 1970). Readers skip what they do not know,
and a last line that a crash cut off.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

Record = dict[str, Any]
_BLOCK_BYTES = 1 << 16


class RecordWriter:
    """Appends records to a file, each one flushed, so that others can follow it.

    Args:
        path: made with its folder where it does not exist; appended to where it does, behind its last whole line.
        clock: seconds since 1970.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(Path(path))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - kept open for the run's length
        self._clock = clock

    def write(self, event: str, **fields: Any) -> None:
        """Writes one record; numpy scalars become numbers."""
        record = {"event": event, "time_s": self._clock(), **fields}
        self._file.write(msgspec.json.encode(record, enc_hook=lambda value: value.item()) + b"\n")

    def state_dict(self) -> dict[str, Any]:
        """Where the file ends."""
        return {"bytes": self._file.tell()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cuts off what was written since, for it is written again; a file that is shorter stays as it is."""
        self._file.truncate(min(state["bytes"], self._file.tell()))
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)


def read_records(path: str | Path) -> Iterator[Record]:
    """The records of a file, oldest first."""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line, type=Record)
