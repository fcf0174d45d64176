"""Each verdict of the gate, on losses made for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from evergrad.errors import ConfigError
from evergrad.gate import Decision, Gate

BATCH = 8
Floats = npt.NDArray[np.float64]


class Stream:
    """Feeds a gate with batches of 8 losses, and keeps what it decided. Usual losses have mean 1, bad ones 10."""

    def __init__(self, gate: Gate, seed: int = 0) -> None:
        self.gate, self.decisions = gate, list[Decision]()
        self._rng = np.random.default_rng(seed)
        self.seen = 0

    def losses(self, level: float, count: int = BATCH) -> Floats:
        return level * self._rng.exponential(size=count)

    def give(self, served: npt.ArrayLike, candidate: npt.ArrayLike | None = None) -> Decision:
        found = self.gate.judge(served, candidate, first=self.seen, last=self.seen + BATCH - 1)
        self.decisions.append(found)
        self.seen += BATCH
        return found

    def usual(self, batches: int = 250) -> Stream:
        for _ in range(batches):
            assert self.give(self.losses(1.0)).verdict == "publish"
        return self

    def until_held(self, level: float = 10.0, batches: int = 5) -> Decision:
        for _ in range(batches):
            found = self.give(level + self.losses(1.0))
            if found.verdict == "hold":
                return found
        raise AssertionError("no hold")

    def held(self, served: float, candidate: float, batches: int) -> Decision:
        """The last decision: that which ended the hold, if any did. Losses of given means go up and down together."""
        for _ in range(batches):
            losses = self.losses(1.0) - 1
            found = self.give(served + losses, candidate + losses)
            if found.verdict != "hold":
                break
        return found

    @property
    def alerts(self) -> list[str]:
        return [d.verdict for d in self.decisions if d.alert]


def settings_of(**changes: Any) -> Gate:
    return Gate(**({"reference": 400, "patience": 600} | changes))


def test_usual_losses_are_published_without_a_word() -> None:
    stream = Stream(settings_of()).usual(2000)
    assert stream.alerts == []
    assert stream.decisions[-1] == Decision(verdict="publish", first=15992, last=15999)
    assert stream.gate.held == 0


def test_anything_finite_passes_before_enough_is_known() -> None:
    stream = Stream(settings_of())
    assert all(stream.give([0.0, 1e6, -5.0, 1e300] * 2).verdict == "publish" for _ in range(400 // 2 // BATCH))


def test_falling_losses_pass_and_so_do_equal_ones() -> None:
    stream = Stream(settings_of())
    assert all(stream.give(stream.losses(1 / (1 + i / 20))).verdict == "publish" for i in range(500))
    same = Stream(settings_of())
    assert all(same.give(np.ones(BATCH)).verdict == "publish" for _ in range(500))


def test_sudden_rise_holds_within_two_batches_and_is_told_once() -> None:
    stream = Stream(settings_of()).usual()
    found = stream.until_held(batches=2)
    assert found.alert
    assert found.suspect is not None
    assert 1992 <= found.suspect[0] <= 2000
    assert found.suspect[1] == found.last
    assert found.held == stream.gate.held == BATCH
    assert found.evidence >= 6
    assert "1 in 10 is usual" in found.reason
    later = stream.held(served=10.0, candidate=10.0, batches=1)
    assert (later.verdict, later.alert, later.reason, later.held) == ("hold", False, "", 2 * BATCH)


def test_rise_of_one_batch_in_a_hundred_is_none() -> None:
    stream = Stream(settings_of())
    for i in range(1000):
        losses = stream.losses(1.0)
        losses[0] += 100 * (i % 20 == 0)
        assert stream.give(losses).verdict == "publish"


def test_wrong_labels_end_with_a_rollback_that_names_them_where_the_candidate_is_worse() -> None:
    stream = Stream(settings_of()).usual()
    stream.until_held()
    stream.held(served=10.0, candidate=2.0, batches=40)
    end = stream.seen - 1
    found = stream.held(served=1.0, candidate=3.0, batches=100)
    assert (found.verdict, found.alert) == ("rollback", True)
    assert "worse" in found.reason
    assert found.suspect is not None
    assert abs(found.suspect[0] - 2000) <= BATCH
    assert end <= found.suspect[1] <= end + 100
    assert stream.alerts == ["hold", "hold", "rollback"]
    assert stream.gate.held == 0
    stream.usual(100)


def test_wrong_labels_end_with_a_release_where_the_candidate_took_no_harm() -> None:
    stream = Stream(settings_of(patience=2000)).usual()
    stream.until_held()
    stream.held(served=10.0, candidate=9.0, batches=40)
    found = stream.held(served=1.0, candidate=0.99, batches=200)
    assert (found.verdict, found.alert) == ("release", True)
    assert found.suspect is not None
    stream.usual(100)


def test_candidate_that_nothing_is_shown_of_is_rolled_back_after_a_quarter_of_patience() -> None:
    stream = Stream(settings_of()).usual()
    stream.until_held()
    stream.held(served=10.0, candidate=9.0, batches=40)
    while stream.alerts == ["hold"]:
        stream.held(served=1.0, candidate=1.0, batches=1)
    found = stream.held(served=1.0, candidate=1.04, batches=200)
    assert found.verdict == "rollback"
    assert "not shown" in found.reason
    recovered = [d for d in stream.decisions if d.alert][1]
    assert 150 <= found.held - recovered.held < 150 + BATCH


def test_labels_that_changed_for_good_are_released_when_patience_is_over() -> None:
    stream = Stream(settings_of()).usual()
    stream.until_held()
    found = stream.held(served=10.0, candidate=1.0, batches=200)
    assert (found.verdict, found.suspect) == ("release", None)
    assert 600 <= found.held < 600 + BATCH
    assert stream.alerts == ["hold", "release"]
    stream.until_held()


def test_candidate_that_is_little_better_is_released_after_twice_the_patience() -> None:
    stream = Stream(settings_of()).usual()
    stream.until_held()
    found = stream.held(served=10.0, candidate=4.0, batches=400)
    assert found.verdict == "release"
    assert 1200 <= found.held < 1200 + BATCH
    assert stream.alerts == ["hold", "hold", "release"]


@pytest.mark.parametrize(("candidate", "verdict"), [(30.0, "release"), (60.0, "rollback")])
def test_labels_that_nobody_can_predict_are_taken_at_their_word_after_four_times_the_patience(
    candidate: float, verdict: str
) -> None:
    stream = Stream(settings_of()).usual()
    stream.until_held(level=40.0)
    found = stream.held(served=40.0, candidate=candidate, batches=400)
    assert (found.verdict, found.suspect) == (verdict, None)
    assert 2400 <= found.held < 2400 + BATCH
    assert stream.alerts == ["hold", "hold", "hold", verdict]
    served = candidate if verdict == "release" else 40.0
    for _ in range(100):
        assert stream.give(served + stream.losses(1.0)).verdict == "publish"


def test_second_burst_while_comparing_goes_on_with_the_hold() -> None:
    stream = Stream(settings_of()).usual()
    first = stream.until_held()
    stream.held(served=10.0, candidate=2.0, batches=30)
    while stream.alerts == ["hold"]:
        stream.held(served=1.0, candidate=1.2, batches=1)
    stream.held(served=10.0, candidate=0.5, batches=30)
    end = stream.seen - 1
    found = stream.held(served=1.0, candidate=3.0, batches=60)
    assert stream.alerts == ["hold", "hold", "hold", "hold", "rollback"]
    assert found.suspect is not None
    assert first.suspect is not None
    assert found.suspect[0] == first.suspect[0]
    assert end <= found.suspect[1] <= end + 100


def test_first_batch_of_a_second_burst_releases_nothing() -> None:
    """It is too weak to be an alarm alone, and the candidate, which knows the bad labels by then, shines on it."""
    stream = Stream(settings_of(patience=4000)).usual()
    stream.until_held()
    stream.held(served=10.0, candidate=1.0, batches=30)
    while stream.alerts == ["hold"]:
        stream.held(served=1.0, candidate=1.0, batches=1)
    assert stream.held(served=1.0, candidate=1.0, batches=14).verdict == "hold"
    assert not stream.give(np.full(BATCH, 2.6), np.full(BATCH, 0.1)).alert
    assert stream.give(np.full(BATCH, 2.6), np.full(BATCH, 0.1)).alert
    assert stream.alerts == ["hold", "hold", "hold"]


def test_labels_of_which_half_are_wrong_are_not_taken_for_the_end_of_a_burst() -> None:
    stream = Stream(settings_of()).usual()
    stream.until_held()
    for i in range(70):
        losses = stream.losses(1.0)
        losses[::2] += 10
        found = stream.give(losses, losses)
        assert not found.alert, i


def test_suspicious_losses_do_not_become_usual() -> None:
    stream = Stream(settings_of())
    for _ in range(500):
        stream.give([stream.losses(1.0).mean()])
    for _ in range(5):
        found = stream.give([10.0])
    assert found.verdict == "hold"
    assert found.suspect == (4000, 4039)
    state = stream.gate.state_dict()
    assert max(state["reference"]["losses"]) < 10
    assert state["hold"]["bad_share"] == 5 / 9, "five of five, counted low"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("batches", [0, 250])
def test_loss_that_is_no_number_holds_at_once_and_ends_when_they_are_gone(bad: float, batches: int) -> None:
    stream = Stream(settings_of(patience=2000)).usual(batches)
    found = stream.give([1.0] * 7 + [bad])
    assert (found.verdict, found.alert, found.reason) == ("hold", True, "a loss is not finite")
    found = stream.held(served=1.0, candidate=0.99, batches=200)
    assert found.verdict == "release"
    assert found.suspect is not None
    assert found.suspect[0] == 8 * batches
    stream.usual(10)


def test_candidate_whose_losses_are_no_numbers_is_rolled_back() -> None:
    stream = Stream(settings_of()).usual()
    stream.until_held()
    for _ in range(20):
        stream.give(10 + stream.losses(1.0), np.full(BATCH, np.nan))
    while stream.gate.held:
        found = stream.give(stream.losses(1.0), np.full(BATCH, np.nan))
    assert found.verdict == "rollback"


def test_never_finite_losses_are_taken_at_their_word_without_a_warning() -> None:
    stream = Stream(settings_of()).usual()
    found = stream.give(np.full(BATCH, np.inf))
    while found.verdict == "hold":
        found = stream.give(np.full(BATCH, np.inf), np.full(BATCH, np.nan))
    assert (found.verdict, found.held) == ("release", 2400)


def test_unknown_candidate_is_rolled_back_or_released_at_last() -> None:
    stream = Stream(settings_of()).usual()
    stream.until_held()
    while stream.gate.held:
        found = stream.give(stream.losses(1.0))
    assert found.verdict == "rollback"
    stream.until_held()
    while stream.gate.held:
        found = stream.give(10 + stream.losses(1.0))
    assert (found.verdict, found.held) == ("release", 2400)
    for _ in range(50):
        assert stream.give(10 + stream.losses(1.0)).verdict == "publish"


def test_mean_losses_alone_are_enough_in_five_batches() -> None:
    stream = Stream(settings_of(patience=4000))
    for _ in range(500):
        assert stream.give([stream.losses(1.0).mean()]).verdict == "publish"
    stream.until_held(batches=5)
    for _ in range(50):
        stream.give([10.0], [2.0])
    while stream.gate.held:
        found = stream.give([stream.losses(1.0).mean()], [3.0])
    assert found.verdict == "rollback"


def test_batch_without_examples_changes_nothing() -> None:
    stream = Stream(settings_of()).usual()
    before = stream.gate.state_dict()
    assert stream.give([]) == Decision(verdict="publish", first=2000, last=2007)
    assert stream.gate.state_dict() == before
    stream.until_held()
    assert stream.give([], []).verdict == "hold"
    assert stream.gate.held == BATCH


def test_losses_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(8,\), \(7,\)"):
        Gate().judge(np.ones(8), np.ones(7), first=0, last=7)


def test_move_out_of_bounds_holds_until_the_candidate_is_compared() -> None:
    stream = Stream(settings_of(patience=2000)).usual()
    for size in [0.0, *[1.0, 2.0] * 50]:
        assert stream.gate.judge_move(size, first=0, last=7).verdict == "publish"
    assert stream.gate.judge_move(20.0, first=1984, last=1991).verdict == "publish"
    found = stream.gate.judge_move(200.1, first=1992, last=1999)
    assert (found.verdict, found.alert, found.suspect) == ("hold", True, (1992, 1999))
    assert found.reason == "a step moves the served weights by 200.1; 200 is the bound"
    again = stream.gate.judge_move(1.0, first=2000, last=2007)
    assert (again.verdict, again.alert) == ("hold", False)
    assert stream.held(served=1.0, candidate=3.0, batches=100).verdict == "rollback"


def test_a_hundred_moves_are_needed_for_a_bound_but_none_to_refuse_what_is_no_number() -> None:
    gate = settings_of()
    assert all(gate.judge_move(1.0, first=0, last=7).verdict == "publish" for _ in range(99))
    assert gate.judge_move(1e9, first=0, last=7).verdict == "publish"
    assert Gate().judge_move(math.nan, first=0, last=7).verdict == "hold"
    assert Gate().judge_move(math.inf, first=0, last=7).verdict == "hold"


def test_equal_settings_are_equal_whatever_was_seen() -> None:
    used = Stream(settings_of()).usual(10).gate
    assert used == settings_of()
    assert hash(used) == hash(settings_of())
    assert "memory" not in repr(used)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"alpha": 0.0}, "gate.alpha"),
        ({"alpha": 1.0}, "gate.alpha"),
        ({"alpha": math.nan}, "gate.alpha"),
        ({"patience": 0}, "gate.patience"),
        ({"reference": 99}, "gate.reference"),
        ({"tolerance": 0.9}, "gate.tolerance"),
        ({"tolerance": 4.1}, "gate.tolerance"),
        ({"tolerance": math.nan}, "gate.tolerance"),
        ({"largest_move": 0.5}, "gate.largest_move"),
        ({"largest_move": math.nan}, "gate.largest_move"),
    ],
)
def test_settings_out_of_range_are_refused_by_key(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Gate(**settings)
    assert caught.value.key == key
