"""After a loss of power: which batches are still whole.

What a process wrote outlives its death, but not always the machine's: a commit record may be there without its rows.
Where the machine has been started anew since the mark was set (see `mark`), the batches after it are read and compared
with their checksums, once; the history ends before the first that differs.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from evergrad.history.commits import NOTHING, Commits
from evergrad.history.layout import Layout
from evergrad.history.mark import Mark, boot_id, read_mark, write_mark
from evergrad.history.segments import NO_SEGMENTS, Segments, listed_segments
from evergrad.history.writer import checksum_of

logger = logging.getLogger(__name__)


def trusted_batches(folder: Path, layout: Layout, commits: Commits) -> int:
    """How many batches are as they were committed; where that had to be found out, the mark is set after them."""
    mark, boot = read_mark(folder), boot_id()
    if boot and mark.boot == boot:
        return commits.count
    segments = _listed(folder)
    number = mark.batches
    while number < commits.count and _is_whole(folder, layout, segments, commits, number):
        number += 1
    if number < commits.count:
        logger.warning(
            "the machine lost %d batches of the history at %s, from number %d on: they were not synced",
            commits.count - number, folder, number,
        )  # fmt: skip
    if boot:  # they were read from the disk, or synced before
        write_mark(folder, Mark(number, boot), durable=True)
    return number


def _listed(folder: Path) -> Segments:
    """All segments there, to the first gap; some may be of batches that never were committed."""
    listed = listed_segments(folder)
    consecutive = [start for place, (number, start) in enumerate(listed) if number == listed[0][0] + place]
    return Segments(listed[0][0], np.array(consecutive, np.int64)) if listed else NO_SEGMENTS


def _is_whole(folder: Path, layout: Layout, segments: Segments, commits: Commits, number: int) -> bool:
    commit, before = commits.find(number), commits.find(number - 1) if number else NOTHING
    if commit is None or before is None or before.end > commit.end:
        return False
    if before.end < segments.first or before.end == commit.end:  # retention was there before, or nothing to compare
        return True
    try:
        return (
            commit.segments <= segments.number + len(segments)
            and checksum_of(folder, layout, segments, before.end, commit.end) == commit.checksum
        )
    except (FileNotFoundError, ValueError):  # a file is gone, or shorter than a number
        return False
