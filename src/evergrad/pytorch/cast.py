"""The lossless mode: models that serve in bfloat16 get exactly the elements whose bfloat16 value has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from evergrad.codec import compact
from evergrad.pytorch.bridge import as_numpy
from evergrad.pytorch.buffers import bits_differ, check_finite, merged
from evergrad.pytorch.mover import Moved, written
from evergrad.pytorch.tables import Table
from evergrad.update import State, Values

_CHUNK = 1 << 20


class CastMover:
    """Makes the deployed weights equal to the master's, rounded to bfloat16 (to nearest, ties to even), at each move.

    Args:
        tensors: masters of any floating-point dtype, by name.
        deployed: equal to `state`, where the masters are: of bfloat16, or of the master's own dtype where that is not
            float32.
        step: gives the number of the optimizer's step, for errors.
    """

    tables: Sequence[Table] = ()

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
        table, parts = self._state.schema.by_name, []
        for name, master in self._tensors():
            parts.extend(self._changed(name, master, table[name].offset))
        sections = [compact(v, self._state.elements_at(v.dtype, v.indices)) for v in merged(parts)]
        return written(self._state, sections)

    def _changed(self, name: str, master: torch.Tensor, offset: int) -> list[Values]:
        """Flat indices and new values, a piece at a time: memory beside the two copies stays small."""
        dtype, found = self._state.schema.by_name[name].dtype, []
        master, deployed = master.detach().reshape(-1), self._deployed[name].reshape(-1)
        for start in range(0, master.numel(), _CHUNK):
            cast = master[start : start + _CHUNK].to(deployed.dtype)
            changed = bits_differ(cast, deployed[start : start + _CHUNK])
            new = cast[changed]
            check_finite(name, new, self._step())
            if new.numel():
                indices = changed.nonzero().squeeze(1).cpu().numpy() + (offset + start)
                found.append(Values(indices, as_numpy(new), dtype))
        return found
