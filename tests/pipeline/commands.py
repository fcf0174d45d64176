"""The `evergrad` command in a process of its own, forked from one that has imported what takes seconds to import."""

from __future__ import annotations

import multiprocessing as mp
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_IMPORTED = ["evergrad.cli", "evergrad.pipeline", "evergrad.pytorch.kernels", "torch._dynamo", "torch.export"]
_FORKED = mp.get_context("forkserver")
_FORKED.set_forkserver_preload(_IMPORTED)


def evergrad_command(folder: Path, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Runs `evergrad` there to its end."""
    with tempfile.TemporaryDirectory() as told:
        out, err = Path(told) / "out", Path(told) / "err"
        process = _FORKED.Process(target=_run, args=(folder, arguments, out, err))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["evergrad", *arguments], timeout_s)
        status = process.exitcode
        process.close()
        return subprocess.CompletedProcess(["evergrad", *arguments], status, out.read_text(), err.read_text())


def _run(folder: Path, arguments: tuple[str, ...], out: Path, err: Path) -> None:
    """In the new process: what `python -m evergrad` finds there, with output to files."""
    os.chdir(folder)
    for path, stream in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    sys.path.insert(0, "")
    sys.argv = ["evergrad", *arguments]

    from evergrad.__main__ import main

    main()
