"""The `evergrad` command: what it takes and what it shows. The work is done elsewhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from evergrad.cli.console import ago, named_errors, progress, stdout, table_of_facts
from evergrad.cli.doctor import examine
from evergrad.cli.log import log_app
from evergrad.cli.serve import serve
from evergrad.errors import ConfigError

if TYPE_CHECKING:
    from evergrad.demo.show import Glimpse

app = typer.Typer(
    name="evergrad",
    help="Keeps deployed PyTorch models fresh.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(log_app, name="log")
app.command("doctor")(examine)
app.command("serve")(named_errors(serve))


@app.command()
@named_errors
def run(config: Annotated[Path, typer.Argument(help="The run as TOML.", show_default=False)]) -> None:
    """Keeps a model fresh from a stream: train, publish, record."""
    from evergrad import pipeline

    sys.path.insert(0, os.getcwd())  # import paths in the file name the user's own modules
    settings = pipeline.load_run(config)
    with progress("{task.fields[text]}") as bars:
        bar = bars.add_task("", total=None, text="")

        def observe(done: pipeline.Progress) -> None:
            sent = f"{done.updates:,} updates, {done.update_bytes:,} bytes"
            text = f"{done.examples:,} examples, {sent}, loss {done.loss:.4f}"
            bars.update(bar, text=text + (", held" if done.held else ""))

        found = pipeline.run(**settings, observe=observe)
    table = table_of_facts()
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
    stdout.print(table)


@app.command()
@named_errors
def retrain(
    config: Annotated[Path, typer.Argument(help="The run as TOML; it is not going on meanwhile.", show_default=False)],
    version: Annotated[int, typer.Option("--from", help="The version to begin from.", show_default=False)],
    without: Annotated[
        list[str] | None,
        typer.Option(help="Ids of examples to leave out, first:last, the last not included. More than once."),
    ] = None,
) -> None:
    """Trains again from an older version without some examples, and publishes the outcome as one version."""
    from evergrad import pipeline

    sys.path.insert(0, os.getcwd())
    ranges = [_range(text) for text in without or []]
    published = pipeline.retrain_run(pipeline.load_run(config), version=version, without=ranges)
    if published is None:
        typer.echo("nothing differs from what is published")
    else:
        typer.echo(
            f"version {published.version}: trained again from version {version}, {published.update_bytes:,} bytes"
        )


def _range(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ConfigError("--without", f"must be first:last, the first lower, not {text!r}")
    return int(first), int(last)


@app.command()
@named_errors
def demo(
    data: Annotated[
        Path | None,
        typer.Option(envvar="EVERGRAD_DATA", help="A folder with MNIST. Default: scikit-learn's digits."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the log, the records and the report go.")] = Path("evergrad-demo"),
    density: Annotated[float | None, typer.Option(help="Fraction of the weights that move at each step.")] = None,
    forward: Annotated[
        Literal["auto", "deployed", "master"], typer.Option(help="Closed loop, open loop, or as scores say.")
    ] = "auto",
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

    with progress(
        "[green]served {task.fields[served]:.1%}[/] [red]never updated {task.fields[frozen]:.1%}[/] "
        "{task.fields[sent]:,} bytes in {task.fields[updates]:,} updates, {task.fields[stale]}"
    ) as bars:
        bar = bars.add_task("", total=1.0, served=0.0, frozen=0.0, sent=0, updates=0, stale="training the first model")
        told = 0

        def look(now: Glimpse) -> None:
            nonlocal told
            stale = f"{ago(now.staleness_s)} stale" + (f", {now.restarts} restarts" if now.restarts else "")
            fields: dict[str, Any] = {"served": now.served, "frozen": now.frozen, "sent": now.update_bytes}
            bars.update(bar, completed=now.fraction, updates=now.updates, stale=stale, **fields)
            if not stdout.is_terminal and now.fraction * 10 >= told + 1:
                told += 1
                line = f"{now.fraction:4.0%}  served {now.served:.1%}  never updated {now.frozen:.1%}  "
                stdout.print(line + f"{now.update_bytes:,} bytes in {now.updates:,} updates  {stale}", soft_wrap=True)

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
    table = table_of_facts()
    for key, value in summary_rows(result).items():
        table.add_row(key, value)
    stdout.print(table)
    stdout.print(f"report: {out / 'report.html'}, picture: {out / 'accuracy.png'}", soft_wrap=True)
    if not result.equal:
        raise typer.Exit(1)
