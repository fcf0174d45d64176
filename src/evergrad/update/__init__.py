"""Updates, and the state that they move: one copy of the code for publisher and replica.

    sections   Steps, Values, Differences: what an update does to which elements
    digest     the sum over all elements that proves equality
    change     what an update did to one particular state: undo and fold are algebra on it
    state      State: one flat array per dtype; works updates out, and writes them in

No bytes here (see `codec`), and no storage (see `log`).
"""

from evergrad.update.change import Change, GroupChange, compose, values_of
from evergrad.update.digest import digest, mix
from evergrad.update.sections import (
    Differences,
    Section,
    Steps,
    Update,
    Values,
    differences,
    from_ordered,
    hull,
    short_fingerprint,
    to_ordered,
)
from evergrad.update.state import Snapshot, State

__all__ = [
    "Change",
    "Differences",
    "GroupChange",
    "Section",
    "Snapshot",
    "State",
    "Steps",
    "Update",
    "Values",
    "compose",
    "differences",
    "digest",
    "from_ordered",
    "hull",
    "mix",
    "short_fingerprint",
    "to_ordered",
    "values_of",
]
