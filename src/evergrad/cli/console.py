"""What all commands share: how they show things, and how their errors end them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from evergrad.errors import EvergradError, MissingDependency

P = ParamSpec("P")
T = TypeVar("T")
stdout = Console(highlight=False)
_EXTRA_OF = {
    "torch": "torch",
    "kserve": "serve",
    "matplotlib": "report",
    "sklearn": "demo",
    "scipy": "demo",
    "river": "drift",
}


def named_errors(command: Callable[P, T]) -> Callable[P, T]:
    """Our own errors end the command with one line and status 1, without a stack trace."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except (EvergradError, ModuleNotFoundError) as error:
            if isinstance(error, ModuleNotFoundError):
                if error.name not in _EXTRA_OF:
                    raise
                error = MissingDependency(error.name, _EXTRA_OF[error.name])
            typer.echo(f"evergrad: {type(error).__name__}: {error}", err=True)
            raise typer.Exit(1) from error

    return wrapped


def progress(text: str) -> Progress:
    """A bar and a text, where the output is a terminal."""
    columns = (BarColumn(bar_width=20), TaskProgressColumn(), TextColumn(text), TimeRemainingColumn(compact=True))
    return Progress(*columns, console=stdout, disable=not stdout.is_terminal)


def table_of_facts() -> Table:
    """Names and values, one a line."""
    return Table(box=None, show_header=False, pad_edge=False)


def ago(seconds: float) -> str:
    """A time in a unit that suits it."""
    if seconds == float("inf"):
        return "?"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{1000 * seconds:.0f} ms"
