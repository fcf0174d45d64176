"""The grid of a stream: the paper's strategies, and proactive training that prefers newer examples."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.cell import LOOPS, Cell
from experiments.streams.subject import Subject

DENSITIES = (1e-2, 1e-3, 1e-4)
TRIGGERS = (8, 16, 32, 64)
ONLINE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """All that results depend on; see `Subject` for the numbers."""

    subject: str
    quick: bool
    first: int
    first_epochs: int
    stream: int
    retrain_every: int
    retrain_epochs: int
    batch_size: int
    lr: float
    half_life: int
    window: int

    @classmethod
    def of(cls, subject: Subject, *, quick: bool) -> Protocol:
        """The protocol of a subject as it was loaded."""
        return cls(
            subject=subject.name,
            quick=quick,
            first=len(subject.first),
            first_epochs=subject.first_epochs,
            stream=len(subject.stream),
            retrain_every=subject.retrain_every,
            retrain_epochs=subject.retrain_epochs,
            batch_size=subject.batch_size,
            lr=subject.lr,
            half_life=subject.half_life,
            window=subject.window,
        )


def grid(seeds: int) -> list[Cell]:
    """All cells; seed by seed, each one's initial training first."""
    return [cell for seed in range(seeds) for cell in _of_seed(seed)]


def _of_seed(seed: int) -> list[Cell]:
    return [
        Cell(kind="first", seed=seed),
        Cell(kind="never-updated", seed=seed),
        Cell(kind="online", seed=seed, trigger=ONLINE),
        *(Cell(kind="proactive", seed=seed, trigger=trigger) for trigger in TRIGGERS),
        Cell(kind="recent", seed=seed),
        *(Cell(kind=kind, seed=seed, density=density) for density in DENSITIES for kind in LOOPS),
        *(Cell(kind="auto", seed=seed, density=density, selection="saliency") for density in DENSITIES),
        Cell(kind="recent", seed=seed, density=1e-3, selection="saliency"),
        Cell(kind="retrained", seed=seed),
    ]


def steps_of(cell: Cell, protocol: Protocol) -> int:
    """Training steps, or, where there are none, about as many as its predictions take the time of."""
    size, first, stream = protocol.batch_size, protocol.first, protocol.stream
    if cell.kind == "first":
        return protocol.first_epochs * -(-first // size)
    if cell.kind == "retrained":
        ends = range(first, first + stream + 1, protocol.retrain_every)[1:]
        return protocol.retrain_epochs * sum(-(-end // size) for end in ends)
    if cell.kind == "never-updated":
        return max(1, stream // 1000)
    return -(-stream // cell.trigger)
