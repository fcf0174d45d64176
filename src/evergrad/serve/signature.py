"""What a model takes and gives: names, datatypes and shapes, as far as somebody said or showed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from evergrad.errors import ConfigError
from evergrad.serve.tensors import DATATYPES, Array, datatype_of

INPUT, OUTPUT = "input-0", "output-0"


@dataclass(frozen=True, slots=True)
class TensorType:
    """One tensor of a model.

    Attributes:
        shape: -1 stands for any length; the first side is the batch's.

    Example:
        >>> TensorType.parse("image:FP32:-1,1,28,28")
        TensorType(name='image', datatype='FP32', shape=(-1, 1, 28, 28))
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """`name:DATATYPE:side,side,...`. Raises ConfigError."""
        name, _, rest = text.partition(":")
        datatype, _, sides = rest.partition(":")
        try:
            shape = tuple(int(side) for side in sides.split(","))
        except ValueError:
            shape = ()
        if not name or datatype not in DATATYPES or not shape or any(side < -1 for side in shape):
            raise ConfigError(
                "input", f"must look like image:FP32:-1,1,28,28, not {text!r}; datatypes: {', '.join(DATATYPES)}"
            )
        return cls(name, datatype, shape)

    @classmethod
    def of(cls, name: str, array: Array) -> Self:
        """The type of a batch like `array`, of any number of rows."""
        return cls(name, datatype_of(array), (-1, *array.shape[1:]) if array.ndim else ())

    def problem(self, name: str, array: Array) -> str | None:
        """Why a tensor is not one of this type, in one line; None: it is."""
        if name != self.name:
            return f"this model's input is {self.name!r}, found {name!r}"
        fits = len(array.shape) == len(self.shape) and all(
            own in (-1, side) for own, side in zip(self.shape, array.shape, strict=True)
        )
        if not fits or datatype_of(array) != self.datatype:
            expected, found = f"{self.datatype} {list(self.shape)}", f"{datatype_of(array)} {list(array.shape)}"
            return f"input {name!r}: expected {expected}, found {found}"
        return None

    def example(self) -> Array:
        """Noughts of this type, one where any length is allowed."""
        return np.zeros([abs(side) for side in self.shape], DATATYPES[self.datatype])

    def told(self) -> dict[str, Any]:
        """As in the protocol's metadata."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}
