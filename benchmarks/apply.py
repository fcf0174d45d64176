"""What an update costs a replica: read, checksum, decode, all checks, digest, undo record, write. And a rollback.

    python -m benchmarks.apply [--repeats 9] [--json]

A replica with numpy alone follows a log in memory; `apply_ms` is the time of one `sync` over a run of updates, divided
by their number; `rollback_ms` that of going back by one version, and on. Each figure is the median of the repeats. The
model of 100 million elements gets updates of the same 11,174 elements as the one of 11 million at 1e-3.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from experiments.machine import machine
from obstore.store import MemoryStore

from benchmarks.synthetic import SyntheticWriter
from evergrad.log import UpdateLog
from evergrad.log.store import ObstoreStore
from evergrad.replica import Replica

RESNET18 = 11_173_962
UPDATES = 15  # below the first fold


def measure(elements: int, k: int, repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds an update and milliseconds a rollback by one version, per repeat."""
    writer = SyntheticWriter(UpdateLog(ObstoreStore(MemoryStore(), "memory:apply"), "memory:apply"), elements, k)
    replica = Replica(writer.log)
    replica.sync()
    apply_ms, rollback_ms = [], []
    for _ in range(repeats + 1):
        writer.append(UPDATES)
        start = time.perf_counter()
        replica.sync()
        apply_ms.append(1000 * (time.perf_counter() - start) / UPDATES)
        start = time.perf_counter()
        for version in range(replica.version - 1, replica.version - UPDATES, -1):
            replica.rollback(to=version)
        rollback_ms.append(1000 * (time.perf_counter() - start) / (UPDATES - 1))
        replica.resume()
        replica.sync()
        if replica.digest != writer.state.digest:
            raise RuntimeError("the replica is not the writer's model")
    return apply_ms[1:], rollback_ms[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    arguments = parser.parse_args()
    k = round(1e-3 * RESNET18)
    small, back = measure(RESNET18, k, arguments.repeats)
    large, back_large = measure(100_000_000, k, arguments.repeats)
    result: dict[str, Any] = {
        "apply_ms": statistics.median(small),
        "rollback_ms": statistics.median(back),
        "apply_ms_100m": statistics.median(large),
        "rollback_ms_100m": statistics.median(back_large),
        "ratio_100m": statistics.median(large) / statistics.median(small),
        "spread_ms": [min(small), max(small)],
        "elements": RESNET18,
        "k": k,
        "machine": machine(),
    }
    if not arguments.json:
        print({key: round(value, 4) for key, value in result.items() if isinstance(value, float)})
    print(json.dumps(result))


if __name__ == "__main__":
    main()
