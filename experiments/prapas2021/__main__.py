"""python -m experiments.prapas2021 mnist|cifar10 [--model NAME] [--seeds N] [--quick] [--data DIR] [--out DIR]

Stopped and started again, it goes on with the cells that are not done.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
from pathlib import Path

from rich.console import Console

from evergrad.errors import ConfigError
from evergrad.records import Record
from experiments.command import add_options, check_numbers, chosen, status_of
from experiments.prapas2021.cells import Setup
from experiments.prapas2021.grid import grid, steps_of
from experiments.prapas2021.protocol import MODELS_OF, PROTOCOLS, TRIGGERS, Protocol, quick
from experiments.prapas2021.show import print_tables, write_all
from experiments.prapas2021.summary import summarise
from experiments.run import Settings, records_in, run_grid
from experiments.watch import Watch


def main(told: list[str] | None = None) -> int:
    """The exit status."""
    return status_of("prapas2021", functools.partial(_run, _parser().parse_args(told)))


def _run(arguments: argparse.Namespace, console: Console) -> None:
    settings, protocol = _settings(arguments)
    Setup(protocol, settings.data, settings.out, weights=settings.weights).fresh()  # it names what is missing
    cells = chosen(grid(protocol, arguments.seeds), arguments.cells)
    if arguments.show:
        records = records_in(settings)
    else:
        with Watch(console, _accuracies) as watch:
            records = run_grid(settings, cells, lambda cell: steps_of(cell, protocol), watch)
    found = summarise(records)
    print_tables(console, found)
    console.print(f"{write_all(found, settings.out)}", soft_wrap=True)


def _accuracies(record: Record) -> str:
    return ", ".join(f"{name} {score['accuracy']:.2%}".strip() for name, score in record.get("scores", {}).items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.prapas2021", description="The experiments of Prapas et al. 2021."
    )
    parser.add_argument("dataset", choices=PROTOCOLS)
    parser.add_argument("--model", help="for cifar10: resnet18 (default), mobilenetv2, resnet50 or densenet161")
    add_options(parser, data="holds mnist/, cifar-10-batches-bin/")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--weights", type=Path, help="what models begin with: safetensors, or a state dict of torch")
    parser.add_argument("--retrain-epochs", type=int, help="of full retraining; default: as in the paper")
    parser.add_argument("--sparse-trigger", type=int, choices=TRIGGERS, help="of sparse training; default: 8, as there")
    return parser


def _settings(arguments: argparse.Namespace) -> tuple[Settings, Protocol]:
    protocol = PROTOCOLS[arguments.dataset]
    model = arguments.model or protocol.model
    if model not in MODELS_OF[arguments.dataset]:
        raise ConfigError("model", f"must be one of {', '.join(MODELS_OF[arguments.dataset])}, not {model!r}")
    check_numbers(arguments, "seeds", "jobs", "threads", "retrain_epochs")
    protocol = dataclasses.replace(protocol, model=model)
    if arguments.quick:
        protocol, arguments.seeds = quick(protocol), 1
    for name in ("retrain_epochs", "sparse_trigger"):
        if (value := getattr(arguments, name)) is not None:
            protocol = dataclasses.replace(protocol, **{name: value})
    if arguments.weights is not None and not arguments.weights.is_file():
        raise ConfigError("weights", f"there is no file {arguments.weights}")
    size = "-quick" if arguments.quick else ""
    settings = Settings(
        package="experiments.prapas2021",
        protocol=protocol,
        data=arguments.data,
        out=arguments.out or Path("build/prapas2021") / f"{arguments.dataset}-{model}{size}",
        jobs=arguments.jobs or (1 if arguments.device != "cpu" else os.cpu_count() or 1),
        threads=arguments.threads,
        device=arguments.device,
        weights=arguments.weights,
    )
    return settings, protocol


if __name__ == "__main__":
    sys.exit(main())
