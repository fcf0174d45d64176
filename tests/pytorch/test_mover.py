"""Compiled code moves the very elements that the reference moves, by the same bits."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evergrad.codec.rice import BLOCK
from evergrad.codec.rice import write_rice as plain_rice
from evergrad.errors import ConfigError, NonFiniteWeights
from evergrad.pytorch import mover
from evergrad.pytorch.bridge import schema_of, state_views
from evergrad.pytorch.coding import write_rice
from evergrad.pytorch.mover import CompiledMover, ReferenceMover, make_mover, transposed_shape
from evergrad.pytorch.select import GlobalTopK, LayerTopK, Pair, RandomK, Threshold
from evergrad.update import State, digest
from tests.pytorch.copies import (
    LAYOUTS,
    SHAPES,
    Copies,
    at_zero,
    gradients_of,
    indices_of,
    lay_plain,
    lay_transposed,
    model_of,
    same,
)


@pytest.mark.parametrize("values", ["steps", "exact"])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shapes", SHAPES)
def test_compiled_and_reference_move_the_same(shapes: str, layout: str, coarse: bool, values: mover.ValuesAs) -> None:
    model = model_of(SHAPES[shapes])
    ours = Copies(model, LAYOUTS[layout], values=values)
    reference = Copies(model, lay_plain, values=values, compiled=False)
    assert isinstance(ours.mover, CompiledMover)
    generator = torch.Generator().manual_seed(3)
    moved_something = False
    for step in range(30):
        gradients = gradients_of(ours, generator, coarse)
        if step % 7 == 6:
            gradients = [torch.zeros_like(g) for g in gradients]
        ours.train(gradients)
        reference.train(gradients)
        k = (1, 3, 50, 10**6)[step % 4]
        mine, theirs = ours.move(k), reference.move(k)
        assert same(mine, theirs)
        moved_something |= mine is not None
        assert ours.state.digest == digest(ours.state.schema, ours.state.arrays) == reference.state.digest
    assert moved_something


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    moves=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=200),
    k=st.integers(1, 210),
)
def test_any_finite_difference(moves: list[float], k: int) -> None:
    model = model_of([(len(moves),)])
    ours, reference = Copies(model), Copies(model, compiled=False)
    for copies in (ours, reference):
        copies.pairs[0].master.copy_(torch.tensor(moves, dtype=torch.float32))
    for _ in range(3):
        assert same(ours.move(k), reference.move(k))


def test_a_buffer_of_candidates_that_overflows_again_and_again() -> None:
    model = model_of([(200_000,)])
    ours, reference = Copies(model), Copies(model, compiled=False)
    rising = torch.arange(200_000, dtype=torch.float32) * 1e-5
    for moves in (rising, rising.flip(0), torch.full((200_000,), 0.25)):
        for copies in (ours, reference):
            copies.pairs[0].master.copy_(copies.pairs[0].deployed + moves)
        assert same(ours.move(100), reference.move(100))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_finite_is_named_and_moves_nothing(bad: float, layout: str) -> None:
    copies = Copies(model_of(SHAPES["convolutions"]), LAYOUTS[layout])
    copies.train(gradients_of(copies, torch.Generator().manual_seed(1), coarse=False))
    copies.pairs[2].master[1, 3] = bad
    before = copies.state.digest
    with pytest.raises(NonFiniteWeights, match="w2"):
        copies.move(5)
    assert digest(copies.state.schema, copies.state.arrays) == copies.state.digest == before


def test_a_difference_of_finite_numbers_may_be_infinite() -> None:
    copies = Copies(model_of([(4,)]))
    for master, deployed in ((3e38, -3e38), (1.0, 0.5)):
        copies.pairs[0].master.fill_(master)
        copies.pairs[0].deployed.fill_(deployed)
        copies.state.digest = digest(copies.state.schema, copies.state.arrays)
        copies.move(2)
        assert np.isfinite(copies.state.arrays[0]).all()


def test_what_numba_cannot_do_is_left_to_the_reference() -> None:
    half = nn.Module()
    half.register_parameter("w", nn.Parameter(torch.ones(3, dtype=torch.bfloat16)))
    state = State.from_tensors(schema_of(half), {"w": np.full(3, 0x3F80, np.uint16)})
    pair = Pair("w", half.w, half.w.detach(), state_views(state)["w"], 0)
    for selector in (GlobalTopK(), LayerTopK()):
        assert isinstance(make_mover(lambda: [pair], state, lambda: None, selector, "steps", half), ReferenceMover)
    assert isinstance(make_mover(list, state, lambda: None, GlobalTopK(), "steps", half), ReferenceMover)


SLOWLY = """
import logging, sys
sys.modules["numba"] = None
logging.basicConfig(stream=sys.stdout)
from torch import nn, optim
import evergrad
for name in ("one", "another"):
    model = nn.Linear(3, 2)
    with evergrad.Publisher(model, optim.SGD(model.parameters(), 0.1), f"memory:{name}") as publisher:
        print(type(publisher._mover).__name__)
"""


def test_without_numba_the_reference_does_it_and_says_so_once_in_a_process() -> None:
    done = subprocess.run([sys.executable, "-c", SLOWLY], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("numba is not installed") == 1
    assert done.stdout.splitlines()[1:] == ["ReferenceMover", "ReferenceMover"]


@pytest.mark.parametrize("shape", [(8, 3, 2, 2), (8, 3, 2, 2, 2), (5, 7)])
def test_transposed_layouts_are_recognised(shape: tuple[int, ...]) -> None:
    tensor = lay_transposed(torch.randn(shape))
    found = transposed_shape(tensor)
    assert found is not None
    outer, channels, inner = found
    memory = tensor.as_strided((tensor.numel(),), (1,)).reshape(outer, inner, channels)
    assert torch.equal(memory.transpose(1, 2).reshape(-1), tensor.reshape(-1))
    assert transposed_shape(tensor.contiguous()) is None


def test_per_layer_each_tensor_gives_its_share() -> None:
    copies = Copies(at_zero([(100,), (300,)]), selector=LayerTopK(), values="exact")
    copies.pairs[0].master.add_(1.0)
    copies.pairs[1].master.add_(torch.linspace(0.001, 0.3, 300))
    assert indices_of(copies, 40).tolist() == [*range(10), *range(370, 400)]


def test_random_elements_are_seeded_and_only_those_that_moved() -> None:
    def drawn(seed: int) -> list[int]:
        copies = Copies(model_of([(50,), (50,)]), selector=RandomK(seed), values="exact")
        copies.pairs[1].master.add_(1.0)
        return indices_of(copies, 40).tolist()

    assert drawn(1) == drawn(1) != drawn(2)
    assert all(50 <= index < 100 for index in drawn(1))
    assert 5 < len(drawn(1)) < 35


def test_a_fixed_threshold_sends_all_above_it() -> None:
    copies = Copies(at_zero([(4,), (2,)]), selector=Threshold(0.5), values="exact")
    copies.pairs[0].master.add_(torch.tensor([0.1, 0.7, -0.9, 0.4]))
    copies.pairs[1].master.add_(torch.tensor([0.0, 2.0]))
    assert indices_of(copies, 1).tolist() == [1, 2, 5]
    with pytest.raises(ConfigError, match="positive"):
        Threshold(0.0)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    count=st.sampled_from([1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 1000]),
    mean=st.sampled_from([0.3, 2.0, 70.0, 1e6, 2.0**40]),
    seed=st.integers(0, 100),
)
def test_compiled_rice_codes_are_numpys(count: int, mean: float, seed: int) -> None:
    values = np.random.default_rng(seed).exponential(mean, count).astype(np.uint64)
    assert write_rice(values) == plain_rice(values)


def test_compiled_rice_codes_hold_any_word() -> None:
    values = np.array([2**63 - 1, 0, 5, 2**40], np.uint64)
    assert write_rice(values) == plain_rice(values)
