"""What uniformly drawn places cost, against the least that any code could take."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evergrad.codec.streams import write_indices


def entropy_bits(elements: int, count: int) -> float:
    nats = math.lgamma(elements + 1) - math.lgamma(count + 1) - math.lgamma(elements - count + 1)
    return nats / math.log(2)


def drawn(rng: np.random.Generator, elements: int, count: int) -> np.ndarray:
    found = np.unique(rng.integers(0, elements, 2 * count + 20))
    return np.sort(rng.permutation(found)[:count])


@pytest.mark.parametrize("count", [60, 100, 1000, 10_000])
@pytest.mark.parametrize("elements", [10**5, 10**6, 10**7, 10**8])
def test_uniform_places_cost_at_most_three_percent_above_entropy(elements: int, count: int) -> None:
    rng = np.random.default_rng([elements, count])
    sizes = [8 * len(write_indices(drawn(rng, elements, count))[1]) for _ in range(40)]
    assert entropy_bits(elements, count) < np.mean(sizes) <= 1.03 * entropy_bits(elements, count)
