"""python -m experiments.prapas2021 mnist|cifar10 [--model NAME] [--seeds N] [--quick] [--data DIR] [--out DIR]

Stopped and started again, it goes on with the cells that are not done.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import os
import sys
from pathlib import Path

from rich.console import Console

from evergrad.errors import ConfigError, EvergradError
from experiments.prapas2021.cells import Setup
from experiments.prapas2021.grid import Cell, grid
from experiments.prapas2021.protocol import MODELS_OF, PROTOCOLS, quick
from experiments.prapas2021.run import CellFailed, Settings, records_in, run_grid
from experiments.prapas2021.show import print_tables, write_all
from experiments.prapas2021.summary import summarise
from experiments.prapas2021.watch import Watch


def main(told: list[str] | None = None) -> int:
    """The exit status: 0, or 1 with a word on why, or 130 where it was interrupted."""
    arguments = _parser().parse_args(told)
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)
    try:
        settings = _settings(arguments)
        Setup(
            settings.protocol, settings.data, settings.out, weights=settings.weights
        ).fresh()  # it names what is missing
        cells = _chosen(grid(settings.protocol, arguments.seeds), arguments.cells)
        if arguments.show:
            records = records_in(settings)
        else:
            with Watch(console) as watch:
                records = run_grid(settings, cells, watch)
        found = summarise(records)
        print_tables(console, found)
        console.print(f"{write_all(found, settings.out)}", soft_wrap=True)
    except (EvergradError, CellFailed) as error:
        print(f"prapas2021: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prapas2021: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.prapas2021", description="The experiments of Prapas et al. 2021."
    )
    data = os.environ.get("EVERGRAD_DATA", "data")
    cores = os.cpu_count() or 1
    parser.add_argument("dataset", choices=PROTOCOLS)
    parser.add_argument("--model", help="for cifar10: resnet18 (default), mobilenetv2, resnet50 or densenet161")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, the first examples: to see that it works")
    parser.add_argument("--data", type=Path, default=Path(data), help="holds mnist/, cifar-10-batches-bin/")
    parser.add_argument("--out", type=Path, help="default: build/prapas2021/DATASET-MODEL")
    parser.add_argument("--jobs", type=int, help=f"processes side by side; default: one a core ({cores}), or one a GPU")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each process; default: 1")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--weights", type=Path, help="what models begin with: safetensors, or a state dict of torch")
    parser.add_argument("--retrain-epochs", type=int, help="of full retraining; default: as in the paper")
    parser.add_argument("--show", action="store_true", help="run nothing: tables and report of what is done so far")
    parser.add_argument("--cells", help="only those of this name, for example 'closed-*' or 'proactive-8,retrained'")
    return parser


def _settings(arguments: argparse.Namespace) -> Settings:
    protocol = PROTOCOLS[arguments.dataset]
    model = arguments.model or protocol.model
    if model not in MODELS_OF[arguments.dataset]:
        raise ConfigError("model", f"must be one of {', '.join(MODELS_OF[arguments.dataset])}, not {model!r}")
    for name in ("seeds", "jobs", "threads", "retrain_epochs"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(name, f"must be 1 or more, not {value}")
    protocol = dataclasses.replace(protocol, model=model)
    if arguments.quick:
        protocol, arguments.seeds = quick(protocol), 1
    if arguments.retrain_epochs is not None:
        protocol = dataclasses.replace(protocol, retrain_epochs=arguments.retrain_epochs)
    if arguments.weights is not None and not arguments.weights.is_file():
        raise ConfigError("weights", f"there is no file {arguments.weights}")
    size = "-quick" if arguments.quick else ""
    return Settings(
        protocol=protocol,
        data=arguments.data,
        out=arguments.out or Path("build/prapas2021") / f"{arguments.dataset}-{model}{size}",
        jobs=arguments.jobs or (1 if arguments.device != "cpu" else os.cpu_count() or 1),
        threads=arguments.threads,
        device=arguments.device,
        weights=arguments.weights,
    )


def _chosen(cells: list[Cell], patterns: str | None) -> list[Cell]:
    if patterns is None:
        return cells
    chosen = [
        cell
        for cell in cells
        if cell.kind == "first" or any(fnmatch.fnmatchcase(cell.name, each) for each in patterns.split(","))
    ]
    if all(cell.kind == "first" for cell in chosen):
        names = dict.fromkeys(cell.name for cell in cells)
        raise ConfigError("cells", f"none is called {patterns!r}; there are {', '.join(names)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
