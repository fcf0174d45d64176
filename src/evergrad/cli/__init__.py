"""The `evergrad` command: what it takes and what it shows. The work is done elsewhere."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from evergrad.config import import_object
from evergrad.errors import ConfigError, EvergradError, LogNotFound, MissingDependency
from evergrad.log import open_log
from evergrad.replica import Replica

if TYPE_CHECKING:
    from evergrad.demo.show import Glimpse

P = ParamSpec("P")
T = TypeVar("T")
app = typer.Typer(
    name="evergrad",
    help="Keeps deployed PyTorch models fresh.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
log_app = typer.Typer(help="Looks into update logs.", no_args_is_help=True)
app.add_typer(log_app, name="log")
_out = Console(highlight=False)
_EXTRA_OF = {"torch": "torch", "kserve": "serve", "matplotlib": "report", "sklearn": "demo", "scipy": "demo"}


def _named_errors(command: Callable[P, T]) -> Callable[P, T]:
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


@app.command()
@_named_errors
def run(config: Annotated[Path, typer.Argument(help="The run as TOML.", show_default=False)]) -> None:
    """Keeps a model fresh from a stream: train, publish, record."""
    from evergrad import pipeline

    sys.path.insert(0, os.getcwd())  # import paths in the file name the user's own modules
    settings = pipeline.load_run(config)
    with _progress("{task.fields[text]}") as bars:
        bar = bars.add_task("", total=None, text="")

        def observe(done: pipeline.Progress) -> None:
            sent = f"{done.updates:,} updates, {done.update_bytes:,} bytes"
            text = f"{done.examples:,} examples, {sent}, loss {done.loss:.4f}"
            bars.update(bar, text=text + (", held" if done.held else ""))

        found = pipeline.run(**settings, observe=observe)
    table = _table()
    for name, value in {
        "examples": f"{found.examples:,}",
        "training steps": f"{found.steps:,}",
        "prequential loss": f"{found.loss:.4f}",
        "prequential score": f"{found.score:.4f}",
        "updates": f"{found.updates:,}, {found.update_bytes:,} bytes in all",
        "of full pushes": f"{found.fraction_of_full_pushes:.3%}",
        "version": f"{found.version}, digest {found.digest:016x}",
    }.items():
        table.add_row(name, value)
    _out.print(table)


@app.command()
@_named_errors
def serve(
    log: Annotated[str, typer.Argument(help="The update log, for example file:updates.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(help="How to build the module, package.module:callable. Default: what the log says."),
    ] = None,
    name: Annotated[str, typer.Option(help="The model's name in URLs.")] = "model",
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.")] = 8080,
) -> None:
    """Serves the newest version of a log's model over HTTP (Open Inference Protocol), and keeps it fresh."""
    from evergrad.pytorch.bridge import ReplicaModule
    from evergrad.serve import server

    replica = Replica(log)
    try:
        replica.sync()
    except EvergradError as error:
        if replica.stats().version is None:
            raise
        typer.echo(f"evergrad: serving version {replica.version} for now: {error}", err=True)
    path = model or replica.log.model
    if path is None:
        raise ConfigError(
            "--model", "this log does not say how to build its module; name it as package.module:callable"
        )
    sys.path.insert(0, os.getcwd())
    servable = ReplicaModule(import_object(path, "--model")(), replica)
    server.serve(
        servable,
        name=name,
        host=host,
        port=port,
        on_start=lambda url: print(f"serving {name} at version {replica.version} on {url}", flush=True),  # noqa: T201
    )


@log_app.command("show")
@_named_errors
def show(
    log: Annotated[str, typer.Argument(help="The update log, for example file:updates.", show_default=False)],
    last: Annotated[int, typer.Option(help="How many of the newest updates to list.")] = 10,
) -> None:
    """Shows a log's model, snapshots and newest updates, and replays it to check every digest."""
    opened = open_log(log)
    schema = opened.schema
    replica = Replica(opened)
    if not opened.begun():
        raise LogNotFound(log)
    version = replica.sync()
    summary = _table()
    snapshots, updates = opened.snapshots(), opened.updates()
    for key, value in {
        "model": f"{len(schema.tensors)} tensors, {schema.elements:,} elements, {schema.nbytes:,} bytes",
        "schema": schema.fingerprint,
        "built by": opened.model or "not said",
        "versions": f"{version}, the newest {_ago(replica.staleness_s())} stale",
        "digest": f"{replica.digest:016x}, checked at every update since the newest snapshot",
        "snapshots": ", ".join(map(str, snapshots[-5:]))
        + (f" ({len(snapshots)} in all)" if len(snapshots) > 5 else ""),
        "updates": f"{len(updates):,}",
    }.items():
        summary.add_row(key, value)
    _out.print(summary)
    rows = Table("version", "run", "elements", "bytes", "digest", box=None, pad_edge=False)
    for number in updates[-last:] if last > 0 else []:
        found = opened.read(number)
        if found is not None:
            update, size = found
            cells = (
                str(number),
                f"{update.run:016x}",
                f"{update.elements:,}",
                f"{size:,}",
                f"{update.digest_after:016x}",
            )
            rows.add_row(*cells)
    _out.print(rows)


@app.command()
@_named_errors
def demo(
    data: Annotated[
        Path | None,
        typer.Option(envvar="EVERGRAD_DATA", help="A folder with MNIST. Default: scikit-learn's digits."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the log, the records and the report go.")] = Path("evergrad-demo"),
    density: Annotated[float | None, typer.Option(help="Fraction of the weights that move at each step.")] = None,
    forward: Annotated[
        Literal["deployed", "master"] | None, typer.Option(help="Closed or open loop. Default: as fits the data.")
    ] = None,
    seed: int = 0,
    examples: Annotated[int | None, typer.Option(help="A shorter or longer stream than usual.", min=100)] = None,
    kill_server_at: Annotated[
        float | None, typer.Option(help="Kill the server (SIGKILL) after this fraction of the stream.")
    ] = None,
) -> None:
    """Drifting digits, a server in another process, and proof that it follows. Status 1 where digests differ."""
    # Trainer and server share the cores, and more compute threads than cores only wait for each other. Torch reads this
    # when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))
    from evergrad.demo.show import Demo, summary_rows

    with _progress(
        "[green]served {task.fields[served]:.1%}[/] [red]never updated {task.fields[frozen]:.1%}[/] "
        "{task.fields[sent]:,} bytes in {task.fields[updates]:,} updates, {task.fields[stale]}"
    ) as bars:
        bar = bars.add_task("", total=1.0, served=0.0, frozen=0.0, sent=0, updates=0, stale="training the first model")
        told = 0

        def look(now: Glimpse) -> None:
            nonlocal told
            stale = f"{_ago(now.staleness_s)} stale" + (f", {now.restarts} restarts" if now.restarts else "")
            fields: dict[str, Any] = {"served": now.served, "frozen": now.frozen, "sent": now.update_bytes}
            bars.update(bar, completed=now.fraction, updates=now.updates, stale=stale, **fields)
            if not _out.is_terminal and now.fraction * 10 >= told + 1:
                told += 1
                line = f"{now.fraction:4.0%}  served {now.served:.1%}  never updated {now.frozen:.1%}  "
                _out.print(line + f"{now.update_bytes:,} bytes in {now.updates:,} updates  {stale}", soft_wrap=True)

        result = Demo(
            out,
            data=data,
            density=density,
            forward=forward,
            seed=seed,
            examples=examples,
            kill_server_at=kill_server_at,
            look=look,
        ).run()
    table = _table()
    for key, value in summary_rows(result).items():
        table.add_row(key, value)
    _out.print(table)
    _out.print(f"report: {out / 'report.html'}, picture: {out / 'accuracy.png'}", soft_wrap=True)
    if not result.equal:
        raise typer.Exit(1)


def _progress(text: str) -> Progress:
    columns = (BarColumn(bar_width=20), TaskProgressColumn(), TextColumn(text), TimeRemainingColumn(compact=True))
    return Progress(*columns, console=_out, disable=not _out.is_terminal)


def _table() -> Table:
    return Table(box=None, show_header=False, pad_edge=False)


def _ago(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{1000 * seconds:.0f} ms"
