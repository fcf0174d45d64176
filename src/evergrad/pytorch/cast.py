"""The lossless mode: models that serve in bfloat16 get exactly the elements whose bfloat16 value has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from evergrad.codec import compact
from evergrad.errors import NonFiniteWeights
from evergrad.pytorch.bridge import as_numpy
from evergrad.pytorch.mover import Moved
from evergrad.update import Section, State, Values

_CHUNK = 1 << 20
_Part = tuple[npt.NDArray[np.int64], npt.NDArray[np.generic]]


class CastMover:
    """Makes the deployed weights equal to the master's, rounded to bfloat16 (to nearest, ties to even), at each move.

    Args:
        tensors: masters of any floating-point dtype, by name.
        deployed: views of `state`: of bfloat16, or of the master's own dtype where that is not float32.
        step: gives the number of the optimizer's step, for errors.
    """

    def __init__(
        self,
        tensors: Callable[[], Sequence[tuple[str, torch.Tensor]]],
        deployed: Mapping[str, torch.Tensor],
        state: State,
        step: Callable[[], int],
    ) -> None:
        self._tensors, self._deployed, self._state, self._step = tensors, deployed, state, step

    def move(self, k: int) -> Moved | None:  # noqa: ARG002
        """Moves all that differs; None where nothing does.

        Raises:
            NonFiniteWeights: what would move is NaN, infinite, or too large for bfloat16; nothing moved.
        """
        by_dtype: dict[str, list[_Part]] = {}
        table = self._state.schema.by_name
        for name, master in sorted(self._tensors(), key=lambda named: table[named[0]].offset):
            by_dtype.setdefault(table[name].dtype, []).extend(self._changed(name, master, table[name].offset))
        sections: list[Section] = []
        for dtype, parts in by_dtype.items():
            if parts:
                indices = np.concatenate([part[0] for part in parts])
                values = Values(indices, np.concatenate([part[1] for part in parts]), dtype)
                sections.append(compact(values, self._state.elements_at(dtype, indices)))
        if not sections:
            return None
        change = self._state.resolve(sections)
        self._state.commit(change)
        return Moved(tuple(sections), change)

    def _changed(self, name: str, master: torch.Tensor, offset: int) -> list[_Part]:
        """Flat indices and new values, a piece at a time: memory beside the two copies stays small."""
        found = []
        master, deployed = master.detach().reshape(-1), self._deployed[name].reshape(-1)
        for start in range(0, master.numel(), _CHUNK):
            cast = master[start : start + _CHUNK].to(deployed.dtype)
            mine, own = as_numpy(cast), as_numpy(deployed[start : start + _CHUNK])
            bits = f"u{mine.itemsize}"
            positions = np.flatnonzero(mine.view(bits) != own.view(bits))
            if not len(positions):
                continue
            if not bool(cast[torch.from_numpy(positions)].isfinite().all()):
                raise NonFiniteWeights(name, self._step())
            found.append((positions + (offset + start), mine[positions]))
        return found
