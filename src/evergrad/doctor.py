"""What this installation can do, and what stands between: for a user, and for whoever helps one.

    examine ──> here: Python, which packages there are, inotify
            ──> in a process of its own: torch and numba, which are slow to load, and may not load (`pytorch.facts`)
            ──> the log, where one is named: by reading alone

Nothing here prints, and nothing here loads an optional package.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from evergrad import __version__
from evergrad.errors import EvergradError, LogNotFound, LogUnavailable, ReadOnlyLog
from evergrad.log import UpdateLog, open_log
from evergrad.log.local import LocalStore
from evergrad.log.watch import Calls, Inotify

_FACTS = (sys.executable, "-m", "evergrad.pytorch.facts")
_LOADING_S = 120.0  # torch from a slow disk
Find = Callable[[str, str], str | None]
Selection = Literal["numba", "torch", "none"]
Writing = Literal["permitted", "denied", "not tried", "read-only kind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package that Evergrad uses.

    Attributes:
        version: None: it is not installed.
        needed_for: what is lost without it.
        extra: of Evergrad, that brings it; "": Evergrad itself does; None: none does.
    """

    name: str
    version: str | None
    needed_for: str
    extra: str | None

    @property
    def install(self) -> str | None:
        """The command that brings it; None: torch's own builds do."""
        if self.extra is None:
            return None
        return f"pip install 'evergrad[{self.extra}]'" if self.extra else "pip install evergrad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """What torch and numba say in a fresh process of this environment.

    Attributes:
        threads: that torch computes with.
        cuda: the version of CUDA that torch was built for; None: for the CPU alone.
        devices: the names of the CUDA devices that torch sees.
        device_kernels: whether Triton's kernels would select on one; otherwise torch does, which is slower.
        compiler_error: why numba, which is installed, cannot be used; None: it can, or it is not installed.
        cache: the folder in which numba keeps compiled code; None: it found none that it may write to.
    """

    threads: int
    cuda: str | None
    devices: tuple[str, ...]
    device_kernels: bool
    compiler_error: str | None
    cache: str | None


@dataclass(slots=True, kw_only=True)
class LogFindings:
    """What can be done with a log from here, as far as reading tells.

    Attributes:
        url: None: not even opened.
        error: why readers cannot begin or reach the head; None: nothing was found that keeps them from it.
        schema, tensors, nbytes, model: the schema's fingerprint, the model's size, and the import path that builds it.
        listed: whether its objects can be listed, which publishers need, and readers do not.
        listing_error: why not, where it is not the kind of place.
        writing: "not tried": only a write would tell.
        watched: whether readers here are woken by a new update; otherwise they poll.
        snapshot, head: the newest versions that have a snapshot, and that there are.
        staleness_s: seconds since the arrival of the newest example that the head learned from; None: not known.
    """

    url: str | None = None
    error: str | None = None
    schema: str | None = None
    tensors: int | None = None
    nbytes: int | None = None
    model: str | None = None
    listed: bool = False
    listing_error: str | None = None
    writing: Writing = "not tried"
    watched: bool = False
    snapshot: int | None = None
    head: int | None = None
    staleness_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that `examine` found.

    Attributes:
        cores: that this process may use.
        torch: None: it is not installed, or cannot be loaded.
        torch_error: why it cannot be loaded.
        selection: what chooses and moves elements of models on the CPU. "torch" is slower; "none": nothing can.
        omp_num_threads: the variable of that name, which sets torch's threads.
        inotify_error: why followers of local logs poll here; None: new files wake them.
        log: None: none was named.
    """

    evergrad: str
    python: str
    executable: str
    platform: str
    cores: int
    packages: tuple[Package, ...]
    torch: Torch | None
    torch_error: str | None
    selection: Selection
    omp_num_threads: str | None
    inotify_error: str | None
    log: LogFindings | None

    @property
    def ok(self) -> bool:
        """Whether what was asked for works."""
        return self.log is None or self.log.error is None


# The name that is imported, the name that is installed, the extra, and what needs it.
_PACKAGES: tuple[tuple[str, str, str | None, str], ...] = (
    ("numpy", "numpy", "", "everything"),
    ("msgspec", "msgspec", "", "everything"),
    ("xxhash", "xxhash", "", "everything"),
    ("obstore", "obstore", "", "everything"),
    ("typer", "typer", "cli", "the evergrad command"),
    ("rich", "rich", "cli", "the evergrad command"),
    ("torch", "torch", "torch", "Publisher, Trainer, run, attach; evergrad run, serve and demo"),
    ("numba", "numba", "torch", "compiled selection; without it torch selects, which is slower"),
    ("triton", "triton", None, "compiled selection on CUDA; without it torch selects, which is slower"),
    ("kserve", "kserve", "serve", "evergrad serve and demo"),
    ("onnxruntime", "onnxruntime", "onnx", "adapters.onnx"),
    ("river", "river", "drift", "the trigger OnDrift"),
    ("pyarrow", "pyarrow", "parquet", "histories from and to Parquet, and from Arrow tables"),
    ("matplotlib", "matplotlib", "report", "the report of evergrad demo"),
    ("sklearn", "scikit-learn", "demo", "evergrad demo"),
)


def examine(
    log: str | UpdateLog | None = None,
    *,
    find: Find | None = None,
    ask_torch: Callable[[], Torch | str] | None = None,
    system: Calls | None = None,
    environment: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.time,
) -> Findings:
    """Looks at this installation, and at a log where one is named. Raises nothing: what fails is a finding.

    Args:
        log: a URL (see `evergrad.log.open_log`) or an open log.
        find: gives the version of a package by the name that is imported and the one that is installed, or None.
        ask_torch: gives what torch says, or why it says nothing; not called where torch is not installed.
        system: the calls of inotify.
        environment: variables by name.
        clock: seconds since 1970.
    """
    find = find or installed
    packages = tuple(
        Package(name=name, version=find(module, name), needed_for=needed_for, extra=extra)
        for module, name, extra, needed_for in _PACKAGES
    )
    has = {package.name for package in packages if package.version is not None}
    said = (ask_torch or in_a_fresh_process)() if "torch" in has else None
    torch = said if isinstance(said, Torch) else None
    selection: Selection = "none"
    if torch is not None and torch.compiler_error is None:
        selection = "numba" if "numba" in has else "torch"
    return Findings(
        evergrad=__version__,
        python=platform.python_version(),
        executable=sys.executable,
        platform=platform.platform(),
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        packages=packages,
        torch=torch,
        torch_error=said if isinstance(said, str) else None,
        selection=selection,
        omp_num_threads=environment.get("OMP_NUM_THREADS"),
        inotify_error=_inotify_error(system),
        log=None if log is None else examine_log(log, clock),
    )


def installed(module: str, distribution: str) -> str | None:
    """The version of a package, which is not loaded; None where it could not be imported."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:  # no origin: a folder that happens to have its name
        return None
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def in_a_fresh_process(command: Sequence[str] = _FACTS) -> Torch | str:
    """What torch and numba say there; or, in one line, why they say nothing."""
    try:
        done = subprocess.run(  # noqa: S603 - our own command line
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LOADING_S, check=False
        )
        if done.returncode == 0:
            return msgspec.json.decode(done.stdout.splitlines()[-1], type=Torch)
    except (OSError, subprocess.TimeoutExpired, msgspec.MsgspecError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    if done.returncode < 0:
        return f"the process ended: {signal.strsignal(-done.returncode)}"
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return said[-1] if said else f"the process ended with status {done.returncode}"


def _inotify_error(system: Calls | None) -> str | None:
    try:
        Inotify(tempfile.gettempdir(), system=system).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def examine_log(log: str | UpdateLog, clock: Callable[[], float] = time.time) -> LogFindings:
    """Reads a log's first objects, newest snapshot's header and newest update; see `LogFindings`. Raises nothing."""
    found = LogFindings()
    try:
        opened = log if isinstance(log, UpdateLog) else open_log(log)
        found.url = opened.url
        schema = opened.schema
        found.schema, found.tensors, found.nbytes = schema.fingerprint, len(schema.tensors), schema.nbytes
        found.model = opened.model
        if isinstance(opened.store, LocalStore):
            found.writing = "permitted" if opened.store.may_write() else "denied"
        watch = opened.watch()
        if watch is not None:
            watch.close()
        found.watched = watch is not None
        _find_head(opened, found, clock)
    except EvergradError as error:
        found.error = f"{type(error).__name__}: {error}"
    return found


def _find_head(log: UpdateLog, found: LogFindings, clock: Callable[[], float]) -> None:
    listed = -1
    try:
        listed, found.listed = log.head(), True
    except ReadOnlyLog:
        found.writing = "read-only kind"
    except LogUnavailable as error:
        found.listing_error = str(error)
    begin = next(log.begin_versions(-1), None)
    if begin is None:
        raise LogNotFound(log.url)
    found.snapshot = begin
    newest_us = log.snapshot_reader(log.snapshot_chunks(begin), begin).info.newest_us
    found.head = max(listed, begin) if found.listed else _last_by_name(log, begin)
    update = log.read(found.head)
    if update is not None:
        newest_us = update[0].newest_us or newest_us
    if newest_us:
        found.staleness_s = clock() - newest_us / 1e6


def _last_by_name(log: UpdateLog, version: int) -> int:
    """The newest version from `version` on, by names alone: in steps that double, and then halve."""
    step = 1
    while log.read(version + step) is not None:
        version, step = version + step, 2 * step
    while step > 1:
        step //= 2
        if log.read(version + step) is not None:
            version += step
    return version
