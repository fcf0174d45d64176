"""The methods: what gradients are taken at, what the deployed weights follow, and which elements of them move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Deploy = Literal["dense", "sparse", "masked"]
Forward = Literal["master", "deployed", "random", "between", "by-score", "by-lag"]
Select = Literal["top", "random", "layer", "saliency"]
Pace = Literal["fixed", "cold", "drift", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to train and deploy.

    Attributes:
        deploy: dense (the whole model at each step), sparse (a `Publisher`), masked (the paper's gradient masking; a
            replica gets the selected weights).
        forward: the copy that gradients are taken at: one of both, either with the same chance, the point in the
            middle, or the one that `choice.ByScore` or `choice.ByLag` names.
        average: decay of an average of the master (EMA); it is deployed instead of the master. None: there is none.
        select: the largest distances of all, any, the largest of each tensor, or those that are worth most to the
            loss (`Saliency`). values: see `Publisher`.
        margin: by-score takes the deployed copy where its loss is above the master's by more than this fraction.
        let_go: of the memory, times the fraction that the master's loss is above the deployed copy's by: what is
            dropped at a step, for there the master has lost its way.
        keep: the fraction of the memory that outlives a step. clip: the largest |memory| / |master|, in 2-norms.
        mask_momentum: momentum is set to 0 where an element was sent (Lin et al. 2018, "Deep Gradient Compression").
        pace: how many elements a step sends: always as many; more at the beginning; more where losses rise; more where
            the memory is large.
    """

    deploy: Deploy = "sparse"
    forward: Forward = "deployed"
    average: float | None = None
    select: Select = "top"
    values: Literal["steps", "exact"] = "steps"
    margin: float = 0.0
    let_go: float = 0.0
    keep: float = 1.0
    clip: float | None = None
    mask_momentum: bool = False
    pace: Pace = "fixed"

    @property
    def has_density(self) -> bool:
        return self.deploy != "dense"


METHODS: dict[str, Method] = {
    "dense": Method(deploy="dense", forward="master"),
    "dense-ema": Method(deploy="dense", forward="master", average=0.99),
    "dense-ema-long": Method(deploy="dense", forward="master", average=0.998),
    "masked": Method(deploy="masked", forward="master"),
    "open": Method(forward="master"),
    "closed": Method(),
    "random": Method(forward="random"),
    "between": Method(forward="between"),
    "by-score": Method(forward="by-score"),
    "by-score-let-go": Method(forward="by-score", margin=0.05, let_go=0.1),
    "by-score-let-go-0": Method(forward="by-score", let_go=0.1),
    "by-lag": Method(forward="by-lag"),
    "open-ema": Method(forward="master", average=0.99),
    "closed-ema": Method(average=0.99),
    "closed-momentum-masked": Method(mask_momentum=True),
    "closed-keep-0.99": Method(keep=0.99),
    "open-keep-0.99": Method(forward="master", keep=0.99),
    "closed-clip-0.05": Method(clip=0.05),
    "open-keep-0.999": Method(forward="master", keep=0.999),
    "open-keep-0.95": Method(forward="master", keep=0.95),
    "between-keep-0.99": Method(forward="between", keep=0.99),
    "by-score-keep-0.99": Method(forward="by-score", keep=0.99),
    "open-clip-0.05": Method(forward="master", clip=0.05),
    "open-clip-0.02": Method(forward="master", clip=0.02),
    "open-clip-0.1": Method(forward="master", clip=0.1),
    "by-score-clip-0.05": Method(forward="by-score", clip=0.05),
    "closed-clip-0.02": Method(clip=0.02),
    "closed-clip-0.1": Method(clip=0.1),
    "random-clip-0.05": Method(forward="random", clip=0.05),
    "closed-cold": Method(pace="cold"),
    "closed-drift": Method(pace="drift"),
    "closed-memory": Method(pace="memory"),
    "closed-exact": Method(values="exact"),
    "open-exact": Method(forward="master", values="exact"),
    "closed-saliency": Method(select="saliency"),
    "open-saliency": Method(forward="master", select="saliency"),
    "by-score-let-go-saliency": Method(forward="by-score", margin=0.05, let_go=0.1, select="saliency"),
    "closed-saliency-exact": Method(select="saliency", values="exact"),
    "open-saliency-exact": Method(forward="master", select="saliency", values="exact"),
    "by-score-let-go-saliency-exact": Method(
        forward="by-score", margin=0.05, let_go=0.1, select="saliency", values="exact"
    ),
    "closed-random-k": Method(select="random"),
    "open-random-k": Method(forward="master", select="random"),
    "closed-layer": Method(select="layer"),
    "open-layer": Method(forward="master", select="layer"),
}
CORE = ("dense", "dense-ema", "dense-ema-long", "open", "closed", "by-score", "by-score-let-go")
DENSITIES = (1e-2, 1e-3, 1e-4, 1e-5)
RATES = {"adam": (3e-4, 1e-3, 3e-3), "adamw": (3e-4, 1e-3, 3e-3), "sgd": (3e-3, 1e-2, 3e-2, 1e-1)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One method at one density, with one learning rate and one seed."""

    method: str
    density: float | None
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Without rate and seed."""
        if self.density is None:
            return self.method
        return f"{self.method} {self.density:.0e}".replace("e-0", "e-")
