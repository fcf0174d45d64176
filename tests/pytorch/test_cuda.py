"""On a device the very elements move that the CPU would move, by the same bits.

Where there is no GPU, kernels run in Triton's interpreter, on tensors of the CPU, with a copy apart from the state.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evergrad.errors import NonFiniteWeights, WeightsChanged
from evergrad.pytorch import cuda
from evergrad.pytorch.bridge import schema_of
from evergrad.pytorch.cuda import DeviceMover, DeviceScan, make_device_mover, runs_on
from evergrad.pytorch.mirror import Mirror
from evergrad.pytorch.mover import ReferenceMover, ValuesAs
from evergrad.pytorch.select import GlobalTopK, LayerTopK, Pair, RandomK, Selector, Threshold, top_k
from evergrad.update import State, digest
from tests.pytorch.copies import (
    LAYOUTS,
    SHAPES,
    Copies,
    SecondMoments,
    assert_mirrored,
    assert_weighed_alike,
    gradients_of,
    lay_plain,
    lay_transposed,
    model_of,
    same,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
kernels = pytest.mark.skipif(not runs_on(torch.device(DEVICE)), reason="Triton has no wheel for this platform")

# The interpreter computes by numpy, which warns of it.
OVERFLOWS = pytest.mark.filterwarnings("ignore:overflow encountered in subtract:RuntimeWarning")


# -- the kernels, against torch -------------------------------------------------------------------------------------


def scan_of(moves: torch.Tensor, shapes: list[tuple[int, ...]], layout: str) -> DeviceScan:
    """A scan of masters that are `moves` away from zeros."""
    parts = torch.split(moves, [int(np.prod(shape)) for shape in shapes])
    pairs, offset = [], 7
    for part, shape in zip(parts, shapes, strict=True):
        master = LAYOUTS[layout](part.reshape(shape).to(DEVICE))
        pairs.append(Pair("w", nn.Parameter(master), master, torch.zeros_like(master), offset))
        offset += part.numel()
    return DeviceScan(pairs, torch.zeros(len(moves), device=DEVICE), 7, GlobalTopK())


@kernels
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("equal", [False, True])
def test_the_largest_are_those_of_torch_in_index_order(equal: bool, layout: str) -> None:
    shapes = [(9, 40, 3, 5), (), (5000,), (70, 41), (0, 3)]
    moves = torch.randn(sum(int(np.prod(shape)) for shape in shapes))
    moves = moves.round() if equal else moves
    scan = scan_of(moves, shapes, layout)
    for k in (1, 300, 6000, len(moves) + 9):
        expected = top_k(moves.abs(), k)
        count = scan.largest(k)
        places, masters, _ = scan.found(count)
        assert places.tolist() == expected.tolist()
        assert np.array_equal(masters, moves[expected].numpy())


@kernels
def test_all_above_a_threshold_are_counted_and_those_that_have_room_are_given() -> None:
    moves = torch.randn(9000)
    scan = scan_of(moves, [(9000,)], "plain")
    for threshold, k in ((1.0, 3000), (float(moves[77].abs()), 3000), (2.5, 1), (0.0, 100), (9.0, 5)):
        expected = (moves.abs() > threshold).nonzero().squeeze(1)
        count = scan.above(threshold, k)
        assert count == len(expected)
        places, masters, scores = scan.found(min(count, scan.room))
        assert places.tolist() == expected[: scan.room].tolist()
        assert np.array_equal(masters, moves[expected].numpy()[: scan.room])
        assert np.array_equal(scores, np.abs(masters))
    assert count == 0


@kernels
def test_nothing_is_written_behind_the_room() -> None:
    from evergrad.pytorch.triton_kernels import collect

    scan = scan_of(torch.ones(50), [(50,)], "plain")
    aim = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    places, masters = torch.full((10,), -1, device=DEVICE), torch.full((10,), -1.0, device=DEVICE)
    scores = masters.clone()
    collect(scan._units, scan._deployed, aim, places[:5], masters[:5], scores[:5])
    assert aim.tolist() == [0, 0, 0, 50]
    assert places.tolist() == [0, 1, 2, 3, 4, -1, -1, -1, -1, -1]
    assert masters.tolist() == scores.tolist() == [1.0] * 5 + [-1.0] * 5


@kernels
def test_where_nothing_has_moved_nothing_is_found() -> None:
    scan = scan_of(torch.zeros(50), [(50,)], "plain")
    assert scan.largest(5) == scan.above(0.0, 5) == 0
    assert scan.found(0)[0].tolist() == []


@kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 4095, 4096, 8999])
def test_what_is_not_finite_is_seen_wherever_it_is(bad: float, place: int) -> None:
    moves = torch.zeros(9000)
    moves[place] = bad
    scan = scan_of(moves, [(9000,)], "plain")
    assert scan.largest(5) == scan.above(1.0, 5) == -1


COMPILE = """
import triton
from evergrad.pytorch import triton_kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

assert not triton_kernels.INTERPRETED
TYPES = {"deployed": "*fp32", "masters_out": "*fp32", "scores_out": "*fp32", "counts": "*i32", "room": "i32"}
UNIT = {"SIZE": triton_kernels.UNIT}
TALLY = {"SHIFT": 10, "COUNT": 1024} | UNIT
for name, constants in (("_tally", TALLY), ("_narrow", {"COUNT": 2048}), ("_count", UNIT), ("_emit", UNIT)):
    kernel = getattr(triton_kernels, name)
    types = {a: "constexpr" if a in constants else TYPES.get(a, "*i64") for a in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert done.asm["cubin"]
    # What flushes subnormal numbers would choose others than the CPU does.
    assert ".ftz" not in done.asm["ptx"]
print("all")
"""


@kernels
def test_each_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "all\n", done.stderr


# -- the mover ------------------------------------------------------------------------------------------------------


@kernels
@pytest.mark.parametrize(
    ("shapes", "layout", "coarse", "values"),
    [
        ("layers", "reversed", False, "steps"),
        ("layers", "plain", True, "exact"),
        ("convolutions", "transposed", True, "steps"),
        ("one", "plain", False, "exact"),
    ],
)
def test_kernels_and_reference_move_the_same(shapes: str, layout: str, coarse: bool, values: ValuesAs) -> None:
    model = model_of(SHAPES[shapes])
    ours = Copies(model, LAYOUTS[layout], values=values, device=DEVICE)
    reference = Copies(model, lay_plain, values=values, compiled=False)
    assert isinstance(ours.mover, DeviceMover)
    generator = torch.Generator().manual_seed(3)
    moved_something = False
    for step in range(14):
        gradients = gradients_of(reference, generator, coarse)
        if step % 7 == 6:
            gradients = [torch.zeros_like(g) for g in gradients]
        ours.train(gradients)
        reference.train(gradients)
        k = (1, 50, 50, 50, 10**6)[step % 5]
        mine, theirs = ours.move(k), reference.move(k)
        assert same(mine, theirs)
        moved_something |= mine is not None
        assert_mirrored(ours)
    assert moved_something


@kernels
@pytest.mark.parametrize("values", ["steps", "exact"])
@pytest.mark.parametrize(
    ("shapes", "layout"), [("layers", "plain"), ("convolutions", "transposed"), ("one", "reversed")]
)
def test_kernels_weigh_by_second_moments_as_the_reference_does(shapes: str, layout: str, values: ValuesAs) -> None:
    model = model_of(SHAPES[shapes])
    mine, theirs = SecondMoments(model, LAYOUTS[layout], DEVICE), SecondMoments(model)
    ours = Copies(model, LAYOUTS[layout], mine.selector, values, device=DEVICE)
    reference = Copies(model, lay_plain, theirs.selector, values, compiled=False)
    assert isinstance(ours.mover, DeviceMover)
    assert_weighed_alike(ours, reference, (mine, theirs), coarse=False, steps=12, again=7, every=1)


@kernels
def test_a_threshold_that_fits_no_more_is_found_anew() -> None:
    """More candidates than there is room for, then fewer than k, then neither."""
    model = model_of([(9000,)])
    ours, reference = Copies(model, device=DEVICE), Copies(model, compiled=False)
    for size in (0.1, 5.0, 0.0, 0.001, 0.001, 100.0, 0.0):
        gradients = gradients_of(reference, torch.Generator().manual_seed(4), coarse=False)
        for copies in (ours, reference):
            copies.train([size * g for g in gradients])
        assert same(ours.move(20), reference.move(20))
        assert_mirrored(ours)


@kernels
@OVERFLOWS
@settings(deadline=None, derandomize=True, max_examples=10)
@given(
    moves=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=200),
    k=st.integers(1, 210),
)
def test_any_finite_difference(moves: list[float], k: int) -> None:
    model = model_of([(len(moves),)])
    ours, reference = Copies(model, device=DEVICE), Copies(model, compiled=False)
    for copies in (ours, reference):
        copies.pairs[0].master.copy_(torch.tensor(moves, dtype=torch.float32))
    for _ in range(2):
        assert same(ours.move(k), reference.move(k))
        assert_mirrored(ours)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=kernels), False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_and_moves_nothing(bad: float, compiled: bool) -> None:
    copies = Copies(model_of(SHAPES["convolutions"]), lay_transposed, compiled=compiled, device=DEVICE)
    copies.train(gradients_of(copies, torch.Generator().manual_seed(1), coarse=False))
    copies.move(5)
    copies.pairs[2].master[1, 3] = bad
    before = copies.state.digest
    with pytest.raises(NonFiniteWeights, match="w2"):
        copies.move(5)
    assert copies.state.digest == before
    assert_mirrored(copies)


@kernels
@OVERFLOWS
def test_a_difference_of_finite_numbers_may_be_infinite() -> None:
    copies = Copies(model_of([(4,)]), device=DEVICE)
    copies.pairs[0].deployed.fill_(-3e38)
    copies.state.arrays[0][:] = -3e38
    copies.state.digest = digest(copies.state.schema, copies.state.arrays)
    copies.pairs[0].master.fill_(3e38)
    copies.move(2)
    assert np.isfinite(copies.state.arrays[0]).all()
    assert_mirrored(copies)


# -- the torch form -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["steps", "exact"])
@pytest.mark.parametrize("selector", [GlobalTopK, LayerTopK, RandomK, lambda: Threshold(0.02)])
def test_torch_moves_the_same_on_a_device(selector: type[Selector], values: ValuesAs) -> None:
    model = model_of(SHAPES["convolutions"])
    ours = Copies(model, lay_transposed, selector(), values, compiled=False, device=DEVICE)
    reference = Copies(model, lay_plain, selector(), values, compiled=False)
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        gradients = gradients_of(reference, generator, coarse=True)
        ours.train(gradients)
        reference.train(gradients)
        assert same(ours.move(30), reference.move(30))
        assert_mirrored(ours)


def test_what_the_kernels_cannot_do_is_left_to_torch() -> None:
    half = nn.Module()
    half.register_parameter("w", nn.Parameter(torch.ones(3, dtype=torch.bfloat16)))
    state = State.from_tensors(schema_of(half), {"w": np.full(3, 0x3F80, np.uint16)})
    mirror = Mirror(state, torch.device(DEVICE), {"BF16", "F32"})
    pair = Pair("w", half.w, half.w.detach(), mirror.views["w"], 0)
    mover = make_device_mover(lambda: [pair], state, mirror.flat.get("F32"), lambda: None, GlobalTopK(), "steps")
    assert isinstance(mover, ReferenceMover)
    assert isinstance(Copies(model_of([(0, 4)]), device=DEVICE).mover, ReferenceMover)
    assert isinstance(Copies(model_of([(3,)]), selector=LayerTopK(), device=DEVICE).mover, ReferenceMover)


def test_without_triton_torch_does_it_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda, "TRITON", False)
    cuda.say_that_torch_selects.cache_clear()
    assert isinstance(Copies(model_of([(3,)]), device=DEVICE).mover, ReferenceMover)
    assert "torch selects" in caplog.text
    caplog.clear()
    assert isinstance(Copies(model_of([(3,)]), device=DEVICE).mover, ReferenceMover)
    assert caplog.text == ""  # once in a process


def test_a_copy_that_someone_wrote_to_is_told() -> None:
    copies = Copies(model_of(SHAPES["layers"]), compiled=False, device=DEVICE)
    assert_mirrored(copies)
    copies.pairs[4].deployed[3, 3] += 1e-3
    with pytest.raises(WeightsChanged):
        assert_mirrored(copies)
