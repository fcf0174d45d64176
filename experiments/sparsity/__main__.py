"""python -m experiments.sparsity SUBJECT [--data DIR] [--out DIR] [--optimizer adam|adamw|sgd] [--methods A,B] ...

Stopped and started again, it goes on with the cells that are not done.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from evergrad.errors import ConfigError, EvergradError
from experiments.sparsity.methods import CORE, DENSITIES, METHODS, RATES
from experiments.sparsity.run import Settings, records_in, run
from experiments.sparsity.show import print_rows, write_all
from experiments.sparsity.subjects import GROUNDS
from experiments.sparsity.summary import summarise


def main(told: list[str] | None = None) -> int:
    """The exit status: 0, or 1 with a word on why, or 130 where it was interrupted."""
    arguments = _parser().parse_args(told)
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)
    try:
        settings = _settings(arguments)
        if not arguments.show:
            run(settings, lambda words: console.print(words, markup=False, highlight=False))
        found = summarise(records_in(settings.out))
        print_rows(console, found)
        console.print(f"{write_all(found, settings.out)}", soft_wrap=True)
    except EvergradError as error:
        print(f"sparsity: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sparsity: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sparsity", description="The deployed model's score against bytes sent, by method."
    )
    parser.add_argument("subject", choices=GROUNDS)
    parser.add_argument("--optimizer", choices=RATES, default="adam")
    parser.add_argument(
        "--rates", type=_numbers, help="learning rates, of which dense training chooses; one: no choice"
    )
    parser.add_argument("--methods", default=",".join(CORE), help=f"all, or some of {', '.join(METHODS)}")
    parser.add_argument("--densities", type=_numbers, default=DENSITIES, help="for example 1e-3,1e-4")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("EVERGRAD_DATA", "data")))
    parser.add_argument("--out", type=Path, help="default: build/sparsity/SUBJECT-OPTIMIZER")
    parser.add_argument("--quick", action="store_true", help="one seed, the first examples: to see that it works")
    parser.add_argument("--show", action="store_true", help="run nothing: table and report of what is done so far")
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _settings(arguments: argparse.Namespace) -> Settings:
    methods = list(METHODS) if arguments.methods == "all" else arguments.methods.split(",")
    for name in methods:
        if name not in METHODS:
            raise ConfigError("methods", f"must be of {', '.join(METHODS)}, not {name!r}")
    if arguments.seeds < 1:
        raise ConfigError("seeds", f"must be 1 or more, not {arguments.seeds}")
    if not all(0 < density <= 1 for density in arguments.densities):
        raise ConfigError("densities", f"must lie in (0, 1], not {arguments.densities}")
    rates = arguments.rates or RATES[arguments.optimizer]
    if not all(rate > 0 for rate in rates):
        raise ConfigError("rates", f"must be above 0, not {rates}")
    size = "-quick" if arguments.quick else ""
    return Settings(
        subject=arguments.subject,
        optimizer=arguments.optimizer,
        rates=rates[1:2] or rates if arguments.quick else rates,
        methods=methods,
        densities=arguments.densities,
        seeds=1 if arguments.quick else arguments.seeds,
        data=arguments.data,
        out=arguments.out or Path("build/sparsity") / f"{arguments.subject}-{arguments.optimizer}{size}",
        quick=arguments.quick,
    )


if __name__ == "__main__":
    sys.exit(main())
