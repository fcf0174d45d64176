"""How much of a history is kept, and how finely: a segment holds an eighth of it at most."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from evergrad.errors import ConfigError
from evergrad.history.segments import Segments

_PARTS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """At least so much of the newest is kept, and an eighth more at most; None: no such limit.

    Attributes:
        rows: examples.
        bytes: of the columns.
        age_s: seconds before the newest example's arrival.
    """

    rows: int | None = None
    bytes: int | None = None
    age_s: float | None = None

    def __post_init__(self) -> None:
        for key, value in (("keep_rows", self.rows), ("keep_bytes", self.bytes), ("keep_s", self.age_s)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"history.{key}", f"must be above 0, not {value}")

    @property
    def keep_all(self) -> bool:
        return self.rows is None and self.bytes is None and self.age_s is None

    @property
    def segment_rows(self) -> int | None:
        return None if self.rows is None else max(1, self.rows // _PARTS)

    @property
    def segment_bytes(self) -> int | None:
        return None if self.bytes is None else max(1, self.bytes // _PARTS)

    @property
    def segment_us(self) -> int | None:
        return None if self.age_s is None else int(self.age_s * 1e6) // _PARTS

    def beyond(
        self,
        segments: Segments,
        end: int,
        *,
        now_us: int,
        bytes_of: Callable[[int], int],
        newest_us_of: Callable[[int], int],
    ) -> int:
        """How many of the oldest segments hold nothing that is kept; the newest segment always stays.

        Args:
            end: one more than the newest example's id, which arrived at `now_us`.
            bytes_of, newest_us_of: bytes of the segment at a position, and when its newest example arrived.
        """
        count = 0
        kept = sum(map(bytes_of, range(len(segments)))) if self.bytes is not None else 0
        while count < len(segments) - 1:
            if self.bytes is not None:
                kept -= bytes_of(count)
            is_beyond = (
                (self.rows is not None and int(segments.starts[count + 1]) <= end - self.rows)
                or (self.bytes is not None and kept >= self.bytes)
                or (self.age_s is not None and newest_us_of(count) < now_us - self.age_s * 1e6)
            )
            if not is_beyond:
                break
            count += 1
        return count
