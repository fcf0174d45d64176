"""What a publisher tells about itself."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherStats:
    """What a publisher has done so far.

    Attributes:
        full_push_bytes: what one dense push of the model would cost.
        select_s, encode_s, append_s: seconds in all that went into choosing and moving elements, coding updates, and
            writing them and their folds to the log; the last two beside training where the publisher has a thread. On
            a GPU `select_s` holds the wait for the step itself.
        waiting: published runs that are not in the log yet.
        unavailable: why the log cannot be written to at present; None: it can.
    """

    version: int = 0
    digest: int = 0
    updates: int = 0
    update_bytes: int = 0
    snapshot_bytes: int = 0
    full_push_bytes: int = 0
    select_s: float = field(default=0.0, compare=False)
    encode_s: float = field(default=0.0, compare=False)
    append_s: float = field(default=0.0, compare=False)
    waiting: int = 0
    unavailable: str | None = None

    @property
    def fraction_of_full_pushes(self) -> float:
        """Bytes of the updates, as a fraction of as many dense pushes; 0 where there was none."""
        return self.update_bytes / max(1, self.full_push_bytes * self.updates)
