"""How many bytes an update takes, on real traces, against the information-theoretic bound and other ways to send it.

    python -m benchmarks.wire [--data DIR] [--steps 300] [--json]

For each model and density, the medians over the updates of a trace (see `benchmarks.traces`) after the first 20:

- `bits_per_index`: the index stream alone; `bound_ratio`: that against log2 C(n, k), what k of n positions hold when
  all sets are as likely;
- `reachable`: parameters at places of a kernel that any update moves, `reachable_ratio`: the index stream against the
  bound for these alone. With images of 32x32, most 3x3 kernels in ResNet18's last stage see nothing but padding around
  their middle: those weights have no gradient, never move, and flatter `bound_ratio`;
- `bits_per_element`, `bytes`: the whole update without statistics, header included; `reduction`: a full push of the
  model (float32) against that; `reduction_with_buffers`: against the whole update, statistics and counters included;
- `raw_bytes`: 4-byte index and 4-byte value an element; `full_bytes`: all tensors;
- `zstd1_bytes`, `zstd3_bytes`: what Zstandard at level 1 and 3 makes of the whole update told densely, as the float32
  difference of every element, or, where that is smaller, the exclusive or of its bits (every tenth update).

`codec`: million elements a second that plain numpy codes and decodes, of steps at uniform positions.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from experiments.machine import machine

from benchmarks.traces import TASKS, add_arguments, traces
from evergrad.codec import decode, encode
from evergrad.codec.streams import write_indices
from evergrad.log import UpdateLog, open_log
from evergrad.schema import Schema
from evergrad.update import State, Steps, Update, short_fingerprint
from evergrad.update.digest import Array, Indices

SKIPPED = 20
ZSTD_EVERY = 10


def bound_bits(elements: int, k: int) -> float:
    """log2 of the number of ways to choose k of so many elements."""
    return (math.lgamma(elements + 1) - math.lgamma(k + 1) - math.lgamma(elements - k + 1)) / math.log(2)


def measure(log: UpdateLog, model: str, density: float) -> dict[str, Any]:
    """One row of the results."""
    state, rows = log.read_snapshot(0).state, []
    moved = np.zeros(state.schema.groups[0].size, dtype=np.bool_)
    for version in log.updates():
        found = log.read(version)
        if found is None:
            raise RuntimeError(f"version {version} is not in the trace")
        update, size = found
        before = state.arrays[0].copy() if version % ZSTD_EVERY == 0 else None
        state.commit(state.check(update, version - 1))
        moved[_stepped(update)] = True
        if version > SKIPPED:
            rows.append(_row(update, size, state, before))
    if not rows:
        raise SystemExit(f"a trace of {SKIPPED} steps or fewer has nothing to measure; take more --steps")
    keys = dict.fromkeys(key for row in rows for key in row)
    median = {key: statistics.median(row[key] for row in rows if key in row) for key in keys}
    full, there = log.schema.nbytes, reachable(log.schema, moved)
    return {
        "model": model,
        "density": density,
        **median,
        "reachable": there,
        "reachable_ratio": median["bits_per_index"] * median["k"] / bound_bits(there, int(median["k"])),
        "full_bytes": full,
        "reduction": full / median["bytes"],
        "reduction_with_buffers": full / median["bytes_with_buffers"],
        "updates": len(rows),
    }


def reachable(schema: Schema, moved: npt.NDArray[np.bool_]) -> int:
    """How many float32 elements lie where some kernel of their tensor was moved; other tensors count whole."""
    total = 0
    for spec in schema.tensors:
        if spec.dtype == "F32":
            kernels = moved[spec.offset : spec.offset + spec.size].reshape(spec.shape)
            seen = float(kernels.any(axis=(0, 1)).mean()) if len(spec.shape) == 4 else 1.0
            total += round(spec.size * seen)
    return total


def _stepped(update: Update) -> Indices:
    return np.concatenate([section.indices for section in update.sections if isinstance(section, Steps)])


def _row(update: Update, size: int, state: State, before: Array | None) -> dict[str, float]:
    steps = tuple(section for section in update.sections if isinstance(section, Steps))
    indices = _stepped(update)
    k, elements = len(indices), state.schema.groups[0].size
    stream = 8 * len(write_indices(indices)[1])
    alone = len(encode(replace(update, sections=steps)))
    row = {
        "k": k,
        "bits_per_index": stream / k,
        "bound_ratio": stream / bound_bits(elements, k),
        "bits_per_element": 8 * alone / k,
        "bytes": alone,
        "bytes_with_buffers": size,
        "statistics": update.elements - k,
        "raw_bytes": 8 * k,
    }
    if before is not None:
        after = state.arrays[0]
        dense = (after - before).tobytes(), (after.view("u4") ^ before.view("u4")).tobytes()
        for level in (1, 3):
            row[f"zstd{level}_bytes"] = min(len(zstandard.compress(data, level)) for data in dense)
    return row


def throughput(k: int, repeats: int = 7) -> dict[str, float]:
    """Million elements a second, coded and decoded, medians."""
    rng = np.random.default_rng(0)
    schema = Schema([("w", "F32", (100 * k,))])
    indices = np.unique(rng.integers(0, 100 * k, k))
    steps = Steps(indices, rng.random(len(indices)) < 0.5, 0.1)
    update = Update(
        base_version=0, version=1, run=1, schema=short_fingerprint(schema), digest_before=0, digest_after=0,
        newest_us=0, sections=(steps,),
    )  # fmt: skip
    coded, decoded = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        data = encode(update)
        middle = time.perf_counter()
        decode(data, schema)
        coded.append(len(indices) / (middle - start) / 1e6)
        decoded.append(len(indices) / (time.perf_counter() - middle) / 1e6)
    return {
        "elements": len(indices),
        "encode_m_per_s": statistics.median(coded),
        "decode_m_per_s": statistics.median(decoded),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--models", nargs="+", choices=sorted(TASKS), default=sorted(TASKS))
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    arguments = parser.parse_args()
    rows = []
    for model in arguments.models:
        for density, path in traces(model, arguments.data, Path(arguments.out), arguments.steps).items():
            rows.append(measure(open_log(f"file:{path}"), model, density))
            if not arguments.json:
                print({key: round(value, 4) if isinstance(value, float) else value for key, value in rows[-1].items()})
    codec = [throughput(k) for k in (100_000, 1_000_000)]
    print(json.dumps({"results": rows, "codec": codec, "zstandard": zstandard.__version__, "machine": machine()}))


if __name__ == "__main__":
    main()
