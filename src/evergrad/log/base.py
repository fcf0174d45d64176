"""The seam between an update log and the place that keeps its objects.

An `ObjectStore` keeps immutable objects under names like `updates/000000000012.eg`. Three promises carry the whole
protocol; `evergrad.testing.check_object_store` checks them:

1. `create` either stores all the bytes under a name that nothing had, or stores nothing. Of two that race for one name,
   exactly one succeeds: this is the only lock there is.
2. `read` gives all the bytes or None. What it gave once, it gives always: objects never change.
3. `names` lists what `create` stored, in ascending order.

A failure of the place itself is `LogUnavailable`, and leaves the name as it was or fully stored.
"""

from __future__ import annotations

from typing import Protocol


class ObjectStore(Protocol):
    """Where a log keeps its objects; see the module for what an implementation promises."""

    def create(self, name: str, data: bytes) -> bool:
        """Stores `data` under `name`; False where that name exists already.

        Raises:
            LogUnavailable: the place refused or failed.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """The bytes under `name`, or None where there are none.

        Raises:
            LogUnavailable: the place refused or failed.
        """
        ...

    def names(self, prefix: str) -> list[str]:
        """All names under the folder `prefix` (no slash at its end), ascending.

        Raises:
            LogUnavailable: the place refused or failed.
        """
        ...
