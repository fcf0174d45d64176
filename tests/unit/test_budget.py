"""How much moves: by a number, by bytes per time whatever the steps and prices, and by how far the deployed copy is."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from evergrad.budget import DEAREST_BYTES, FRAME_BYTES, ByteBudget, Fixed, Quality, amount_of, rate_of
from evergrad.errors import ConfigError
from tests.simulated import Link, Walk

MODEL = 11_000_000
RATE = 20_000.0
BURST = 10 * RATE


def priced(element_bytes: float, fixed: float = 80) -> Callable[[int], int]:
    return lambda elements: round(fixed + element_bytes * elements)


def byte_budget(text: str = "20 kB/s", elements: int = MODEL) -> ByteBudget:
    amount = amount_of(elements, budget=text)
    assert isinstance(amount, ByteBudget)
    return amount


# -- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "due"),
    [({"density": 1e-3}, 61), ({"density": 1e-9}, 1), ({"density": 1}, 60_750), ({"k": 1}, 1), ({"k": 60_750}, 60_750)],
)
def test_density_and_k_are_the_same_at_each_step(settings: dict[str, Any], due: int) -> None:
    amount = amount_of(60_750, **settings)
    for step in range(3):
        assert amount.due(float(step)) == due
        amount.moved(due, None)
        amount.sent(due, 10**9, float(step))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, "density"),
        ({"density": 0.1, "k": 5}, "density and k"),
        ({"budget": "1 kB/s", "quality": 0.1}, "budget and quality"),
        ({"density": 0.0}, "density"),
        ({"density": 1.1}, "density"),
        ({"density": math.nan}, "density"),
        ({"k": 0}, "k"),
        ({"k": 101}, "k"),
        ({"k": 1.5}, "k"),
        ({"quality": 0.0}, "quality"),
        ({"quality": 1.0}, "quality"),
        ({"quality": math.nan}, "quality"),
    ],
)
def test_settings_out_of_range_and_more_than_one_are_refused_by_key(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        amount_of(100, **settings)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("text", "bytes_per_s", "burst_s"),
    [
        ("20 kB/s", 20_000, 10),
        ("20kB/s", 20_000, 10),
        (" 1.5 MB / min ", 25_000, 60),
        ("36 KiB/h", 10.24, 3600),
        ("1 MiB/s", 1_048_576, 10),
        ("7 B/s", 7, 10),
    ],
)
def test_rates_are_read(text: str, bytes_per_s: float, burst_s: float) -> None:
    assert rate_of(text) == (pytest.approx(bytes_per_s), burst_s)


@pytest.mark.parametrize(
    "text",
    ["", "20", "20 kB", "20 kb/s", "20 KB/s", "kB/s", "-1 kB/s", "0 kB/s", "1e3 B/s", "20 kB/d", "1. kB/s",
     "20 kB/s\n/s", "٢ kB/s", f"{'9' * 400} kB/s", 20_000],
)  # fmt: skip
def test_what_is_no_rate_is_refused_with_the_units(text: Any) -> None:
    with pytest.raises(ConfigError, match="B, kB, MB, KiB, MiB, and per s, min, h") as caught:
        amount_of(100, budget=text)
    assert caught.value.key == "budget"


def test_bucket_holds_one_unit_of_time_ten_seconds_and_a_kibibyte_at_least() -> None:
    bursts = [byte_budget(text).burst_bytes for text in ("20 kB/s", "1.2 MB/min", "72 MB/h", "1 B/s")]
    assert bursts == pytest.approx([200_000, 1_200_000, 72_000_000, 1024])


def test_only_quality_needs_the_distance() -> None:
    assert [amount.needs_distance for amount in (Fixed(1), byte_budget(), Quality(10, 0.1))] == [False, False, True]


# -- bytes per time -----------------------------------------------------------------------------------------------

IRREGULAR = np.random.default_rng(0).exponential(0.1, 2000).tolist()


@pytest.mark.parametrize("element_bytes", [1.0, 1.4, 3.0, 5.0])
@pytest.mark.parametrize("gaps_s", [[1.0] * 200, [1 / 300] * 30_000, IRREGULAR], ids=["1/s", "300/s", "irregular"])
def test_budget_is_kept_and_used_at_any_step_rate_and_price(gaps_s: list[float], element_bytes: float) -> None:
    link = Link(byte_budget(), priced(element_bytes)).run(gaps_s)
    assert link.most_beyond(RATE) <= BURST
    spent = link.nbytes / RATE
    assert 0.9 * link.clock() <= spent <= link.clock() + 10


def test_price_that_changes_all_the_time_is_followed() -> None:
    dice = np.random.default_rng(1)
    link = Link(byte_budget(), lambda elements: round(dice.uniform(64, 128) + dice.uniform(1, 5) * elements))
    link.run([0.1] * 3000)
    assert link.most_beyond(RATE) <= BURST
    assert link.nbytes >= 0.9 * RATE * link.clock()


def test_headers_do_not_eat_a_small_budget_at_a_high_step_rate() -> None:
    link = Link(byte_budget(), priced(1.4)).run([1 / 300] * 30_000)
    assert 80 * len(link.sent) <= 0.3 * link.nbytes


def test_statistics_that_come_with_each_update_are_learned_and_leave_room_for_elements() -> None:
    dice = np.random.default_rng(2)
    link = Link(byte_budget(), lambda elements: round(80 + dice.uniform(800, 2500) + 1.4 * elements))
    link.run([0.1] * 3000)
    assert link.nbytes <= RATE * link.clock() + BURST + 2500
    assert 1.4 * sum(link.due) >= 0.7 * RATE * link.clock()


@pytest.mark.parametrize(("every", "late"), [(10, 0), (10, 3), (8, 40)])
def test_bundles_and_late_news_keep_to_the_budget_and_use_it(every: int, late: int) -> None:
    link = Link(byte_budget(), priced(1.4), every=every, late=late).run([0.05] * 4000)
    assert link.most_beyond(RATE) <= BURST
    assert link.nbytes >= 0.9 * RATE * link.clock()


def test_slow_steps_use_a_budget_that_is_told_per_minute() -> None:
    used = {}
    for text in ("20 kB/s", "1.2 MB/min"):
        link = Link(byte_budget(text), priced(1.4)).run([15.0] * 100)
        used[text] = link.nbytes / (RATE * link.clock())
    assert used["1.2 MB/min"] > 0.9
    assert used["20 kB/s"] < 0.25


def test_pause_saves_up_one_burst_and_it_is_spread() -> None:
    link = Link(byte_budget(), priced(1.4)).run([1.0] * 100)
    before = len(link.due)
    link.run([3600.0] + [1.0] * 30)
    assert link.most_beyond(RATE) <= BURST
    after = link.due[before:]
    assert after[0] == max(after) <= BURST / DEAREST_BYTES
    assert after[-1] == pytest.approx(link.due[before - 1], rel=0.1)


@pytest.mark.parametrize("gap_s", [1.0, 0.1, 1 / 300])
def test_steady_steps_get_steady_amounts(gap_s: float) -> None:
    link = Link(byte_budget(), priced(1.4)).run([gap_s] * round(100 / gap_s))
    nonzero = [due for due in link.due[len(link.due) // 2 :] if due]
    assert np.std(nonzero) < 0.15 * np.mean(nonzero)


def test_what_is_in_flight_is_set_aside_at_the_dearest_price_until_it_is_told() -> None:
    amount = byte_budget()
    moves = []
    for _ in range(50):
        moves.append(amount.due(0.0))
        amount.moved(moves[-1], None)
    assert 0 < sum(DEAREST_BYTES * k + FRAME_BYTES for k in moves if k) <= BURST
    assert amount.due(3600.0) == 0, "a full bucket, and all of it in flight"
    amount.sent(sum(moves), 1000, 3600.0)
    assert amount.due(3600.0) >= 0.9 * (BURST - 1000) / DEAREST_BYTES


def test_first_of_two_appends_frees_only_its_own_moves() -> None:
    amount = byte_budget()
    amount.moved(20_000, None)
    amount.moved(19_900, None)
    assert amount.due(0.0) == 0
    amount.sent(20_000, 100_000, 0.0)
    assert amount.due(0.0) == 0, "the other one may cost all that is left"
    amount.sent(19_900, 19_000, 0.0)
    assert amount.due(0.0) * DEAREST_BYTES == pytest.approx(81_000, rel=0.01)


def test_append_without_moves_costs_what_it_costs() -> None:
    amount = byte_budget()
    amount.sent(0, int(BURST) + 5 * int(RATE), 0.0)
    assert [bool(amount.due(now_s)) for now_s in (0.0, 4.9, 5.5)] == [False, False, True]


def test_element_that_is_dearer_than_promised_overdraws_once_and_the_average_holds() -> None:
    link = Link(byte_budget(), priced(9.0)).run([0.1] * 3000)
    assert BURST < link.most_beyond(RATE) <= 2 * BURST
    assert 0.9 * RATE * link.clock() <= link.nbytes <= RATE * link.clock() + 2 * BURST


@pytest.mark.parametrize(("text", "statistics"), [("100 B/s", 1600), ("1 kB/s", 38_000), ("10 B/min", 0)])
def test_budget_smaller_than_its_own_updates_starves_nobody(text: str, statistics: int) -> None:
    amount = byte_budget(text)
    link = Link(amount, priced(1.4, 80 + statistics)).run([2.0] * 20_000)
    spent = amount.bytes_per_s * link.clock() + amount.burst_bytes + statistics
    assert link.nbytes <= spent
    assert link.nbytes >= 0.8 * spent - amount.burst_bytes - statistics
    for part in range(4):
        assert any(link.due[part * 5000 : (part + 1) * 5000])


def test_small_model_moves_no_more_than_it_has() -> None:
    link = Link(byte_budget("10 MB/s", elements=50), priced(1.4)).run([0.1] * 10)
    assert link.due == [50] * 10


def test_clock_that_is_set_back_neither_pays_nor_stops_it() -> None:
    amount = byte_budget()
    link = Link(amount, priced(5.0)).run([0.01] * 1000)
    link.clock.advance(-3600)
    now_s = link.clock()
    gained = sum(Link(amount, priced(5.0), clock=link.clock).run([0.01] * 1000).due) * DEAREST_BYTES
    assert gained <= RATE * (link.clock() - now_s) * 1.05
    assert gained >= RATE * (link.clock() - now_s) * 0.7


def test_news_with_a_slightly_older_time_earns_nothing() -> None:
    amount = byte_budget()
    amount.sent(0, int(BURST), 100.0)
    for _ in range(100):
        amount.sent(0, 0, 99.0)
        assert amount.due(100.0) == 0


# -- quality ------------------------------------------------------------------------------------------------------


def best_constant(elements: int, spread: float, pace: float, bound: float, steps: int) -> int:
    """The smallest k out of a fine grid that keeps the bound at the end."""
    for k in np.unique(np.geomspace(1, elements, 60).astype(int)):
        distances, _ = Walk(elements, spread).run(Fixed(int(k)), steps, pace)
        if distances[-100:].mean() <= bound:
            return int(k)
    raise AssertionError("no k keeps it")


@pytest.mark.parametrize(("pace", "spread", "bound"), [(1e-3, 0.5, 0.01), (3e-3, 0.5, 0.02), (5e-4, 1.0, 0.01)])
def test_distance_settles_below_the_bound_with_about_as_few_elements_as_can_be(
    pace: float, spread: float, bound: float
) -> None:
    distances, moves = Walk(5000, spread).run(Quality(5000, bound), 1200, pace)
    assert (distances[-400:] <= bound).mean() >= 0.95
    assert distances[300:].max() <= 1.3 * bound
    assert moves[-400:].mean() <= 1.5 * best_constant(5000, spread, pace, bound, 600)


def test_training_that_speeds_up_and_slows_down_is_followed() -> None:
    walk, amount = Walk(5000), Quality(5000, 0.02)
    for pace, calm in ((3e-4, True), (3e-3, False), (3e-4, True)):
        distances, moves = walk.run(amount, 800, pace)
        assert (distances[-300:] <= 0.02).mean() >= 0.95
        assert (moves[-300:].mean() < 20) == calm


def test_nothing_is_sent_once_the_bound_is_reached_and_nothing_moves() -> None:
    walk, amount = Walk(5000), Quality(5000, 0.01)
    walk.run(amount, 300, 1e-3)
    distances, moves = walk.run(amount, 600, 0.0)
    assert distances[-1] <= 0.01
    assert moves[-300:].sum() == 0


def test_overshoot_into_where_more_elements_mean_more_distance_is_left_again() -> None:
    # Uneven paces: all elements by one scale stay beyond the bound for ever, a fiftieth of them within it.
    def far(k: int) -> float:
        return float(Walk(5000, 1.5).run(Fixed(k), 600, 2e-3)[0][-100:].mean())

    assert far(5000) > 0.015 > far(100)
    amount = Quality(5000, 0.015)
    for _ in range(100):
        amount.moved(amount.due(0.0), 1.0)
    assert amount.due(0.0) == 5000
    distances, moves = Walk(5000, 1.5).run(amount, 1000, 2e-3)
    assert (distances[-300:] <= 0.015).mean() >= 0.95
    assert moves[-300:].mean() < 100


def test_bound_that_nothing_keeps_is_searched_for_within_the_model() -> None:
    distances, moves = Walk(2000).run(Quality(2000, 1e-4), 1000, 2e-2)
    _, all_at_once = Walk(2000).run(Fixed(2000), 1000, 2e-2)
    assert moves.max() <= 2000
    assert moves[-300:].mean() > 20
    assert distances[-300:].mean() < 0.2
    assert moves[-300:].mean() < all_at_once[-300:].mean()


@pytest.mark.parametrize("distance", [0.0, math.inf])
def test_extreme_distances_move_it_by_a_quarter_a_step_between_none_and_all(distance: float) -> None:
    amount, found = Quality(1000, 0.1), [1]
    for _ in range(60):
        amount.moved(found[-1], distance)
        found.append(amount.due(0.0))
    assert found[-1] == (0 if distance == 0 else 1000)
    assert all(new <= max(2, 1.25 * old + 1) for old, new in pairwise(found))


@pytest.mark.parametrize("distance", [None, math.nan])
def test_distance_that_is_not_known_changes_nothing(distance: float | None) -> None:
    amount = Quality(100_000, 0.1)
    amount.moved(amount.due(0.0), distance)
    assert amount.due(0.0) == 100
    amount.moved(100, 0.2)
    assert amount.due(0.0) > 100
