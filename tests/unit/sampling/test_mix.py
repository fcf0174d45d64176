"""Mix: shares on average exact, no repeats, and either one makes up for the other."""

from __future__ import annotations

import numpy as np
import pytest

from evergrad.errors import ConfigError
from evergrad.sampling import ClassBalanced, LossPrioritised, Mix, Uniform, Window
from evergrad.testing import FakeExamples


class Recording(Uniform):
    """A sampler that learns, and remembers what."""

    def learned(self, ids, losses) -> None:
        self.told = ids.tolist(), losses.tolist()


@pytest.mark.parametrize(("share", "count"), [(0.0, 8), (0.3, 1), (0.25, 10), (0.5, 7), (1.0, 8)])
def test_shares_are_exact_on_average(share: float, count: int) -> None:
    sampler, examples = Mix(Window(size=1000), Uniform(seed=1), share), FakeExamples()
    drawn = [sampler.draw(examples, 10**12, count) for _ in range(2000)]
    newest = [int((ids >= 10**12 - 1000).sum()) for ids in drawn]
    assert all(len(set(ids.tolist())) == count for ids in drawn)
    assert set(newest) <= {int(share * count), int(share * count) + 1}
    assert np.mean(newest) == pytest.approx(share * count, abs=0.05 if 0 < share < 1 else 0.005)


def test_what_both_draw_is_in_the_batch_once_and_another_in_its_place() -> None:
    sampler, examples = Mix(Window(size=20), Window(size=24, seed=1), 0.5), FakeExamples()
    for _ in range(200):
        assert len(set(sampler.draw(examples, 1000, 24).tolist())) == 24


def test_either_makes_up_for_what_the_other_has_not() -> None:
    examples = FakeExamples()
    for mix in (Mix(Window(size=2), Uniform(), 0.5), Mix(Uniform(), Window(size=2), 0.5)):
        drawn = mix.draw(examples, 100, 40)
        assert len(set(drawn.tolist())) == 40
        assert {98, 99} <= set(drawn.tolist())
    assert sorted(Mix(Window(size=2), Window(size=5)).draw(examples, 100, 40).tolist()) == [95, 96, 97, 98, 99]


def test_what_is_learned_reaches_those_that_learn() -> None:
    inner = Recording()
    mix = Mix(ClassBalanced(), Mix(inner, LossPrioritised(), 0.2), 0.2)
    mix.learned(np.array([3, 4]), np.array([0.5, 0.25]))
    assert inner.told == ([3, 4], [0.5, 0.25])


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"sampler\.share"):
        Mix(Uniform(), Uniform(), share)
