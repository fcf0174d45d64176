"""ClassBalanced: equal shares, water-filled, uniform in a class; each label is read once."""

from __future__ import annotations

import numpy as np
import pytest

from evergrad.errors import ConfigError
from evergrad.sampling import ClassBalanced
from tests.unit.sampling.fairness import Listed, chi_square


def history(labels) -> Listed:
    return Listed(np.arange(float(len(labels))), np.asarray(labels))


RARE = history(np.r_[np.zeros(60, int), np.full(30, 7), np.full(10, -2)][np.random.default_rng(0).permutation(100)])


def counts(examples: Listed, drawn) -> dict[int, int]:
    values, found = np.unique(examples.labels[drawn], return_counts=True)
    return dict(zip(values.tolist(), found.tolist(), strict=True))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (3, [1, 1, 1]),
        (29, [9, 10, 10]),
        (30, [10, 10, 10]),
        (50, [10, 20, 20]),
        (80, [10, 30, 40]),
        (200, [10, 30, 60]),
    ],
)
def test_shares_are_equal_to_within_one_and_what_a_class_lacks_the_others_give(count: int, expected: list[int]) -> None:
    sampler = ClassBalanced()
    for _ in range(5):
        assert sorted(counts(RARE, sampler.draw(RARE, 100, count)).values()) == expected


def test_which_classes_give_one_more_is_random() -> None:
    sampler = ClassBalanced(seed=2)
    seen = np.zeros(3)
    for _ in range(3000):
        found = counts(RARE, sampler.draw(RARE, 100, 4))
        seen[[-2, 0, 7].index(max(found, key=lambda label: found[label]))] += 1
    assert chi_square(seen, np.full(3, 1 / 3)) < 5


def test_examples_of_a_class_are_as_likely_as_each_other() -> None:
    sampler = ClassBalanced(seed=1)
    drawn = np.concatenate([sampler.draw(RARE, 100, 6) for _ in range(4000)])
    size = {0: 60, 7: 30, -2: 10}
    expected = np.array([1 / 3 / size[label] for label in RARE.labels.tolist()])
    assert chi_square(np.bincount(drawn, minlength=100), expected) < 5


def test_classes_come_with_the_stream_and_go_with_retention() -> None:
    examples, sampler = history([0] * 10 + [1] * 10 + [2] * 10), ClassBalanced()
    assert counts(examples, sampler.draw(examples, 10, 6)) == {0: 6}
    assert counts(examples, sampler.draw(examples, 20, 6)) == {0: 3, 1: 3}
    examples.first = 8
    assert sorted(counts(examples, sampler.draw(examples, 30, 9)).values()) == [2, 3, 4]
    assert counts(examples, sampler.draw(examples, 30, 30)) == {0: 2, 1: 10, 2: 10}
    examples.first = 15
    drawn = sampler.draw(examples, 30, 8)
    assert counts(examples, drawn) == {1: 4, 2: 4}
    assert drawn.min() >= 15


def test_each_label_is_read_once_and_again_after_a_restart() -> None:
    examples, sampler = history(np.arange(70_000) % 5), ClassBalanced()
    for before in (10, 68_000, 68_000, 70_000):
        sampler.draw(examples, before, 8)
    assert examples.reads == 70_000
    again = ClassBalanced()
    again.load_state_dict(sampler.state_dict())
    assert again.draw(examples, 70_000, 64).tolist() == sampler.draw(examples, 70_000, 64).tolist()
    assert examples.reads == 2 * 70_000


def test_labels_may_be_strings_or_booleans_or_one_column_wide() -> None:
    for labels in (np.array(["a", "bc"] * 5), np.array([True, False] * 5), np.array([[3], [4]] * 5)):
        examples = Listed(np.arange(10.0), labels)
        drawn = ClassBalanced().draw(examples, 10, 4)
        assert sorted((drawn % 2).tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize("labels", [np.zeros(10), np.zeros((10, 2), int), np.zeros((10, 3))])
def test_targets_that_are_no_classes_are_refused(labels) -> None:
    with pytest.raises(ConfigError, match="one class per example in the column y"):
        ClassBalanced().draw(Listed(np.arange(10.0), labels), 10, 4)
