"""A real trace: 48 closed-loop steps of a small LeNet5 on scikit-learn's digits at 1e-2, as the library wrote them."""

from __future__ import annotations

import math
from pathlib import Path

from evergrad.codec.streams import write_indices
from evergrad.log import open_log
from evergrad.replica import Replica
from evergrad.update import Steps

TRACE = Path(__file__).parent / "trace-digits"
DIGEST = 0xDE6C69B00EDE753C


def bound_bits(elements: int, k: int) -> float:
    return (math.lgamma(elements + 1) - math.lgamma(k + 1) - math.lgamma(elements - k + 1)) / math.log(2)


def test_it_replays_by_updates_and_by_folds_to_one_digest() -> None:
    replica = Replica(f"file:{TRACE}")
    assert replica.sync() == 48
    assert replica.digest == DIGEST
    log = open_log(f"file:{TRACE}")
    state, version = log.read_snapshot(0).state, 0
    for first, last in log.folds():
        found = log.read_fold(first, last)
        assert found is not None
        state.commit(state.check(found[0], version))
        version = last
    assert (version, state.digest) == (48, DIGEST)


def test_its_indices_take_no_more_than_the_bound_for_uniform_ones() -> None:
    log, ratios = open_log(f"file:{TRACE}"), []
    for version in log.updates():
        found = log.read(version)
        assert found is not None
        (steps,) = found[0].sections
        assert isinstance(steps, Steps)
        ratios.append(8 * len(write_indices(steps.indices)[1]) / bound_bits(log.schema.elements, len(steps.indices)))
    assert sorted(ratios)[24] <= 1.03
