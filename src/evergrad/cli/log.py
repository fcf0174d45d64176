"""`evergrad log`: looks into update logs, and looks after them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from evergrad import lineage, maintain
from evergrad.cli.console import ago, named_errors, progress, stdout, table_of_facts
from evergrad.errors import ConfigError, LogNotFound, ProgramRefused, ReadOnlyLog, UnsupportedFormat
from evergrad.log import UpdateLog, open_log
from evergrad.log.signature import Signature, read_signature
from evergrad.replica import Replica

log_app = typer.Typer(help="Looks into update logs, and looks after them.", no_args_is_help=True)
Log = Annotated[str, typer.Argument(help="The update log, for example file:updates.", show_default=False)]
_NOT_SAID = "not said"
_MOST_TENSORS = 5
_LAST_DATE_US = 253_402_300_799_000_000  # the end of the year 9999
_NOT_LISTED = "not listed: this kind of place can only be read by name"


@log_app.command("show")
@named_errors
def show(
    log: Log,
    last: Annotated[int, typer.Option(help="How many of the newest updates to list.")] = 10,
) -> None:
    """Shows a log's model, snapshots, folds and newest updates; replays it from the newest snapshot."""
    opened = _opened(log)
    schema, replica, latest = opened.schema, Replica(opened), opened.latest()
    version, signature = replica.sync(), _signature(opened)
    summary = table_of_facts()
    for key, value in {
        "model": f"{len(schema.tensors)} tensors, {schema.elements:,} elements, {schema.nbytes:,} bytes",
        "schema": schema.fingerprint + (f", since version {opened.begins}" if opened.begins else ""),
        "built by": _builder(opened, signature),
        "takes and gives": _types(signature),
        "versions": f"{version}, the newest {ago(replica.staleness_s())} stale",
        "digest": f"{replica.digest:016x}, checked at every update since the newest snapshot",
        "latest.json": "missing or unreadable" if latest is None else f"snapshot {latest.snapshot}, log {latest.log}",
        "snapshots": _listed(lambda: _numbers(opened.snapshots())),
        "folds": _listed(lambda: _folds(opened)),
        "updates": _listed(lambda: f"{len(opened.updates()):,}"),
    }.items():
        summary.add_row(key, value)
    stdout.print(summary)
    rows = Table("version", "run", "elements", "bytes", "digest", "examples", box=None, pad_edge=False)
    for number in range(max(1, version - last + 1), version + 1):
        found = opened.read(number)
        if found is not None:
            update, size = found
            cells = f"{update.run:016x}", f"{update.elements:,}", f"{size:,}", f"{update.digest_after:016x}"
            rows.add_row(str(number), *cells, _ids(update.examples))
    stdout.print(rows)


@log_app.command("blame")
@named_errors
def blame(
    log: Log,
    version: Annotated[int | None, typer.Argument(help="The version to explain.", show_default=False)] = None,
    example: Annotated[
        int | None, typer.Option(help="Instead: the first version that learned from it, by its number in the history.")
    ] = None,
) -> None:
    """Shows which examples led to a version, and what they moved. Status 1 where no version names the example."""
    if (version is None) == (example is None):
        raise ConfigError("VERSION", "name a version or an --example, one of the two")
    opened = _opened(log)
    if version is None:
        version = _first_to_name(opened, example or 0)
    found = lineage.blame(opened, version)
    count = "" if found.examples is None else f", {len(found.examples):,} in all"
    summary = table_of_facts()
    for key, value in {
        "version": str(version),
        "examples": _ids(found.examples) + count,
        "newest arrived": _moment(found.newest_us),
        "run": f"{found.run:016x}",
        "moved": f"{found.elements:,} elements in {len(found.moved)} tensors, {found.update_bytes:,} bytes",
    }.items():
        summary.add_row(key, value)
    for name, elements in found.moved[:_MOST_TENSORS]:
        summary.add_row("", f"{name}: {elements:,}")
    if len(found.moved) > _MOST_TENSORS:
        rest = found.moved[_MOST_TENSORS:]
        summary.add_row("", f"{len(rest)} others: {sum(elements for _, elements in rest):,}")
    stdout.print(summary)


def _builder(log: UpdateLog, signature: Signature | str | None) -> str:
    """How the module is built, in the order in which a server tries it."""
    if isinstance(signature, str):
        return signature
    ways = [f"the import path {log.model}"] if log.model else []
    if signature is not None and signature.program is not None:
        ways.insert(0, f"the program {signature.program}, {signature.program_bytes:,} bytes")
    return ", or ".join(ways) or _NOT_SAID


def _types(signature: Signature | str | None) -> str:
    if signature is None or isinstance(signature, str) or not signature.inputs:
        return _NOT_SAID
    sides = signature.inputs, signature.outputs
    return " -> ".join(", ".join(f"{each.name} {each.dtype} {list(each.shape)}" for each in side) for side in sides)


def _signature(log: UpdateLog) -> Signature | str | None:
    try:
        return read_signature(log)
    except (UnsupportedFormat, ProgramRefused) as error:
        return str(error)


def _first_to_name(log: UpdateLog, example: int) -> int:
    with _observed("versions") as observe:
        found = lineage.first_to_name(log, example, observe)
    if found.unread:
        typer.echo(f"passed over, for they cannot be read: versions {_numbers(list(found.unread))}", err=True)
    if found.version is None:
        held = f"of {found.searched.start} to {found.searched.stop - 1} " if found.searched else ""
        typer.echo(f"no version {held}says that it learned from example {example}")
        raise typer.Exit(1)
    return found.version


@log_app.command("verify")
@named_errors
def verify(log: Log) -> None:
    """Reads and replays everything in a log. Status 1, and a line for each problem, where there is any."""
    with _observed("versions") as observe:
        found = maintain.verify(_opened(log), observe)
    for name, meaning in found.problems:
        typer.echo(f"{name}: {meaning}")
    read = f"{found.updates:,} updates, {found.folds:,} folds and {found.snapshots:,} snapshots, up to {found.head}"
    typer.echo(f"{read}: {len(found.problems) or 'no'} problem{'s' * (len(found.problems) != 1)}")
    if found.problems:
        raise typer.Exit(1)


@log_app.command("fold")
@named_errors
def fold(log: Log) -> None:
    """Writes the folds that are missing, for example after a crash. Harmless to repeat."""
    with _observed("versions") as observe:
        written = maintain.fold(_opened(log), observe)
    for first, last in written:
        typer.echo(f"wrote the fold from {first} to {last}")
    if not written:
        typer.echo("no fold was missing")


@log_app.command("prune")
@named_errors
def prune(
    log: Log,
    keep: Annotated[int, typer.Option(help="Versions back from the newest that readers may be.", min=0)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Deletes what no reader of the newest versions needs."""
    opened = _opened(log)
    names = opened.prunable(keep) if dry_run else opened.prune(keep)
    for name in names:
        typer.echo(f"{'would delete' if dry_run else 'deleted'} {name}")
    typer.echo(f"{len(names):,} objects")


@log_app.command("rollback")
@named_errors
def rollback(
    log: Log,
    to: Annotated[int, typer.Option(help="The version whose state comes back.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Takes every replica back to an older state, by a new version. A publisher that is open must be opened again."""
    opened = _opened(log)
    if not yes:
        typer.confirm(f"take all replicas from version {opened.head()} back to {to}?", abort=True)
    update = maintain.rollback(opened, to)
    typer.echo(f"version {update.version} has the state of version {to}, digest {update.digest_after:016x}")


@log_app.command("diff")
@named_errors
def diff(
    log: Log,
    first: Annotated[int, typer.Argument(help="A version.", show_default=False)],
    second: Annotated[int, typer.Argument(help="Another one.", show_default=False)],
) -> None:
    """Shows how the tensors of two versions differ."""
    found = maintain.differences(_opened(log), first, second)
    rows = Table("tensor", "elements", "differing", "largest", "relative L2", box=None, pad_edge=False)
    for row in found:
        cells = f"{row.elements:,}", f"{row.differing:,}", f"{row.largest:.4g}", f"{row.relative_l2:.4g}"
        rows.add_row(row.name, *cells)
    elements, differing = sum(row.elements for row in found), sum(row.differing for row in found)
    rows.add_row("total", f"{elements:,}", f"{differing:,}", f"{max((r.largest for r in found), default=0):.4g}", "")
    stdout.print(rows)


@log_app.command("export")
@named_errors
def export(
    log: Log,
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.", show_default=False)],
    version: Annotated[int | None, typer.Option(help="Default: the newest.")] = None,
) -> None:
    """Writes any version that a log holds as a safetensors file."""
    opened = _opened(log)
    wanted = Replica(opened).sync() if version is None else version
    try:
        snapshot = maintain.export(opened, out, wanted)
    except OSError as error:
        raise ConfigError("out", f"{out} cannot be written: {error}") from error
    typer.echo(f"{out}: version {snapshot.version}, digest {snapshot.state.digest:016x}")


def _opened(log: str) -> UpdateLog:
    opened = open_log(log)
    _ = opened.schema
    if not opened.begun():
        raise LogNotFound(log)
    return opened


def _listed(tell: Callable[[], str]) -> str:
    try:
        return tell()
    except ReadOnlyLog:
        return _NOT_LISTED


def _ids(examples: range | None) -> str:
    if examples is None:
        return _NOT_SAID
    return f"{examples.start}-{examples.stop - 1}" if len(examples) > 1 else str(examples.start)


def _moment(us: int) -> str:
    if not 0 < us <= _LAST_DATE_US:
        return _NOT_SAID if us == 0 else f"{us} microseconds after 1970"
    return datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S.%f UTC")


def _numbers(versions: list[int]) -> str:
    return ", ".join(map(str, versions[-5:])) + (f" ({len(versions)} in all)" if len(versions) > 5 else "")


def _folds(log: UpdateLog) -> str:
    folds = log.folds()
    size = sum(len(log.store.read(f"folds/{first:012d}-{last:012d}.eg") or b"") for first, last in folds)
    return f"{len(folds):,}, {size:,} bytes"


@contextmanager
def _observed(text: str) -> Iterator[Callable[[int, int], None]]:
    with progress(text) as bars:
        bar = bars.add_task("", total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
