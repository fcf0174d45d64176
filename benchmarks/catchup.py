"""What it costs a replica to catch up: objects, bytes and seconds, 1 to 100,000 versions behind.

    python -m benchmarks.catchup [--versions 100000] [--elements 11173962] [--density 1e-4] [--json]

The log is written as a publisher does by default: an update a version, folds at powers of 16, a snapshot every 1,000
versions. Replicas that stopped at versions on the way then catch up with the end, each counting what it fetches;
`updates_only` is what one object a version would have been.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from experiments.machine import machine
from obstore.store import MemoryStore

from benchmarks.synthetic import SyntheticWriter
from evergrad.log import ObjectStore, UpdateLog, Watch
from evergrad.log.store import ObstoreStore
from evergrad.replica import Replica

BEHIND = (1, 100, 10_000, 100_000)
SNAPSHOT_EVERY = 1000


@dataclass
class CountingStore:
    """Counts what is read from a store."""

    inner: ObjectStore
    objects: int = 0
    missed: int = 0
    nbytes: int = 0

    def read(self, name: str) -> bytes | None:
        data = self.inner.read(name)
        self.missed += data is None
        self._add(0 if data is None else len(data), data is not None)
        return data

    def stream(self, name: str) -> Iterator[bytes] | None:
        chunks = self.inner.stream(name)
        if chunks is None:
            self.missed += 1
            return None
        self._add(0, True)
        return self._counted(chunks)

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._add(len(chunk), False)
            yield chunk

    def _add(self, nbytes: int, found: bool) -> None:
        self.objects += found
        self.nbytes += nbytes

    def create(self, name: str, data: bytes) -> bool:
        return self.inner.create(name, data)

    def replace(self, name: str, data: bytes) -> None:
        self.inner.replace(name, data)

    def delete(self, name: str) -> None:
        self.inner.delete(name)

    def names(self, prefix: str) -> list[str]:
        return self.inner.names(prefix)

    def watch(self, folder: str) -> Watch | None:
        return self.inner.watch(folder)


def measure(versions: int, elements: int, density: float) -> dict[str, Any]:
    """The results, after writing a log of so many versions."""
    store = ObstoreStore(MemoryStore(), "memory:catchup")
    writer = SyntheticWriter(UpdateLog(store, "memory:catchup"), elements, max(1, round(density * elements)))
    waiting: list[tuple[int, CountingStore, Replica]] = []
    update_bytes = fold_bytes = 0
    for version in range(1, versions + 1):
        behind = versions - version + 1
        if behind in BEHIND:
            counting = CountingStore(store)
            waiting.append((behind, counting, Replica(UpdateLog(counting, "memory:catchup"), undo_bytes=1 << 20)))
            waiting[-1][2].sync()
        update_bytes += writer.append(1)
        fold_bytes += writer.log.write_folds(version, writer.state)
        if version % SNAPSHOT_EVERY == 0:
            writer.log.write_snapshot(writer.snapshot())
            if version > SNAPSHOT_EVERY:  # readers begin with the newest; the memory of this benchmark is bounded
                store.delete(f"snapshots/{version - SNAPSHOT_EVERY:012d}.safetensors")
    rows = [_catch_up(*stopped, writer.state.digest, update_bytes / versions) for stopped in waiting]
    return {
        "results": rows[::-1],
        "model_bytes": writer.state.schema.nbytes,
        "update_bytes": update_bytes / versions,
        "fold_bytes_per_update_byte": fold_bytes / update_bytes,
    }


def _catch_up(behind: int, store: CountingStore, replica: Replica, digest: int, mean_bytes: float) -> dict[str, Any]:
    store.objects = store.missed = store.nbytes = 0
    start, before = time.perf_counter(), replica.stats().snapshots
    replica.sync()
    seconds = time.perf_counter() - start
    if replica.digest != digest:
        raise RuntimeError(f"the replica that was {behind} versions behind is not the writer's model")
    return {
        "behind": behind,
        "objects": store.objects,
        "bytes": store.nbytes,
        "seconds": seconds,
        "missed": store.missed,
        "snapshots": replica.stats().snapshots - before,
        "updates_only": {"objects": behind, "bytes": round(behind * mean_bytes)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=100_000)
    parser.add_argument("--elements", type=int, default=11_173_962)
    parser.add_argument("--density", type=float, default=1e-4)
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    arguments = parser.parse_args()
    result = measure(arguments.versions, arguments.elements, arguments.density)
    if not arguments.json:
        for row in result["results"]:
            print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    settings = {"versions": arguments.versions, "elements": arguments.elements, "density": arguments.density}
    print(json.dumps(result | settings | {"machine": machine()}))


if __name__ == "__main__":
    main()
