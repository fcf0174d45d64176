"""What torch and the compiler say of themselves, as one line of JSON: `python -m evergrad.pytorch.facts`.

`evergrad.doctor` asks in a process of its own: to load both takes seconds, and a broken one may end its process.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from evergrad.pytorch.cuda import runs_on
from evergrad.pytorch.mover import COMPILED


def facts() -> dict[str, Any]:
    """What `evergrad.doctor.Torch` holds, by name."""
    error, cache = None, None
    if COMPILED:
        try:
            from evergrad.pytorch import kernels

            scan: Any = kernels.scan  # a function to type checkers
            cache = scan.stats.cache_path
        except Exception as failure:  # whatever a broken installation raises
            error = f"{type(failure).__name__}: {failure}"
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": devices,
        "device_kernels": _has_device_kernels(),
        "compiler_error": error,
        "cache": cache,
    }


def _has_device_kernels() -> bool:
    try:
        return runs_on(torch.device("cuda"))
    except Exception:  # a broken Triton is as good as none
        return False


if __name__ == "__main__":
    print(json.dumps(facts()))  # noqa: T201 - what it is for
