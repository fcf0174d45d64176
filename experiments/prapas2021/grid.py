"""The grid: which strategies, with which settings, and how long each takes in training steps."""

from __future__ import annotations

from experiments.cell import LOOPS, Cell, Kind, Selection
from experiments.prapas2021.protocol import DENSITIES, PRIORITISED, TRIGGERS, Protocol

OVERHEAD_STEPS = 1024
_OF_BOTH: dict[Selection, tuple[Kind, ...]] = {"top": ("masked", *LOOPS), "saliency": ("auto",)}
_SPARSE: dict[str, dict[Selection, tuple[Kind, ...]]] = {
    "mnist": {**_OF_BOTH, "random": ("masked", "closed", "open")},
    "cifar10": _OF_BOTH,
}


def grid(protocol: Protocol, seeds: int) -> list[Cell]:
    """All cells; seed by seed, each one's initial training first."""
    return [cell for seed in range(seeds) for cell in _of_seed(protocol, seed)]


def _of_seed(protocol: Protocol, seed: int) -> list[Cell]:
    return [
        Cell(kind="first", seed=seed),
        Cell(kind="never-updated", seed=seed),
        Cell(kind="online", seed=seed, trigger=protocol.online),
        *(Cell(kind="proactive", seed=seed, trigger=trigger) for trigger in TRIGGERS),
        *(Cell(kind="prioritised", seed=seed, trigger=trigger) for trigger in PRIORITISED),
        *(
            Cell(kind=kind, seed=seed, trigger=protocol.sparse_trigger, density=density, selection=selection)
            for selection, kinds in _SPARSE[protocol.data].items()
            for density in DENSITIES
            for kind in kinds
        ),
        Cell(kind="prioritised", seed=seed, trigger=protocol.sparse_trigger, density=1e-3, selection="saliency"),
        *(
            Cell(kind="overhead", seed=seed, trigger=protocol.sparse_trigger, density=density, selection="saliency")
            for density in DENSITIES
        ),
        Cell(kind="retrained", seed=seed),
    ]


def steps_of(cell: Cell, protocol: Protocol) -> int:
    """Training steps, or, where there are none, about as many as its predictions take the time of."""
    if cell.kind == "first":
        return protocol.first_epochs * -(-protocol.first // protocol.batch_size)
    if cell.kind == "retrained":
        every, ends = protocol.retrain_every, range(protocol.first, protocol.first + protocol.stream + 1)
        return protocol.retrain_epochs * sum(-(-end // protocol.batch_size) for end in ends[every::every])
    if cell.kind == "overhead":
        return 3 * min(OVERHEAD_STEPS, protocol.stream // cell.trigger)
    if cell.kind == "never-updated":
        return max(1, protocol.stream // 1000)
    return -(-protocol.stream // cell.trigger)
