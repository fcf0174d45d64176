"""A model's two copies with a mover between them, in the layouts and sizes that movers meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evergrad.errors import NonFiniteWeights
from evergrad.pytorch import mover
from evergrad.pytorch.bridge import schema_of, state_views
from evergrad.pytorch.cuda import make_device_mover
from evergrad.pytorch.mirror import Mirror
from evergrad.pytorch.mover import Moved, ReferenceMover, make_mover
from evergrad.pytorch.select import GlobalTopK, Pair, Saliency, Selector
from evergrad.update import State, digest

SHAPES = {
    "one": [(5,)],
    "layers": [(40, 30), (30,), (), (0, 4), (7, 40)],
    "convolutions": [(6, 5, 3, 3), (6,), (3, 6, 1, 1), (2, 3, 2, 2, 2)],
    "large": [(300, 200), (9000,), (20, 300)],
}


def lay_plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone()


def lay_transposed(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim < 2:
        return tensor.clone()
    if tensor.ndim == 2:
        return tensor.t().contiguous().t()
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def lay_reversed(tensor: torch.Tensor) -> torch.Tensor:
    order = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(order).contiguous().permute(order)


LAYOUTS = {"plain": lay_plain, "transposed": lay_transposed, "reversed": lay_reversed}


def model_of(shapes: Sequence[tuple[int, ...]]) -> nn.Module:
    module = nn.Module()
    for number, shape in enumerate(shapes):
        module.register_parameter(f"w{number}", nn.Parameter(torch.randn(shape, dtype=torch.float32)))
    return module


def at_zero(shapes: Sequence[tuple[int, ...]]) -> nn.Module:
    module = model_of(shapes)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Copies:
    """A model's two copies, with the deployed one in a state of its own, and a mover between them.

    Args:
        device: where the master is, beside a copy of the deployed weights. None: on the CPU, and they are the state's.
    """

    def __init__(
        self,
        model: nn.Module,
        lay: Callable[[torch.Tensor], torch.Tensor] = lay_plain,
        selector: Selector | None = None,
        values: mover.ValuesAs = "steps",
        compiled: bool = True,
        device: str | None = None,
    ) -> None:
        self.values = values
        schema = schema_of(model)
        self.state = State.from_tensors(schema, {n: p.detach().numpy().copy() for n, p in model.named_parameters()})
        self.mirror = None if device is None else Mirror(self.state, torch.device(device), {"F32"})
        views = state_views(self.state) if self.mirror is None else self.mirror.views
        self.pairs = [
            Pair(name, parameter, lay(parameter.detach().to(device=device)), views[name], schema.by_name[name].offset)
            for name, parameter in model.named_parameters()
        ]
        chosen = selector or GlobalTopK()
        if not compiled:
            self.mover: mover.Mover = ReferenceMover(lambda: self.pairs, self.state, self.check, chosen, values)
        elif self.mirror is not None:
            flat = self.mirror.flat["F32"]
            self.mover = make_device_mover(lambda: self.pairs, self.state, flat, self.check, chosen, values)
        else:
            self.mover = make_mover(lambda: self.pairs, self.state, self.check, chosen, values, model)

    def move(self, k: int) -> Moved | None:
        moved = self.mover.move(k)
        if moved is not None and self.mirror is not None:
            self.mirror.write(moved.change)
        return moved

    def check(self) -> None:
        for pair in self.pairs:
            if not bool(pair.master.isfinite().all()):
                raise NonFiniteWeights(pair.name, 0)

    def train(self, gradients: Sequence[torch.Tensor]) -> None:
        for pair, gradient in zip(self.pairs, gradients, strict=True):
            pair.master.add_(gradient.to(pair.master.device))


class SecondMoments:
    """An optimizer whose second moments are as a test wants them, laid as the masters are, and on a device."""

    def __init__(
        self,
        model: nn.Module,
        lay: Callable[[torch.Tensor], torch.Tensor] = lay_plain,
        device: str | None = None,
    ) -> None:
        self.model, self.parameters = model, list(model.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, amsgrad=True)
        self.selector, self._lay, self._device = Saliency(self.optimizer), lay, device

    def put(self, generator: torch.Generator, *, anew: bool) -> None:
        """New ones of all tensors but the last, in their place or `anew`; many of them 0."""
        for parameter in self.parameters[: max(1, len(self.parameters) - 1)]:
            drawn = torch.rand(parameter.shape, generator=generator).pow(20).mul(1e-3)
            state = self.optimizer.state[parameter]
            if anew:
                state["exp_avg_sq"] = self._lay(drawn.to(device=self._device))
            else:
                state["exp_avg_sq"].copy_(drawn)


def assert_mirrored(copies: Copies) -> None:
    assert copies.mirror is not None
    copies.mirror.check()
    assert digest(copies.state.schema, copies.state.arrays) == copies.state.digest


def assert_weighed_alike(
    ours: Copies,
    reference: Copies,
    moments: Sequence[SecondMoments],
    *,
    coarse: bool,
    steps: int,
    again: int,
    every: int,
) -> None:
    """Both move the same, by second moments that come after two steps, change `every` so many, and lie anew at `again`.

    What moves is not what would by distance alone.
    """
    plain = Copies(moments[1].model, values=reference.values, compiled=False)
    generator, differs, seed = torch.Generator().manual_seed(3), False, 0
    for step in range(steps):
        if step in (2, again):  # before the first of them there are none; a checkpoint replaces them
            seed = step
        if step >= 2:
            for each in moments:
                each.put(torch.Generator().manual_seed(seed + step // every), anew=step in (2, again))
        gradients = gradients_of(reference, generator, coarse)
        for copies in (ours, reference, plain):
            copies.train(gradients)
        k = (1, 3, 50, 10**6)[step % 4]
        found = ours.move(k)
        assert same(found, reference.move(k))
        differs |= not same(plain.move(k), found)
        assert ours.state.digest == reference.state.digest
        if ours.mirror is not None:
            assert_mirrored(ours)
    assert differs


def indices_of(copies: Copies, k: int) -> npt.NDArray[np.int64]:
    """What moves at a step of k elements, which must be something."""
    moved = copies.move(k)
    assert moved is not None
    return np.concatenate([section.indices for section in moved.sections])


def gradients_of(copies: Copies, generator: torch.Generator, coarse: bool) -> list[torch.Tensor]:
    """Random moves; coarse ones are of few sizes, so that many are equal."""
    found = [torch.randn(pair.master.shape, generator=generator, dtype=torch.float32) for pair in copies.pairs]
    return [g.round() * 2**-6 if coarse else g * 0.01 for g in found]


def same(a: Moved | None, b: Moved | None) -> bool:
    if a is None or b is None:
        return a is b
    pairs = zip(a.change.parts, b.change.parts, strict=True)
    arrays = [(x.positions, y.positions) for x, y in zip(a.change.parts, b.change.parts, strict=True)]
    arrays += [(x.new.view("u4"), y.new.view("u4")) for x, y in pairs]
    return a.change.digest == b.change.digest and all(np.array_equal(x, y) for x, y in arrays)
