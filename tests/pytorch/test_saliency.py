"""Selection by what a move is worth to the loss: the same elements by compiled code and by the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import evergrad
from evergrad.codec.streams import MAX_LEVEL
from evergrad.errors import ConfigError
from evergrad.pytorch import kernels, mover, select
from evergrad.pytorch.mover import CompiledMover
from evergrad.pytorch.select import GlobalTopK, Saliency, Selector
from evergrad.pytorch.settings import Forward
from tests.pytorch.copies import (
    LAYOUTS,
    SHAPES,
    Copies,
    SecondMoments,
    assert_weighed_alike,
    at_zero,
    gradients_of,
    indices_of,
    lay_plain,
    model_of,
    same,
)
from tests.pytorch.models import batch_norm, train


@pytest.mark.parametrize("values", ["steps", "exact"])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shapes", SHAPES)
def test_compiled_and_reference_move_the_same(shapes: str, layout: str, coarse: bool, values: mover.ValuesAs) -> None:
    model = model_of(SHAPES[shapes])
    mine, theirs = SecondMoments(model, LAYOUTS[layout]), SecondMoments(model)
    ours = Copies(model, LAYOUTS[layout], mine.selector, values)
    reference = Copies(model, lay_plain, theirs.selector, values, compiled=False)
    assert isinstance(ours.mover, CompiledMover)
    assert_weighed_alike(ours, reference, (mine, theirs), coarse=coarse, steps=30, again=15, every=4)


def test_a_distance_counts_by_the_fourth_root_of_its_second_moment() -> None:
    model = at_zero([(3,)])
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.state[model.w0]["exp_avg_sq"] = torch.tensor([1.0, 625.0, 16.0])
    copies = Copies(model, selector=Saliency(optimizer), values="exact")
    copies.pairs[0].master.copy_(torch.tensor([0.4, 0.1, 0.3]))  # 0.4, 0.5 and 0.6
    assert [indices_of(copies, 1).tolist() for _ in range(3)] == [[2], [1], [0]]


def test_what_never_had_a_gradient_is_sent_too() -> None:
    model = at_zero([(2,)])
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.state[model.w0]["exp_avg_sq"] = torch.tensor([0.0, 1e-2])
    for compiled in (True, False):
        copies = Copies(model, selector=Saliency(optimizer), values="exact", compiled=compiled)
        copies.pairs[0].master.copy_(torch.tensor([1e-30, 0.0]))
        assert indices_of(copies, 2).tolist() == [0]


def test_without_second_moments_it_is_the_global_top_k() -> None:
    def moved(selector: Selector) -> list[int]:
        torch.manual_seed(5)
        copies = Copies(model_of([(50,), (9, 9)]), selector=selector, values="exact")
        copies.train(gradients_of(copies, torch.Generator().manual_seed(1), coarse=False))
        return indices_of(copies, 20).tolist()

    model = model_of([(50,), (9, 9)])
    assert moved(Saliency(torch.optim.SGD(model.parameters(), 0.1))) == moved(GlobalTopK())


@pytest.mark.parametrize(("name", "state"), [("RMSprop", "square_avg"), ("Adagrad", "sum"), ("AdamW", "exp_avg_sq")])
def test_other_optimizers_keep_second_moments_too(name: str, state: str) -> None:
    model = model_of([(4, 3)])
    optimizer = getattr(torch.optim, name)(model.parameters())
    copies = Copies(model, selector=Saliency(optimizer))
    model.w0.grad = torch.ones(4, 3)
    optimizer.step()
    (found,) = Saliency(optimizer).second_moments(copies.pairs)
    assert found is not None
    assert torch.equal(found, optimizer.state[model.w0][state])


def test_where_only_some_tensors_have_them_distances_count_plainly() -> None:
    model = at_zero([(2,), (2,)])
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.state[model.w0]["exp_avg_sq"] = torch.full((2,), 1e-6)
    optimizer.state[model.w1]["exp_avg_sq_row"] = torch.full((2,), 1e-6)
    for compiled in (True, False):
        copies = Copies(model, selector=Saliency(optimizer), values="exact", compiled=compiled)
        copies.pairs[0].master.copy_(torch.tensor([0.3, 0.1]))
        copies.pairs[1].master.copy_(torch.tensor([0.2, 0.05]))
        assert indices_of(copies, 2).tolist() == [0, 2]


def test_compiled_code_and_reference_have_the_same_constants() -> None:
    assert kernels.SALIENCY_EPS == select.SALIENCY_EPS
    assert kernels.LEAST_LEVEL == select.LEAST_LEVEL
    assert kernels.MOST_LEVEL == MAX_LEVEL


def test_how_dimensions_of_one_element_are_strided_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depthwise convolutions with channels last, whose optimizer's state was loaded."""
    model = model_of([(6, 1, 3, 3)])
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.state[model.w0]["exp_avg_sq"] = torch.rand(6, 1, 3, 3)
    lay = lambda tensor: tensor.clone().as_strided(tensor.shape, (9, 1, 3, 1))  # noqa: E731
    copies = Copies(model, lay, Saliency(optimizer))
    assert isinstance(copies.mover, CompiledMover)
    assert copies.pairs[0].master.stride() != optimizer.state[model.w0]["exp_avg_sq"].stride()
    monkeypatch.setattr(copies.mover._reference, "move", None)
    copies.pairs[0].master.add_(torch.linspace(-1, 1, 54).reshape(6, 1, 3, 3))
    assert len(indices_of(copies, 9)) == 9


def test_second_moments_of_another_kind_are_left_to_the_reference(caplog: pytest.LogCaptureFixture) -> None:
    mover.say_that_torch_selects.cache_clear()
    model = model_of([(4, 3)])
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.state[model.w0]["exp_avg_sq"] = torch.full((4, 3), 1e-4, dtype=torch.bfloat16)
    ours = Copies(model, selector=Saliency(optimizer))
    reference = Copies(model, selector=Saliency(optimizer), compiled=False)
    for copies in (ours, reference):
        copies.pairs[0].master.add_(torch.linspace(-1, 1, 12).reshape(4, 3))
    assert same(ours.move(4), reference.move(4))
    assert "torch selects, which is slower: the optimizer's second moments are not float32" in caplog.text


@pytest.mark.parametrize("forward", ["master", "deployed", "auto"])
@pytest.mark.parametrize("values", ["steps", "exact"])
def test_a_replica_of_what_it_chooses_is_the_deployed_model(
    forward: Forward, values: mover.ValuesAs, any_url: str
) -> None:
    model = batch_norm()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, amsgrad=True)
    with evergrad.Publisher(model, optimizer, any_url, density=0.05, forward=forward, values=values) as publisher:
        assert isinstance(publisher._mover, CompiledMover)
        assert isinstance(publisher._selector, Saliency)
        for _ in train(model, optimizer, 12):
            publisher.publish()
        replica = evergrad.Replica(any_url)
        assert replica.sync() == publisher.version > 0
        assert replica.digest == publisher.digest


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({}, Saliency), ({"quality": 0.1}, GlobalTopK), ({"selector": "distance"}, GlobalTopK)],
)
def test_worth_is_what_goes_by_default_where_it_is_known(settings: dict[str, Any], kind: type[Selector]) -> None:
    model = model_of([(3,)])
    with evergrad.Publisher(model, torch.optim.Adam(model.parameters()), "memory:known", **settings) as publisher:
        assert type(publisher._selector) is kind
    with evergrad.Publisher(model, None, "memory:unknown") as publisher:
        assert type(publisher._selector) is GlobalTopK


def test_what_cannot_be_chosen_by_is_named() -> None:
    model = model_of([(3,)])
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(ConfigError, match="'distance', 'saliency' or a selector, not 'size'"):
        evergrad.Publisher(model, optimizer, "memory:size", selector="size")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="where no optimizer steps the model"):
        evergrad.Publisher(model, None, "memory:none", selector="saliency")
