"""Where the second moments lie that `select.Saliency` weighs distances with, for code that reads memory by address."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from evergrad.pytorch.select import Pair, Saliency, Selector


class Moments:
    """The addresses of second moments, as long as an optimizer keeps them where they are.

    Args:
        pairs: whose moments they are.
        selector: one that weighs by none: there are none.
        walks: whether the code that reads them walks a master where it lies; else it is copied, and they are not.

    Attributes:
        addresses: by tensor name; 0: it has none.
    """

    def __init__(self, pairs: Sequence[Pair], selector: Selector, walks: Callable[[torch.Tensor], bool]) -> None:
        self._pairs, self._walks = pairs, walks
        self._salient = selector if isinstance(selector, Saliency) else None
        self.addresses = {pair.name: 0 for pair in pairs}

    def look(self, point: Callable[[], None]) -> bool:
        """Calls `point` where they lie elsewhere now: an optimizer makes them late, and may load others.

        Returns:
            False where they do not lie as the masters do, or are of another kind: nothing can be read by address.
        """
        if self._salient is None:
            return True
        found = self._salient.second_moments(self._pairs)
        addresses = [0 if moment is None else moment.data_ptr() for moment in found]
        if addresses == [*self.addresses.values()]:
            return True
        if not all(self._readable(pair.master, own) for pair, own in zip(self._pairs, found, strict=True)):
            return False
        self.addresses = dict(zip(self.addresses, addresses, strict=True))
        point()
        return True

    def _readable(self, master: torch.Tensor, own: torch.Tensor | None) -> bool:
        if own is None:
            return True
        alike = own.dtype == torch.float32 and own.device == master.device and _steps_of(own) == _steps_of(master)
        return alike and self._walks(master)


def _steps_of(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """Sizes and strides, but for dimensions of one element: what their stride is, is left to chance."""
    return [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size != 1]
