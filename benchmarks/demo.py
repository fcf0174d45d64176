"""The demo's served accuracy against dense proactive training on the same stream, and against no updates at all.

    python -m benchmarks.demo [--data DIR] [--seeds 3] [--json]

Per seed: the demo with its server process, then the same first training and the same stream with `log=None` (dense,
never deployed). `results` has one row per seed; `gap_end` is dense minus served over the last tenth, in points.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from experiments.machine import machine

from evergrad import EveryN, Uniform, run
from evergrad.demo.show import Demo
from evergrad.metrics import Running, accuracy
from evergrad.pipeline import Progress


def dense_accuracy(demo: Demo, seed: int, folder: Path) -> tuple[float, float]:
    """Prequential accuracy of dense proactive training: over the whole stream, and over its last tenth."""
    trained, history = demo.start(folder / "dense")
    end = Running()

    def observe(progress: Progress) -> None:
        if progress.examples > demo.examples - demo.examples // 10:
            end.add([progress.score] * len(progress.batch))

    found = run(
        model=trained.model,
        loss=trained.loss,
        optimizer=trained.optimizer,
        stream=demo.stream(),
        trigger=EveryN(demo.setting.batch),
        sampler=Uniform(seed=seed),
        batch_size=128,
        history=history,
        score=accuracy,
        observe=observe,
    )
    return found.score, end.value


def measure(data: Path | None, seed: int) -> dict[str, Any]:
    """One row of the results."""
    with tempfile.TemporaryDirectory() as folder:
        demo = Demo(Path(folder), data=data, seed=seed)
        result = demo.run()
        dense, dense_end = dense_accuracy(demo, seed, Path(folder))
    return {
        "data": result.data,
        "seed": seed,
        "density": demo.setting.density,
        "served": result.served,
        "served_end": result.served_end,
        "dense": dense,
        "dense_end": dense_end,
        "frozen_end": result.frozen_end,
        "gap_end": 100 * (dense_end - result.served_end),
        "gain_end": 100 * (result.served_end - result.frozen_end),
        "bytes_per_update": result.run.update_bytes / result.run.updates,
        "fraction_of_full_pushes": result.run.fraction_of_full_pushes,
        "digests_equal": result.equal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with MNIST; default: scikit-learn's digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        rows.append(measure(arguments.data, seed))
        if not arguments.json:
            print({key: round(value, 4) if isinstance(value, float) else value for key, value in rows[-1].items()})
    median_gap = statistics.median(row["gap_end"] for row in rows)
    print(json.dumps({"results": rows, "median_gap_end": median_gap, "machine": machine()}))


if __name__ == "__main__":
    main()
