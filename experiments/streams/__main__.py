"""python -m experiments.streams movielens|bikeshare|rotating|permuted [--seeds N] [--quick] [--data DIR] [--out DIR]

Stopped and started again, it goes on with the cells that are not done.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path

from rich.console import Console

from experiments.command import add_options, check_numbers, chosen, status_of
from experiments.run import Settings, records_in, run_grid
from experiments.streams.grid import Protocol, grid, steps_of
from experiments.streams.show import headline, print_tables, write_all
from experiments.streams.subjects import SUBJECTS, load
from experiments.streams.summary import summarise
from experiments.watch import Watch


def main(told: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.streams", description="Streams that drift.")
    parser.add_argument("subject", choices=SUBJECTS)
    add_options(parser, data="holds movielens-latest-small-2016/, bikeshare/, mnist/")
    return status_of("streams", functools.partial(_run, parser.parse_args(told)))


def _run(arguments: argparse.Namespace, console: Console) -> None:
    check_numbers(arguments, "seeds", "jobs", "threads")
    subject = load(arguments.subject, arguments.data, quick=arguments.quick)
    protocol = Protocol.of(subject, quick=arguments.quick)
    size = "-quick" if arguments.quick else ""
    settings = Settings(
        package="experiments.streams",
        protocol=protocol,
        data=arguments.data,
        out=arguments.out or Path("build/streams") / f"{subject.name}{size}",
        jobs=arguments.jobs or os.cpu_count() or 1,
        threads=arguments.threads,
    )
    cells = chosen(grid(1 if arguments.quick else arguments.seeds), arguments.cells)
    if arguments.show:
        records = records_in(settings)
    else:
        with Watch(console, functools.partial(headline, subject)) as watch:
            records = run_grid(settings, cells, lambda cell: steps_of(cell, protocol), watch)
    found = summarise(records)
    print_tables(console, subject, found)
    console.print(f"{write_all(subject, found, settings.out)}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
