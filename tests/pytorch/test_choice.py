"""forward="auto": which copy gradients are taken at follows from what both score, and survives a checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch

from evergrad import Replica
from evergrad.errors import WeightsChanged
from evergrad.pytorch.choice import Choice
from evergrad.pytorch.publisher import Publisher
from tests.pytorch.models import assert_equal, batches, channels_last, deployed_bits, linear, loss_of, sgd, train

BEHIND, AHEAD, LEVEL = (2.0, 1.0), (1.0, 4.0), (1.0, 1.0)


def shown(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1).clone() for parameter in model.parameters()])


def test_the_deployed_copy_is_chosen_where_it_is_clearly_behind() -> None:
    choice = Choice()
    assert not choice.closed
    choice.score(1.04, 1.0)
    assert not choice.closed
    for _ in range(3):
        choice.score(1.5, 1.0)
    assert choice.closed
    for _ in range(100):
        choice.score(1.0, 1.0)
    assert not choice.closed


def test_where_the_deployed_copy_follows_few_scores_will_do() -> None:
    choice = Choice()

    def asked(times: int, scores: tuple[float, float]) -> int:
        wanted = 0
        for _ in range(times):
            if choice.wants_score():
                wanted += 1
                choice.score(*scores)
        return wanted

    assert asked(50, LEVEL) == 50
    assert asked(100, LEVEL) == 25
    assert asked(100, BEHIND) >= 97  # from the first score on that shows it
    assert asked(400, AHEAD) < 200
    again = Choice()
    again.load_state_dict(choice.state_dict())
    assert [again.wants_score() for _ in range(8)] == [choice.wants_score() for _ in range(8)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_losses_that_are_not_finite_say_nothing(bad: float) -> None:
    choice = Choice()
    choice.score(*BEHIND)
    before = choice.state_dict()
    choice.score(bad, 1.0)
    choice.score(1.0, bad)
    assert choice.state_dict() == before


def test_memory_is_let_go_where_the_master_is_behind() -> None:
    choice = Choice()
    assert choice.keep() == 1
    choice.score(1.0, 2.0)
    assert choice.keep() == pytest.approx(0.9)
    choice.score(1e-3, 1e3)
    assert choice.keep() == 0.5
    gentle = Choice()
    gentle.score(1.0, 1.1)
    kept = [gentle.keep() for _ in range(22)]
    assert [each < 1 for each in kept] == [False] * 10 + [True] + [False] * 10 + [True]
    assert kept[10] == pytest.approx(0.99**11, abs=0.005)


def test_unscored_it_is_the_open_loop_bit_for_bit(url: str) -> None:
    digests = []
    for forward in ("auto", "master"):
        torch.manual_seed(0)
        model = linear()
        optimizer = sgd(model)
        with Publisher(model, optimizer, f"{url}-{forward}", density=0.05, forward=forward) as publisher:
            for _ in train(model, optimizer, 4):
                publisher.publish()
            digests.append(publisher.digest)
    assert digests[0] == digests[1]


def test_parameters_show_the_copy_that_was_chosen(url: str) -> None:
    model = channels_last()
    optimizer = sgd(model)
    with Publisher(model, optimizer, url, density=0.02) as publisher:
        assert publisher.choice is not None
        for scores, closed in ((LEVEL, False), (BEHIND, True), (BEHIND, True), (AHEAD, False)):
            for _ in range(100 if scores == AHEAD else 1):
                publisher.score(*scores)
            assert publisher.closed == closed
            for _ in train(model, optimizer, 1):
                publisher.publish()
            own = shown(model)
            with publisher.deployed() if closed else publisher.master():
                assert torch.equal(shown(model), own)
            with publisher.master() if closed else publisher.deployed():
                assert not torch.equal(shown(model), own)
            assert_equal(publisher, Replica(url))


def test_letting_go_takes_the_master_towards_what_is_deployed(url: str) -> None:
    model = channels_last()
    optimizer = sgd(model)
    with Publisher(model, optimizer, url, density=0.02) as publisher:
        for _ in train(model, optimizer, 3):
            publisher.publish()
        with publisher.deployed():
            deployed = shown(model)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        master = shown(model)
        publisher.score(*AHEAD)
        optimizer.step()
        with publisher.deployed():
            moved = shown(model)
        expected = master + 0.3 * (moved - master)
        assert torch.allclose(shown(model), expected, atol=1e-6)
        assert (moved != deployed).any()


@pytest.mark.parametrize("given", ["deployed", "master"])
def test_a_loop_that_was_named_does_not_choose(given: str, url: str) -> None:
    model = linear()
    with Publisher(model, sgd(model), url, forward=given) as publisher:  # type: ignore[arg-type]
        publisher.score(*BEHIND)
        assert publisher.choice is None
        assert publisher.closed == (given == "deployed")


def test_a_model_that_no_optimizer_steps_is_followed_whatever_it_scores(url: str) -> None:
    model = linear()
    with Publisher(model, None, url) as publisher:
        publisher.score(*BEHIND)
        assert (publisher.choice, publisher.closed) == (None, False)


def test_a_checkpoint_holds_the_choice(url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, density=0.05, clock=lambda: 1e9)
    publisher.score(*BEHIND)
    for _ in train(model, optimizer, 3):
        publisher.publish()
    state, rest = copy.deepcopy((publisher.state_dict(), (model.state_dict(), optimizer.state_dict())))

    def go_on(publisher: Publisher, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
        assert publisher.closed
        for scores in (BEHIND, AHEAD, AHEAD, LEVEL):
            publisher.score(*scores)
            for _ in train(model, optimizer, 1):
                publisher.publish()
        found = deployed_bits(publisher)
        publisher.detach()
        return str(found)

    expected = go_on(publisher, model, optimizer)
    again = linear()
    again.load_state_dict(rest[0])
    stepped = sgd(again)
    stepped.load_state_dict(rest[1])
    resumed = Publisher(again, stepped, url, density=0.05, resume=state, clock=lambda: 1e9)
    assert go_on(resumed, again, stepped) == expected


def test_a_new_generation_keeps_the_choice(url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    with Publisher(model, optimizer, url, density=0.05) as publisher:
        publisher.score(*BEHIND)
        for _ in train(model, optimizer, 2):
            publisher.publish()
        model.late = torch.nn.Parameter(torch.ones(2))
        optimizer.add_param_group({"params": [model.late]})
        for _ in train(model, optimizer, 2):
            publisher.publish()
        assert publisher.closed
        own = shown(model)
        with publisher.deployed():
            assert torch.equal(shown(model), own)


def test_deployed_weights_that_were_written_to_are_told(url: str) -> None:
    model = linear()
    optimizer = sgd(model)
    publisher = Publisher(model, optimizer, url, density=0.05)
    publisher.score(*BEHIND)
    with torch.no_grad():
        model[3].bias.add_(1.0)
    with pytest.raises(WeightsChanged):
        publisher.score(*AHEAD)
    loss_of(model, *next(batches())).backward()
    with pytest.raises(WeightsChanged):
        optimizer.step()
    publisher.detach()
