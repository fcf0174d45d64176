"""What the command lines of the experiments have in common."""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from evergrad.errors import ConfigError, EvergradError
from experiments.cell import Cell
from experiments.run import CellFailed


def add_options(parser: argparse.ArgumentParser, *, data: str) -> None:
    """Those of every grid; `data` says what the folder of that name holds."""
    cores = os.cpu_count() or 1
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, a few examples: to see that it works")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("EVERGRAD_DATA", "data")), help=data)
    parser.add_argument("--out", type=Path, help="where results go")
    parser.add_argument("--jobs", type=int, help=f"processes side by side; default: one a core ({cores}), or one a GPU")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each process; default: 1")
    parser.add_argument("--show", action="store_true", help="run nothing: tables and report of what is done so far")
    parser.add_argument("--cells", help="only those of this name, for example 'closed-*' or 'proactive-8,retrained'")


def check_numbers(arguments: argparse.Namespace, *names: str) -> None:
    """Raises ConfigError where one is given and below 1."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(name, f"must be 1 or more, not {value}")


def chosen(cells: list[Cell], patterns: str | None) -> list[Cell]:
    """The cells of these names, and the initial trainings. Raises ConfigError where there are none."""
    if patterns is None:
        return cells
    found = [
        cell
        for cell in cells
        if cell.kind == "first" or any(fnmatch.fnmatchcase(cell.name, each) for each in patterns.split(","))
    ]
    if all(cell.kind == "first" for cell in found):
        names = dict.fromkeys(cell.name for cell in cells)
        raise ConfigError("cells", f"none is called {patterns!r}; there are {', '.join(names)}")
    return found


def status_of(name: str, body: Callable[[Console], None]) -> int:
    """The exit status: 0, or 1 with a word on why, or 130 where it was interrupted."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)
    try:
        body(console)
    except (EvergradError, CellFailed) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
