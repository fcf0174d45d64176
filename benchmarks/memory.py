"""The peak memory of a replica, in a process of its own: what it takes beyond the model and its undo ring.

    python -m benchmarks.memory [--elements 100000000] [--json]

The process loads a snapshot from a local directory, applies updates and folds of 11,174 elements an update until its
undo ring is full, loads a later snapshot over the model, and keeps its state in a cache. `beyond_mb` is its peak
resident memory, less what it had after its imports, the model, and the ring's bound; at most 32 is promised.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.machine import machine

from benchmarks.synthetic import SyntheticWriter
from evergrad.log import open_log
from evergrad.replica import Replica

UNDO_BYTES = 16 << 20
K = 11_174
VERSIONS = 600


def resident_mb() -> float:
    """Resident memory of this process now, in MB of 10^6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak_mb() -> float:
    """The peak of that since this program began; `ru_maxrss` would remember the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def follow(log: str, cache: str) -> None:
    """What the measured process does; prints one JSON line."""
    before = resident_mb()
    replica = Replica(log, cache=cache, undo_bytes=UNDO_BYTES)
    for _ in range(3):
        print(replica.sync(), flush=True)
        sys.stdin.readline()  # the writer goes on meanwhile
    replica.close()
    peak = peak_mb()
    stats = replica.stats()
    print(json.dumps({"before_mb": before, "peak_mb": peak, "updates": stats.updates, "snapshots": stats.snapshots}))


def measure(elements: int) -> dict[str, Any]:
    """Runs a writer here and a replica in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        log = open_log(f"{folder}/log", create=True)
        writer = SyntheticWriter(log, elements, K)
        command = [sys.executable, "-m", "benchmarks.memory", "--follow", f"{folder}/log", "--cache", f"{folder}/cache"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            answers, asks = process.stdout, process.stdin
            if answers is None or asks is None:
                raise RuntimeError("no pipes")
            answers.readline()
            writer.append(VERSIONS, folds=True)
            print(file=asks, flush=True)
            answers.readline()
            lost = writer.version + 1
            writer.append(10)
            log.store.delete(f"updates/{lost:012d}.eg")  # sends the reader to the snapshot
            log.write_snapshot(writer.snapshot())
            print(file=asks, flush=True)
            answers.readline()
            print(file=asks, flush=True)
            found: dict[str, Any] = json.loads(answers.readline())
    model_mb, ring_mb = writer.state.schema.nbytes / 1e6, UNDO_BYTES / 1e6
    beyond = found["peak_mb"] - found["before_mb"] - model_mb - ring_mb
    return {"beyond_mb": beyond, "model_mb": model_mb, "undo_mb": ring_mb, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=100_000_000)
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    parser.add_argument("--follow", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.follow:
        follow(arguments.follow, arguments.cache)
        return
    print(json.dumps({"elements": arguments.elements, **measure(arguments.elements), "machine": machine()}))


if __name__ == "__main__":
    main()
