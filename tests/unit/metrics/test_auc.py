"""The area under the ROC curve, exact and binned, over all, a window, and fading, against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evergrad.errors import ConfigError, ScoreMismatch
from evergrad.metrics import BinnedAUC, Metric, WindowedAUC

FORMS: dict[str, Callable[[], Metric]] = {
    "windowed": lambda: WindowedAUC(1000),
    "cumulative": BinnedAUC,
    "fading": lambda: BinnedAUC(1e12),
}
every_form = pytest.mark.parametrize("make", FORMS.values(), ids=list(FORMS))


def stream(examples: int, positive: float, shift: float = 0.0, seed: int = 0) -> tuple[Any, Any]:
    """Logits and labels whose AUC is about 0.8."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(examples) < positive).astype("i8")
    return rng.normal(size=examples) + 1.2 * labels + shift, labels


def sigmoid(logits: Any) -> Any:
    return 1 / (1 + np.exp(-logits))


@every_form
def test_auc_by_hand(make: Callable[[], Metric]) -> None:
    metric = make()
    assert math.isnan(metric.value)
    metric.add(np.array([0.2, 0.9]), np.array([0, 0]))
    assert math.isnan(metric.value)
    metric.add(np.array([0.9]), np.array([1]))
    assert metric.value == pytest.approx(0.75)  # one pair won, one tied
    metric.add(np.array([0.1]), np.array([1]))
    assert metric.value == pytest.approx(0.375)


@every_form
@pytest.mark.parametrize("dtype", ["?", "i8", "f4"])
def test_shapes_that_say_the_same_give_the_same(make: Callable[[], Metric], dtype: str) -> None:
    logits, labels = stream(200, 0.5)
    two = np.stack([np.zeros(200), logits], axis=1)
    found = []
    for outputs in (logits, logits[:, None], two):
        metric = make()
        metric.add(outputs, labels.astype(dtype).reshape(-1, 1))
        found.append(metric.value)
    assert found[0] == found[1] == found[2] == pytest.approx(roc_auc_score(labels, logits), abs=1e-3)


def test_window_forgets_all_but_the_last_however_they_come() -> None:
    logits, labels = stream(300, 0.5)
    for step in (1, 7, 100, 300):
        metric = WindowedAUC(64)
        for start in range(0, 300, step):
            metric.add(logits[start : start + step], labels[start : start + step])
        assert metric.value == pytest.approx(roc_auc_score(labels[-64:], logits[-64:]), abs=1e-12)


@pytest.mark.parametrize(("positive", "shift"), [(0.5, 0.0), (0.02, -2.5), (0.98, 5.0)])
@pytest.mark.parametrize("outputs_of", [lambda z: z, sigmoid, lambda z: sigmoid(z).astype("f4")])
def test_binned_is_near_the_exact_one(positive: float, shift: float, outputs_of: Callable[[Any], Any]) -> None:
    logits, labels = stream(20_000, positive, shift)
    outputs, metric = outputs_of(logits), BinnedAUC()
    metric.add(outputs, labels)
    assert metric.value == pytest.approx(roc_auc_score(labels, outputs), abs=1e-4)


def test_binned_tells_scores_apart_near_0_and_near_1() -> None:
    distances = np.array([1e-12, 1e-9, 1e-6, 1e-3])
    scores = np.concatenate([-1 / distances, distances, 1 - distances[::-1], 1 / distances[::-1]])
    for place in range(1, len(scores)):
        metric = BinnedAUC()
        metric.add(scores, np.arange(len(scores)) >= place)
        assert metric.value == 1.0


def test_binned_ties_zero_with_minus_zero_and_takes_what_float32_cannot_hold() -> None:
    metric = BinnedAUC()
    metric.add(np.array([0.0, -0.0]), np.array([0, 1]))
    assert metric.value == 0.5
    metric = BinnedAUC()
    metric.add(np.array([-np.inf, -1e300, 1e300, np.inf]), np.array([0, 0, 1, 1]))
    assert metric.value == 1.0


@pytest.mark.parametrize("half_life", [1, 50, 300.5])
@pytest.mark.parametrize("step", [1, 8, 5000])
def test_fading_weighs_examples_by_their_age(half_life: float, step: int) -> None:
    logits, labels = stream(5000, 0.5)
    metric = BinnedAUC(half_life)
    for start in range(0, 5000, step):
        metric.add(logits[start : start + step], labels[start : start + step])
    weights = 0.5 ** (np.arange(5000)[::-1] / half_life)
    assert metric.value == pytest.approx(roc_auc_score(labels, logits, sample_weight=weights), abs=1e-3)


def test_fading_follows_a_model_that_turns_round() -> None:
    logits, labels = stream(4000, 0.5)
    cumulative, fading = BinnedAUC(), BinnedAUC(100)
    for metric in (cumulative, fading):
        metric.add(logits[:2000], labels[:2000])
        metric.add(-logits[2000:], labels[2000:])
    assert cumulative.value == pytest.approx(0.5, abs=0.05)
    assert fading.value == pytest.approx(1 - roc_auc_score(labels[-200:], logits[-200:]), abs=0.1)


def test_fading_forgets_a_class_that_stays_away_and_knows_it_again() -> None:
    metric = BinnedAUC(1)
    metric.add(np.array([1.0]), np.array([1]))
    metric.add(np.zeros(3000), np.zeros(3000))
    assert math.isnan(metric.value)
    metric.add(np.array([1.0]), np.array([1]))
    assert metric.value == 1.0


@every_form
def test_output_of_nan_ranks_where_it_is_worst(make: Callable[[], Metric]) -> None:
    metric = make()
    metric.add(np.array([np.nan, 1.0, 0.0]), np.array([1, 1, 0]))
    assert metric.value == pytest.approx(0.5)
    metric.add(np.array([[np.inf, np.inf]]), np.array([0]))
    assert metric.value == pytest.approx(0.25)


@every_form
def test_metric_goes_on_from_its_state_bit_for_bit(make: Callable[[], Metric]) -> None:
    logits, labels = stream(3000, 0.5)
    whole, again = make(), make()
    whole.add(logits[:1700], labels[:1700])
    again.add(np.array([100.0, -100.0]), np.array([0, 1]))
    state = whole.state_dict()
    again.load_state_dict(state)
    assert again.value == whole.value
    whole.add(logits[1700:], labels[1700:])
    later = again.value
    again.load_state_dict(state)  # was not live
    assert again.value == later
    again.add(logits[1700:], labels[1700:])
    assert again.value == whole.value


def test_state_keeps_how_sums_are_rounded_when_scores_are_forgotten() -> None:
    logits, labels = stream(6000, 0.5)
    whole, again = BinnedAUC(1.3), BinnedAUC(1.3)
    whole.add(1e6 * logits[:3000], labels[:3000])
    whole.add(logits[3000:], labels[3000:])
    again.load_state_dict(whole.state_dict())
    state, expected = again.state_dict(), whole.state_dict()
    assert {key: np.array_equal(value, expected[key]) for key, value in state.items()} == dict.fromkeys(state, True)
    assert again.value == whole.value


def test_smaller_window_takes_the_newest_of_a_state() -> None:
    large, small = WindowedAUC(50), WindowedAUC(20)
    logits, labels = stream(130, 0.5)
    large.add(logits, labels)
    small.load_state_dict(large.state_dict())
    assert small.value == pytest.approx(roc_auc_score(labels[-20:], logits[-20:]), abs=1e-12)


@every_form
@pytest.mark.parametrize(
    ("outputs", "labels", "expected"),
    [
        (np.zeros(2), np.zeros(3), "as many outputs as labels"),
        (np.zeros((2, 3)), np.zeros(2), "outputs [examples], [examples, 1] or [examples, 2]"),
        (np.zeros((2, 0)), np.zeros(2), "outputs [examples], [examples, 1] or [examples, 2]"),
        (np.zeros((2, 2, 1)), np.zeros(2), "outputs [examples], [examples, 1] or [examples, 2]"),
        (np.zeros((2, 2)), np.zeros((2, 2)), "one label per example"),
        (np.zeros(2), np.array([0, 2]), "labels of 0 and 1"),
        (np.zeros(2), np.array([0, 0.5]), "labels of 0 and 1"),
        (np.zeros(2), np.array([0, math.nan]), "labels of 0 and 1"),
    ],
)
def test_batch_that_cannot_be_ranked_is_named_and_changes_nothing(
    make: Callable[[], Metric], outputs: Any, labels: Any, expected: str
) -> None:
    metric = make()
    metric.add(np.array([0.0, 1.0]), np.array([0, 1]))
    with pytest.raises(ScoreMismatch) as caught:
        metric.add(outputs, labels)
    assert (caught.value.score, caught.value.expected) == ("AUC", expected)
    assert metric.value == 1.0


def test_no_examples_change_nothing() -> None:
    for make in FORMS.values():
        metric = make()
        metric.add(np.array([0.0, 1.0]), np.array([0, 1]))
        metric.add(np.zeros(0), np.zeros(0))
        assert metric.value == 1.0


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="window"):
        WindowedAUC(0)
    with pytest.raises(ConfigError, match="half_life"):
        BinnedAUC(0)
