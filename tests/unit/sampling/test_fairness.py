"""The test of draws finds a distribution that is a little off."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.sampling.fairness import chi_square, second_of_two


def test_right_distribution_passes_and_a_wrong_one_does_not() -> None:
    rng = np.random.default_rng(0)
    right = np.array([0.1, 0.2, 0.3, 0.4])
    seen = np.bincount(rng.choice(4, size=20_000, p=right), minlength=4)
    assert chi_square(seen, right) < 5
    assert chi_square(seen, [0.12, 0.2, 0.3, 0.38]) > 5
    assert chi_square(seen, [0.0, 0.3, 0.3, 0.4]) == float("inf")
    with pytest.raises(ValueError, match="too few"):
        chi_square([1, 1], [0.5, 0.5])


def test_second_of_two_is_what_numpy_draws() -> None:
    rng, weights = np.random.default_rng(1), np.array([8.0, 4.0, 2.0, 1.0, 1.0])
    drawn = [rng.choice(5, size=2, replace=False, p=weights / 16) for _ in range(20_000)]
    assert chi_square(np.bincount([pair[1] for pair in drawn], minlength=5), second_of_two(weights)) < 5
