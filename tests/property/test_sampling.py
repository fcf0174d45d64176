"""All samplers stay in bounds and repeat nothing, whatever the history, and go on exactly from a saved state."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evergrad.errors import ConfigError
from evergrad.sampling import (
    ClassBalanced,
    Feedback,
    LeastUsed,
    LossPrioritised,
    Mix,
    Reservoir,
    Sampler,
    TimeBiased,
    Uniform,
    Window,
)
from evergrad.testing import check_sampler
from tests.unit.sampling.fairness import Listed

SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "uniform": lambda: Uniform(seed=3),
    "window": lambda: Window(size=50, seed=3),
    "window of seconds": lambda: Window(seconds=500.0),
    "time biased": lambda: TimeBiased(100.0),
    "time biased, the newest alone": lambda: TimeBiased(1e-6),
    "time biased, hardly": lambda: TimeBiased(1e300),
    "reservoir": lambda: Reservoir(20),
    "large reservoir": lambda: Reservoir(3000),
    "class balanced": ClassBalanced,
    "least used": LeastUsed,
    "least used after training": lambda: LeastUsed(used_before=50),
    "loss prioritised": LossPrioritised,
    "mix": lambda: Mix(LossPrioritised(), Window(size=10), 0.3),
    "mix of mixes": lambda: Mix(Mix(LeastUsed(), ClassBalanced()), Mix(Reservoir(30), TimeBiased(60.0), 0.9), 0.7),
}
# All that is held, where the sampler draws from all of it.
DRAW_FROM_ALL = [name for name in SAMPLERS if "window" not in name and name not in ("reservoir", "mix of mixes")]


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_keeps_the_public_promises(name: str) -> None:
    check_sampler(SAMPLERS[name])


steps = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 300), st.integers(0, 40), st.booleans()), min_size=1, max_size=8
)


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=25, deadline=None)
@given(steps=steps, seed=st.integers(0, 2**32 - 1))
def test_draws_are_different_and_held_and_as_many_as_there_are(
    name: str, steps: list[tuple[int, int, int, bool]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    total = sum(arriving for _, arriving, _, _ in steps)
    times = np.cumsum(rng.choice([0.0, 1.0, 1e4], size=total + 1))
    examples, sampler, before = Listed(times, rng.integers(0, 4, total + 1)), SAMPLERS[name](), 0
    for retired, arriving, count, restart in steps:
        before += arriving
        examples.first = min(before, examples.first + retired)
        if restart:
            state, sampler = copy.deepcopy(sampler.state_dict()), SAMPLERS[name]()
            sampler.load_state_dict(state)
        drawn = sampler.draw(examples, before, count)
        held = before - examples.first
        assert len(set(drawn.tolist())) == len(drawn) <= min(count, held)
        assert all(examples.first <= i < before for i in drawn.tolist())
        if name in DRAW_FROM_ALL:
            assert len(drawn) == min(count, held)
        if isinstance(sampler, Feedback) and len(drawn):
            sampler.learned(drawn, rng.exponential(size=len(drawn)))


@given(st.integers(0, 10**12), st.integers(0, 64), st.integers(0, 2**32))
def test_uniform_draws_as_many_different_ones_as_there_are_of_any_history(before: int, count: int, seed: int) -> None:
    examples = Listed(np.empty(0))
    drawn = Uniform(seed=seed).draw(examples, before, count)
    assert len(set(drawn.tolist())) == len(drawn) == min(before, count)
    drawn = Window(size=40, seed=seed).draw(examples, before, count)
    assert len(set(drawn.tolist())) == len(drawn) == min(before, count, 40)
    assert all(max(0, before - 40) <= i < before for i in drawn.tolist())


@pytest.mark.parametrize("name", SAMPLERS)
def test_state_of_another_kind_is_refused_by_name(name: str) -> None:
    other = Uniform() if name != "uniform" else Reservoir(3)
    with pytest.raises(ConfigError, match=r"sampler\.kind: is .*, and (uniform|reservoir) in the saved state"):
        SAMPLERS[name]().load_state_dict(other.state_dict())
