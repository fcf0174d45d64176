"""`evergrad doctor`: says what `evergrad.doctor` found, in plain lines that can be pasted into a report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
import typer

from evergrad import doctor
from evergrad.cli.console import ago
from evergrad.doctor import Findings, LogFindings, Package

_WRITING = {
    "permitted": "permissions allow it; only a write would tell more",
    "denied": "no: permissions deny it",
    "not tried": "not tried: only a write would tell",
    "read-only kind": "no: this kind of place can only be read",
}
Row = tuple[str, str]


def examine(
    log: Annotated[str | None, typer.Argument(help="An update log to look at, too: only read.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Says what this installation can do and what stands between. Status 1 where LOG cannot be read."""
    found = doctor.examine(log)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    else:
        for name, text in _rows(found):
            typer.echo(f"{name:<16}{text}")
    if not found.ok:
        raise typer.Exit(1)


def _rows(found: Findings) -> Iterator[Row]:
    yield "evergrad", found.evergrad
    yield "python", f"{found.python}, {found.executable}"
    yield "platform", f"{found.platform}, {found.cores} cores"
    for package in found.packages:
        yield package.name, package.version or _missing(package)
    yield from _training(found)
    polling = f"polled: no inotify here ({found.inotify_error})"
    yield "local logs", "watched by inotify" if found.inotify_error is None else polling
    if found.log is not None:
        yield from _log(found.log)


def _missing(package: Package) -> str:
    how = package.install or "torch's own builds for CUDA bring it"
    return f"missing, for {package.needed_for}: {how}"


def _training(found: Findings) -> Iterator[Row]:
    torch = found.torch
    if torch is None:
        why = "is not installed" if found.torch_error is None else f"does not load: {found.torch_error}"
        yield "publishing", f"impossible: torch {why}"
        return
    if found.selection == "none":
        yield "publishing", f"impossible: numba does not load: {torch.compiler_error}"
    elif found.selection == "numba":
        yield "selection", "compiled by numba"
        anew = "kept nowhere, made anew in each process: let NUMBA_CACHE_DIR name a folder that can be written to"
        yield "compiled code", f"kept in {torch.cache}" if torch.cache else anew
    else:
        yield "selection", "by torch, which is slower: numba is missing"
    variable = "is not set" if found.omp_num_threads is None else f"is {found.omp_num_threads}"
    yield "threads", f"torch computes with {torch.threads}; OMP_NUM_THREADS {variable}"
    selected = "selection there is compiled by Triton" if torch.device_kernels else "torch would select there"
    built = "torch is built for the CPU alone" if torch.cuda is None else f"torch is built for CUDA {torch.cuda}"
    yield "cuda devices", f"{', '.join(torch.devices) or 'none'}; {built}; {selected}"


def _log(log: LogFindings) -> Iterator[Row]:
    if log.url is not None:
        yield "log", log.url
    if log.schema is not None:
        yield "schema", f"{log.schema}: {log.tensors:,} tensors, {log.nbytes:,} bytes"
        yield "built by", log.model or "not said"
        refused = "not listed" if log.listing_error is None else log.listing_error
        yield "listing", "works" if log.listed else f"{refused}; replicas do without, publishers cannot"
        yield "writing", _WRITING[log.writing]
        yield "new versions", "wake replicas here" if log.watched else "are polled for by replicas here"
    if log.head is not None:
        stale = "staleness not known" if log.staleness_s is None else f"{ago(log.staleness_s)} stale"
        yield "head", f"version {log.head:,}, {stale}; newest snapshot {log.snapshot:,}"
    yield "readable", "yes" if log.error is None else f"no: {log.error}"
