"""How far the deployed copy is behind the master: in weights, in steps, and in how much smoother its path is."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

_EVERY = 25  # steps between two looks
_AGES = (0, 1, 2, 4, 8, 16, 32)  # looks back
_MOST_ELEMENTS = 1_000_000


class Lag:
    """Looks now and then.

    Args:
        master, deployed: live tensors, in the same order.
    """

    def __init__(self, master: Sequence[torch.Tensor], deployed: Sequence[torch.Tensor]) -> None:
        self._master, self._deployed = master, deployed
        self._few = sum(each.numel() for each in master) <= _MOST_ELEMENTS
        self.step = 0
        self._masters = deque[torch.Tensor](maxlen=_AGES[-1] + 1)
        self._before: torch.Tensor | None = None
        self._last: torch.Tensor | None = None
        self._found: dict[str, list[float]] = {"ratio": [], "steps": [], "age": [], "path": []}

    def look(self) -> None:
        """After each step."""
        self.step += 1
        if not self._few:
            return
        if self.step % _EVERY == _EVERY - 1:
            self._before = _flat(self._deployed)
        elif self.step % _EVERY == 0 and self._before is not None:
            self._note(self._before, _flat(self._master), _flat(self._deployed))

    def _note(self, before: torch.Tensor, master: torch.Tensor, deployed: torch.Tensor) -> None:
        found, memory, moved = self._found, master - deployed, deployed - before
        found["ratio"].append(float(memory.norm() / master.norm()))
        if float(moved.abs().sum()):
            found["steps"].append(float(memory.abs().sum() / moved.abs().sum()))
        self._masters.append(master)
        ages = [age for age in _AGES if age < len(self._masters)]
        nearest = min(ages, key=lambda age: float((self._masters[-1 - age] - deployed).norm()))
        found["age"].append(float(nearest * _EVERY))
        if self._last is not None and len(self._masters) > 1:
            path = float((master - self._masters[-2]).norm())
            found["path"].append(float((deployed - self._last).norm()) / path if path else 0.0)
        self._last = deployed

    def in_steps(self, before: Sequence[torch.Tensor]) -> float:
        """How many steps sending the memory takes, at the rate of the last one; `before`: deployed, ahead of it."""
        memory = sum(
            float((own - theirs).abs().sum()) for own, theirs in zip(self._master, self._deployed, strict=True)
        )
        moved = sum(float((new - old).abs().sum()) for new, old in zip(self._deployed, before, strict=True))
        return memory / moved if moved else float("inf")

    def found(self) -> dict[str, Any]:
        """Means over the second half of the looks.

        Keys:
            ratio: |master - deployed| / |master|, in 2-norms.
            steps: the same difference in 1-norm, by what one step moves: steps that sending it all takes.
            age: steps since the master was nearest to what is deployed now (of 0, 25, 50, 100, ...).
            path: distance that the deployed copy goes in 25 steps by that of the master; below 1: noise is averaged.
        """
        halves = {name: values[len(values) // 2 :] for name, values in self._found.items()}
        return {name: fmean(values) if values else None for name, values in halves.items()}


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([each.detach().reshape(-1) for each in tensors])
