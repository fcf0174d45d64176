"""One strategy with one seed: what is run, and by what name its results go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "first", "never-updated", "online", "retrained", "proactive", "recent", "prioritised",
    "masked", "closed", "open", "auto", "overhead",
]  # fmt: skip
Selection = Literal["top", "random", "saliency"]
_WITH_TRIGGER: tuple[Kind, ...] = ("proactive", "recent", "prioritised")
LOOPS: tuple[Kind, ...] = ("closed", "open", "auto")  # of a `Publisher`


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One strategy with one seed.

    Attributes:
        kind: first (the initial training), masked (the authors' sparse training), closed, open and auto (ours;
            see the `forward` of a `Publisher`), overhead (dense, the authors' and ours side by side), recent
            and prioritised (proactive, newer examples more often, or those of a high loss; with a density: ours,
            auto), and the baselines.
        trigger: new examples a step. density, selection: of sparse training.
    """

    kind: Kind
    seed: int
    trigger: int = 8
    density: float | None = None
    selection: Selection = "top"

    @property
    def name(self) -> str:
        """Without the seed."""
        if self.density is None:
            return f"{self.kind}-{self.trigger}" if self.kind in _WITH_TRIGGER else self.kind
        exponent = f"{self.density:.0e}".replace("e-0", "e-")
        return f"overhead-{exponent}" if self.kind == "overhead" else f"{self.kind}-{self.selection}-{exponent}"
