"""`evergrad serve`: one server process, or several that share a port and their downloads."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evergrad.config import import_object
from evergrad.errors import ConfigError, EvergradError, LogNotFound, NotSynced
from evergrad.log import UpdateLog, open_log
from evergrad.log.local import LocalStore
from evergrad.log.signature import read_signature
from evergrad.replica import Replica

if TYPE_CHECKING:
    from evergrad.serve.access import Tls
    from evergrad.serve.feedback import Feedback
    from evergrad.serve.servable import Late, Types
    from evergrad.serve.server import Candidate, Servable, Settings

_Model = Annotated[
    str | None,
    typer.Option(help="How to build the module, package.module:callable. Default: the program that the log holds."),
]
_TrustFactory = Annotated[
    bool,
    typer.Option(
        "--trust-factory",
        help="Where the log holds no program, import what it names instead: code that whoever can write it chooses.",
    ),
]
_Input = Annotated[
    str | None, typer.Option("--input", help="What the model takes, e.g. image:FP32:-1,1,28,28; -1: any length.")
]
_MaxStaleness = Annotated[float | None, typer.Option(help="Seconds; staler than that it answers, and is not ready.")]
_Candidate = Annotated[
    str | None,
    typer.Option(help="The log of a second model; LOG itself: the version of now is held against newer ones."),
]
_Feedback = Annotated[
    Path | None,
    typer.Option(help="A folder for answered requests and the labels that come back, for evergrad run to follow."),
]
_Token = Annotated[
    str | None, typer.Option(envvar="EVERGRAD_TOKEN", help="What requests carry as a bearer token.", hidden=True)
]


def serve(
    log: Annotated[str, typer.Argument(help="The update log, for example file:updates.", show_default=False)],
    model: _Model = None,
    trust_factory: _TrustFactory = False,
    name: Annotated[str, typer.Option(help="The model's name in URLs.")] = "model",
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free one.")] = 8080,
    grpc_port: Annotated[int | None, typer.Option(help="Serve gRPC there too; 0: any free one.")] = None,
    device: Annotated[str, typer.Option(help="Where the module computes: cpu, cuda, cuda:1.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that share the ports and the downloads.", min=1)] = 1,
    input_: _Input = None,
    batch_rows: Annotated[int, typer.Option(help="Most rows computed at once; 1: each request alone.")] = 32,
    batch_delay_ms: Annotated[float, typer.Option(help="Longest wait for more requests; none when idle.")] = 2.0,
    max_staleness: _MaxStaleness = None,
    candidate: _Candidate = None,
    candidate_share: Annotated[float, typer.Option(help="Fraction of the requests that go to it.")] = 0.1,
    shadow: Annotated[bool, typer.Option(help="The candidate's answers are only compared.")] = False,
    feedback: _Feedback = None,
    feedback_timeout: Annotated[float, typer.Option(help="Seconds that a request waits for its labels.")] = 3600.0,
    tls_cert: Annotated[Path | None, typer.Option(help="A certificate chain (PEM): serves HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    token: _Token = None,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
    share: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serves the newest version of a log's model (Open Inference Protocol, REST and gRPC), and keeps it fresh.

    The environment's EVERGRAD_TOKEN is the bearer token that requests must carry, if it is set.
    """
    from evergrad.serve.access import Token
    from evergrad.serve.batch import Batching
    from evergrad.serve.server import Candidate, Settings
    from evergrad.serve.signature import TensorType

    if candidate is not None and (workers > 1 or worker is not None):
        raise ConfigError("--candidate", "needs one worker: promoting it is a call to one process")
    settings = Settings(
        name=name,
        host=host,
        port=port,
        grpc_port=grpc_port,
        batching=Batching(rows=batch_rows, delay_s=batch_delay_ms / 1000),
        max_staleness_s=max_staleness,
        input=None if input_ is None else TensorType.parse(input_),
        token=None if token is None else Token(token),
        tls=_tls(tls_cert, tls_key),
        feedback=_feedback(feedback, feedback_timeout),
        worker=worker,
    )
    if workers > 1:
        from evergrad.serve.workers import run_workers

        run_workers(sys.argv[1:], workers, settings)
        return
    sys.path.insert(0, os.getcwd())
    replica = Replica(_opened(log, share))
    stable, trial = _servable(replica, model, device, trust_factory), None
    if candidate is not None:
        other = _servable(_beside(replica, log, candidate), model, device, trust_factory)
        trial = Candidate(servable=other, share=candidate_share, shadow=shadow)
    _run(stable, settings, trial)


def _tls(cert: Path | None, key: Path | None) -> Tls | None:
    from evergrad.serve.access import Tls

    if (cert is None) != (key is None):
        raise ConfigError("--tls-cert", "needs --tls-key, and the other way round")
    return None if cert is None or key is None else Tls(cert=cert, key=key)


def _feedback(path: Path | None, timeout_s: float) -> Feedback | None:
    from evergrad.serve.feedback import Feedback

    return None if path is None else Feedback(path=path, timeout_s=timeout_s)


def _beside(replica: Replica, log: str, candidate: str) -> Replica:
    """The candidate's replica; of the served log itself, whose newer versions are then the candidate's alone."""
    if candidate == log:
        replica.rollback(replica.version)  # holds it there
    return Replica(candidate)


def _opened(log: str, share: Path | None) -> str | UpdateLog:
    if share is None:
        return log
    from evergrad.log.shared import SharedStore

    try:
        store = open_log(log).store
    except LogNotFound:  # only a place on this machine can be missing so far
        return log
    return log if isinstance(store, LocalStore) else UpdateLog(SharedStore(store, share, log), log)


def _servable(replica: Replica, model: str | None, device: str, trust_factory: bool) -> Late:
    """A module that follows `replica`; where it cannot be built yet, one that waits for that, and says so."""
    from evergrad.serve.servable import Late

    late = Late(replica, _builder(replica, model, device, trust_factory))
    try:
        replica.sync()
    except (LogNotFound, NotSynced) as error:
        typer.echo(f"evergrad: waiting for the first version: {error}", err=True)
    except EvergradError as error:
        if replica.stats().version is None:
            raise
        typer.echo(f"evergrad: serving version {replica.version} for now: {error}", err=True)
    waits = late.look()
    if waits is not None and replica.stats().version is not None:
        typer.echo(f"evergrad: {waits}", err=True)
    return late


def _builder(
    replica: Replica, model: str | None, device: str, trust_factory: bool
) -> Callable[[], tuple[Servable, Types | None]]:
    """What builds the servable; a named module is made here, so that what is wrong with it ends the command at once."""
    from evergrad.pytorch.bridge import ReplicaModule
    from evergrad.pytorch.module_of import module_by
    from evergrad.pytorch.placed import PlacedModule
    from evergrad.serve.signature import recorded_types

    named = import_object(model, "--model")() if model else None

    def build() -> tuple[Servable, Types | None]:
        module, types = named, None
        if module is None:
            signature = read_signature(replica.log)
            module = module_by(replica.log, signature, trust_factory=trust_factory)
            types = None if signature is None else recorded_types(signature)
        return ReplicaModule(module, replica) if device == "cpu" else PlacedModule(module, replica, device), types

    return build


def _run(servable: Late, settings: Settings, candidate: Candidate | None) -> None:
    from evergrad.serve.server import Server

    server = Server(servable, settings, candidate=candidate)
    version = None if servable.missing else servable.replica.stats().version

    def on_start(url: str) -> None:
        what = "no version yet" if version is None else f"version {version}"
        grpc = "" if server.grpc_port is None else f" and gRPC on port {server.grpc_port}"
        print(f"serving {settings.name} at {what} on {url}{grpc}\n", end="", flush=True)  # noqa: T201

    if settings.worker is not None:
        threading.Thread(target=_stop_with_parent, args=(server.stop,), daemon=True).start()
    server.run(on_start)


def _stop_with_parent(stop: Callable[[], None]) -> None:
    # The parent holds the other end, and says nothing: the end of the stream is the end of the parent.
    while os.read(0, 1):
        pass
    stop()
