"""What a history costs: appending, drawing 128 random rows of 784 bytes, opening.

    python -m benchmarks.history [--rows 100000 1000000 10000000] [--folder DIR] [--json]

The histories have a column of 784 bytes and a label of 8, and were appended in batches of 128. They are read through
once, so that they are in the page cache (10 million rows take 8 GB of it) and their pages in the process's tables;
`first_gather_ms` is what a draw costs a reader that has the second still before it, median of its first 50. Then
draws from the smallest, the next and the largest take turns. Medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from experiments.machine import machine

from evergrad.history import History

BYTES, BATCH = 784, 128
TURNS, DRAWS, FIRST = 60, 50, 50


def fill(folder: Path, rows: int) -> list[float]:
    """Seconds of each append of a batch."""
    rng = np.random.default_rng(0)
    block = rng.integers(0, 256, (BATCH * 64, BYTES), dtype=np.uint8)
    times = []
    with History(folder) as history:
        for first in range(0, rows, BATCH):
            x = block[first % len(block) :][: min(BATCH, rows - first)]
            y = np.arange(first, first + len(x))
            begin = time.perf_counter()
            history.append({"x": x, "y": y})
            times.append(time.perf_counter() - begin)
    return times


def seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def draw(history: History, rng: np.random.Generator, columns: tuple[str, ...]) -> float:
    """Seconds of one draw."""
    ids = rng.integers(history.first, history.end, BATCH)
    return seconds(lambda: history.gather(ids, columns))


def read_through(history: History) -> None:
    for first in range(history.first, history.end, 4096):
        history.gather(np.arange(first, min(first + 4096, history.end)))


def measure(folder: Path, sizes: list[int]) -> dict[str, Any]:
    """Fills a history of each size, then draws from all of them in turns."""
    rng, histories = np.random.default_rng(1), {}
    found: dict[str, Any] = {"append_rows_per_s_by_rows": {}, "first_gather_ms": {}, "open_ms": {}}
    appends: list[float] = []
    for rows in sizes:
        times = fill(folder / str(rows), rows)
        appends += times
        found["append_rows_per_s_by_rows"][rows] = round(BATCH / statistics.median(times))
        with History(folder / str(rows), read_only=True) as history:
            read_through(history)  # into the page cache
        opened = [seconds(lambda at=folder / str(rows): History(at, read_only=True).close()) for _ in range(5)]
        found["open_ms"][rows] = statistics.median(opened) * 1e3
        history = histories[rows] = History(folder / str(rows), read_only=True)
        found["first_gather_ms"][rows] = statistics.median(draw(history, rng, ("x",)) for _ in range(FIRST)) * 1e3
        read_through(history)
    for key, columns in (("gather_ms", ("x",)), ("gather_with_label_ms", ("x", "y"))):
        drawn: dict[int, list[float]] = {rows: [] for rows in sizes}
        for _ in range(TURNS):
            for rows in sizes:
                drawn[rows] += [draw(histories[rows], rng, columns) for _ in range(DRAWS)]
        found[key] = {rows: statistics.median(drawn[rows]) * 1e3 for rows in sizes}
    found["append_rows_per_s"] = round(BATCH / statistics.median(appends))
    medians = found["gather_ms"]
    found["gather_ratio"] = medians[sizes[-1]] / medians[sizes[0]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--folder", help="where the histories are filled, and removed again; default: the system's")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(Path(folder), sorted(arguments.rows))
    if not arguments.json:
        print(f"128 rows of {BYTES} bytes, ms, by rows in the history: {found['gather_ms']}")
        print(f"appended in batches of {BATCH}, rows/s: {found['append_rows_per_s']}")
    print(json.dumps({"row_bytes": BYTES, "batch": BATCH, **found, "machine": machine()}))


if __name__ == "__main__":
    main()
