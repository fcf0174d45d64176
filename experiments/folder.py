"""The folder that an experiment writes its results to: one run at a time."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evergrad.errors import ConfigError


@contextmanager
def taken(out: Path) -> Iterator[None]:
    """Inside, the folder is there and this run's own, without what a run before it left half done.

    Raises:
        ConfigError: another run has it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back with the file, also by a process that dies
        except BlockingIOError as error:
            raise ConfigError("out", f"another run writes to {out}; wait for it, or name another folder") from error
        for left in out.glob("cell-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
