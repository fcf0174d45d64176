"""The subjects by name, and each one's small form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from experiments.streams.bikeshare import load_bikeshare
from experiments.streams.digits import load_permuted, load_rotating
from experiments.streams.movielens import load_movielens
from experiments.streams.subject import Subject

SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "movielens": load_movielens,
    "bikeshare": load_bikeshare,
    "rotating": load_rotating,
    "permuted": load_permuted,
}
_QUICK_FIRST, _QUICK_STREAM = 2000, 1280


def load(name: str, data: Path, *, quick: bool = False) -> Subject:
    """The subject of that name; `quick`: a small slice around its first break, in a minute.

    Raises:
        ConfigError: a file is missing, or not of its format.
    """
    subject = SUBJECTS[name](data)
    if not quick:
        return subject
    breaks = subject.marks[0][0] if subject.marks else len(subject.stream) // 2
    start = max(0, breaks - _QUICK_STREAM // 2)
    small = subject.part(
        start, start + _QUICK_STREAM, first=subject.first[-_QUICK_FIRST:], retrain_every=_QUICK_STREAM // 2, window=320
    )
    return dataclasses.replace(small, first_epochs=small.first_epochs // 2, retrain_epochs=small.retrain_epochs // 2)
