"""A log that grows in a folder, and a web server of that folder which knows what it was asked for."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from evergrad.log import UpdateLog, open_log
from evergrad.schema import Schema
from evergrad.update import State
from tests.builders import RUN, new_state, snapshot_of, steps, update_of, values
from tests.clients.random_log import every_dtype
from tests.unit.log.places import Silent, running


@dataclass
class Asked:
    """The names that readers asked for."""

    names: list[str] = field(default_factory=list)
    _first: dict[str, Callable[[], object]] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, name: str) -> None:
        with self._changed:
            self._first.pop(name, lambda: None)()
            self.names.append(name)
            self._changed.notify_all()

    def when(self, name: str, then: Callable[[], object]) -> None:
        """Calls `then` once, before the first answer about `name`."""
        self._first[name] = then

    def wait_for(self, name: str) -> None:
        """Waits until somebody asks for `name` from now on."""
        with self._changed:
            start = len(self.names)
            assert self._changed.wait_for(lambda: name in self.names[start:], 60), f"nobody asked for {name}"


class _Folder(Silent, SimpleHTTPRequestHandler):
    def __init__(self, *args: object, asked: Asked, directory: str) -> None:
        self._asked = asked
        super().__init__(*args, directory=directory)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._asked.add(self.path.lstrip("/"))
        super().do_GET()


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, Asked]]:
    """The URL of the folder, and what is asked for there."""
    asked = Asked()
    handler = partial(_Folder, asked=asked, directory=str(folder))
    with running(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as url:
        yield url, asked


class Writer:
    """Publishes small moves of a model that is large enough for folds to be worth it."""

    def __init__(self, folder: Path, run: int = RUN) -> None:
        self.folder, self.run, self.version = folder, run, 0
        self.log: UpdateLog = open_log(str(folder), create=True)
        self.state: State = new_state(every_dtype(), run % 1000)
        self.log.begin(snapshot_of(self.state, 0, run=run))

    @property
    def told(self) -> dict[str, object]:
        """What a reader of the newest version says."""
        return {"version": self.version, "digest": f"{self.state.digest:016x}"}

    def append(self, count: int = 1, *, folds: bool = True) -> None:
        floats, integers = (next(g for g in self.state.schema.groups if g.dtype == d) for d in ("F32", "I64"))
        for _ in range(count):
            rng = np.random.default_rng(self.version)
            at = np.sort(rng.choice(floats.size, 9, replace=False)) + floats.start
            moved = values([integers.start], [self.version], "I64")
            update = update_of(self.state, self.version, steps(list(at), 0.25), moved)
            self.log.append(update)
            self.state.commit(self.state.check(update, self.version))
            self.version = update.version
            if folds:
                self.log.write_folds(self.version, self.state)

    def snapshot(self) -> None:
        self.log.write_snapshot(snapshot_of(self.state, self.version, run=self.run))

    def update_path(self, version: int) -> Path:
        return self.folder / f"updates/{version:012d}.eg"

    def grow(self) -> None:
        """A new generation: the model has another tensor from the next version on."""
        tensors = [(spec.name, spec.dtype, spec.shape) for spec in self.log.schema.tensors]
        self.state = new_state(Schema([*tensors, ("late", "F32", (5,))]), 9)
        snapshot = snapshot_of(self.state, self.version + 1, run=self.run)
        self.version, _ = self.log.begin_anew(snapshot, self.run + 1)

    def begun_anew(self) -> Writer:
        """Another log in this place; a reader finds either of them, or a moment of none."""
        for part in sorted(self.folder.iterdir()):
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        return Writer(self.folder, self.run + 1)
