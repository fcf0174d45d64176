"""The demo itself: train, deploy to a server in another process, drift, follow, and prove that it followed.

digits ──> first training ──> log <── server process (follows, serves over HTTP)
   `── rotating stream ──> ask the server ──> score ──> history, step, publish ──> log
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evergrad.demo.digits import Digits, RotatingStream, load_digits
from evergrad.demo.lenet import Trained, train_first
from evergrad.demo.server import ServerProcess
from evergrad.errors import ConfigError
from evergrad.gate import Gate
from evergrad.history import History
from evergrad.metrics import Running, Windowed, accuracy
from evergrad.pipeline import Progress, RunSummary, run
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.settings import Forward
from evergrad.records import read_records
from evergrad.report import Plot, draw, write_report
from evergrad.sampling import Uniform
from evergrad.trigger import EveryN

_WINDOW = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How long and how hard: `first` examples for the first training, then `examples` that rotate."""

    first: int
    epochs: int
    examples: int
    batch: int
    degrees: float
    lr: float
    density: float


SETTINGS = {
    "MNIST": Setting(first=10_000, epochs=3, examples=16_000, batch=8, degrees=60, lr=1e-3, density=1e-3),
    "scikit-learn digits": Setting(first=600, epochs=20, examples=24_000, batch=8, degrees=60, lr=2e-3, density=1e-2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Glimpse:
    """The demo at one moment, for a display. Accuracies are over the last 500 examples."""

    fraction: float
    served: float
    frozen: float
    updates: int
    update_bytes: int
    staleness_s: float
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo found. `*_end` are accuracies over the last tenth of the stream; digests are 64-bit numbers."""

    data: str
    served: float
    frozen: float
    served_end: float
    frozen_end: float
    run: RunSummary
    server_version: int
    server_digest: int
    restarts: int
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether the server holds exactly the trainer's deployed model."""
        return (self.server_version, self.server_digest) == (self.run.version, self.run.digest)


class Demo:
    """One demo in the folder `out`, where an earlier demo's files are replaced.

    Args:
        data: a folder with MNIST; None: scikit-learn's digits.
        kill_server_at: a fraction of the stream after which the server is killed with SIGKILL, to see it come back.
        density: of an update; None: as fits the data. forward: see `Publisher`.
        examples: a shorter stream than usual.
        look: called with a `Glimpse` after each batch.
    """

    def __init__(
        self,
        out: Path,
        *,
        data: Path | None = None,
        density: float | None = None,
        forward: Forward = "auto",
        seed: int = 0,
        examples: int | None = None,
        kill_server_at: float | None = None,
        look: Callable[[Glimpse], None] = lambda _: None,
    ) -> None:
        if kill_server_at is not None and not 0 <= kill_server_at < 1:
            raise ConfigError("kill-server-at", f"must lie in [0, 1), not {kill_server_at}")
        self._out, self._seed, self._kill_at, self._look = out, seed, kill_server_at, look
        self.digits = load_digits(data)
        self.setting = SETTINGS[self.digits.name]
        self._density, self._forward = density or self.setting.density, forward
        self.examples = examples or self.setting.examples
        self._served, self._frozen = _Accuracy(self.examples), _Accuracy(self.examples)

    def run(self) -> DemoResult:
        """Runs it all; writes `records.jsonl`, `report.html` and `accuracy.png`.

        Raises:
            MissingDependency, ServerError, and whatever `evergrad.run` raises.
        """
        start = time.monotonic()
        setting, out = self.setting, self._out
        for old in ("updates", "history"):
            shutil.rmtree(out / old, ignore_errors=True)
        (out / "records.jsonl").unlink(missing_ok=True)
        trained, history = self.start(out / "history")
        log = f"file:{out / 'updates'}"
        first = Publisher(trained.model, trained.optimizer, log, density=self._density, factory=trained.factory)
        first.record(self.digits.inputs(np.arange(2)))
        first.detach()
        with ServerProcess(log) as server:
            summary = run(
                model=trained.model,
                loss=trained.loss,
                optimizer=trained.optimizer,
                stream=self.stream(),
                log=log,
                trigger=EveryN(setting.batch),
                sampler=Uniform(seed=self._seed),
                batch_size=128,
                density=self._density,
                forward=self._forward,
                history=history,
                gate=Gate(tolerance=4.0, patience=max(100, self.examples // 24)),
                predict=server.predict,
                score=accuracy,
                observe=lambda progress: self._observe(progress, server, trained),
                records=out / "records.jsonl",
            )
            found = server.wait_for(summary.version, timeout_s=30)
            restarts = server.restarts
        result = DemoResult(
            data=self.digits.name,
            served=self._served.all.value,
            frozen=self._frozen.all.value,
            served_end=self._served.end.value,
            frozen_end=self._frozen.end.value,
            run=summary,
            server_version=found["version"],
            server_digest=int(found["digest"], 16),
            restarts=restarts,
            seconds=time.monotonic() - start,
        )
        _report(out, self.digits, self.setting, result)
        return result

    def start(self, folder: Path) -> tuple[Trained, History]:
        """The model as it is deployed first, and a history in `folder` that holds what it was trained on."""
        setting, first = self.setting, np.arange(self.setting.first)
        x, y = self.digits.inputs(first), self.digits.labels[first]
        history = History(folder)
        history.append({"x": x, "y": y})
        return train_first(x, y, epochs=setting.epochs, lr=setting.lr, seed=self._seed), history

    def stream(self) -> RotatingStream:
        """The digits that come after the first training, turning."""
        setting = self.setting
        return RotatingStream(
            digits=self.digits,
            first=setting.first,
            examples=self.examples,
            batch=setting.batch,
            degrees=setting.degrees,
        )

    def _observe(self, progress: Progress, server: ServerProcess, trained: Trained) -> dict[str, Any]:
        batch, answer = progress.batch, server.last
        self._served.add(progress.score, len(batch))
        frozen = accuracy(trained.predict_frozen(batch.x), batch.y)
        self._frozen.add(float(frozen.mean()), len(batch))
        staleness = answer.staleness_s if answer else float("inf")
        fraction = progress.examples / self.examples
        if self._kill_at is not None and fraction > self._kill_at:
            self._kill_at = None
            server.kill()
        self._look(
            Glimpse(
                fraction=fraction,
                served=self._served.window.value,
                frozen=self._frozen.window.value,
                updates=progress.updates,
                update_bytes=progress.update_bytes,
                staleness_s=staleness,
                restarts=server.restarts,
            )
        )
        return {
            "served": self._served.window.value,
            "frozen": self._frozen.window.value,
            "staleness_s": staleness if np.isfinite(staleness) else None,
            "served_version": answer.version if answer else None,
            "restarts": server.restarts,
        }


class _Accuracy:
    """Over the whole stream, its last tenth, and a moving window."""

    def __init__(self, examples: int) -> None:
        self.all, self.end, self.window = Running(), Running(), Windowed(_WINDOW)
        self._end_after = examples - examples // 10

    def add(self, mean: float, count: int) -> None:
        if self.all.count >= self._end_after:
            self.end.add([mean] * count)
        self.all.add([mean] * count)
        self.window.add([mean] * count)


def summary_rows(result: DemoResult) -> dict[str, str]:
    """The result in words, for terminal and report alike."""
    run_, verdict = result.run, "equal" if result.equal else "DIFFERENT"
    return {
        "data": f"{result.data}, 60 degrees in {run_.examples:,} examples",
        "accuracy, served": f"{result.served:.1%} (last tenth {result.served_end:.1%})",
        "accuracy, never updated": f"{result.frozen:.1%} (last tenth {result.frozen_end:.1%})",
        "updates": f"{run_.updates:,} after {run_.steps:,} training steps",
        "bytes sent": f"{run_.update_bytes:,}, {run_.update_bytes / max(1, run_.updates):.0f} each",
        "of full pushes": f"{run_.fraction_of_full_pushes:.3%}",
        "server restarts": str(result.restarts),
        "digest, trainer": f"{run_.digest:016x} at version {run_.version}",
        "digest, server": f"{result.server_digest:016x} at version {result.server_version}: {verdict}",
        "seconds": f"{result.seconds:.0f}",
    }


def _report(out: Path, digits: Digits, setting: Setting, result: DemoResult) -> None:
    records = [record for record in read_records(out / "records.jsonl") if record["event"] == "batch"]
    x = [record["examples"] for record in records]

    def column(name: str) -> list[float]:
        return [float("nan") if record[name] is None else record[name] for record in records]

    restarts = column("restarts")
    marks = [(x[i], "server killed") for i in range(1, len(x)) if restarts[i] > restarts[i - 1]]
    shown = Plot(
        title=f"{digits.name} turning by {setting.degrees:.0f} degrees: accuracy over the last {_WINDOW} examples",
        x=x,
        x_label="examples seen",
        y_label="accuracy",
        curves={"served, kept fresh by Evergrad": column("served"), "never updated": column("frozen")},
        marks=marks,
    )
    sent = Plot(
        title="Bytes sent",
        x=x,
        x_label="examples seen",
        y_label="bytes",
        curves={
            "updates": np.cumsum(column("update_bytes")).tolist(),
            "full pushes": np.cumsum(
                [result.run.full_push_bytes * (r["version"] is not None) for r in records]
            ).tolist(),
        },
        log_y=True,
    )
    stale = Plot(
        title="Staleness of the served model: seconds since the newest example that it had learned from",
        x=x,
        x_label="examples seen",
        y_label="seconds",
        curves={"staleness": column("staleness_s")},
        log_y=True,
        marks=marks,
    )
    (out / "accuracy.png").write_bytes(draw(shown))
    note = (
        "Every prediction was made by the server, over HTTP, before its label was trained on. "
        "Where the data has fewer examples than the stream, they come again at later angles."
    )
    write_report(
        out / "report.html", title="Evergrad demo", summary=summary_rows(result), plots=[shown, sent, stale], note=note
    )
