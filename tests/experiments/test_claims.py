"""Claims are held against what was measured, whichever way that falls out."""

from __future__ import annotations

from typing import Any

import pytest
from experiments.prapas2021.claims import Claim, claims
from experiments.prapas2021.summary import summarise
from experiments.shown import Spread

from evergrad.records import Record

PARAMETERS = 100_000
PROTOCOL = {"data": "mnist", "model": "lenet5", "sparse_trigger": 8}


def cell(name: str, seed: int, scores: dict[str, tuple[float, float]], **fields: Any) -> Record:
    told = {
        scored: {"accuracy": accuracy, "last": accuracy, "test": test, "curve": [accuracy]}
        for scored, (accuracy, test) in scores.items()
    }
    usual = {"learn_s": 10.0, "updates": 100, "steps": 100, "changed": None, "told": None, "points": [640]}
    return {"event": "cell", "cell": name, "seed": seed, "scores": told, **usual, **fields}


def found(
    *,
    ours: tuple[float, float] = (0.98, 0.99),
    auto: tuple[float, float] | None = None,
    proactive_s: float = 10.0,
    prioritised: float = 0.97,
    update_bytes: float = 40.0,
    overhead: float = 1.04,
    changed: float = 10.0,
    replica_digest: str = "a",
    density: str = "1e-4",
) -> dict[str, Claim]:
    """The claims, by their beginnings, of two seeds that differ by 0.2 points."""
    records: list[Record] = [{"event": "setup", "commit": "c", "protocol": PROTOCOL}]
    for seed, more in ((0, -0.001), (1, 0.001)):
        records += [
            {"event": "cell", "cell": "first", "seed": seed, "learn_s": 1.0, "parameters": PARAMETERS,
             "full_push_bytes": 4 * PARAMETERS},
            cell("proactive-8", seed, {"": (0.98 + more, 0.99)}, learn_s=proactive_s),
            cell("prioritised-40", seed, {"": (prioritised + more, 0.985)}, learn_s=10.0),
            cell("retrained", seed, {"": (0.97 + more, 0.98)}, learn_s=110.0, updates=5),
            cell(f"masked-top-{density}", seed, {"trained": (0.975, 0.98), "replica": (0.96, 0.97)}, told=20.0,
                 changed=60_000.0, update_bytes=160.0),
            cell(f"closed-top-{density}", seed, {"": (ours[0] + more, ours[1])}, changed=changed,
                 update_bytes=update_bytes, digest="a", replica_digest=replica_digest),
            *([cell(f"auto-saliency-{density}", seed, {"": auto}, update_bytes=40.0)] if auto else []),
            {"event": "cell", "cell": f"overhead-{density}", "seed": seed, "step_ms": {"dense": 5.0},
             "ratios": {"masked": 1.2, "published": overhead}},
        ]  # fmt: skip
    return {claim.claim: claim for claim in claims(summarise(records))}


def one(found: dict[str, Claim], begin: str) -> Claim:
    (claim,) = (claim for text, claim in found.items() if text.startswith(begin))
    return claim


def test_all_hold_where_all_is_well() -> None:
    told = found()
    assert len(told) == 8
    assert {claim.holds for claim in told.values()} == {True}
    quality = one(told, "Sparse training loses little (density 1e-4)").measured
    assert "dense 98.00 ± 0.14 (test 99.00)" in quality
    assert "97.50 (test 98.00) as they score it, 96.00 (test 97.00) as a replica stands" in quality
    assert "97.00 ± 0.14 (trigger 40)" in one(told, "Beyond the paper").measured
    assert "1/10,000" in one(told, "Communication").measured
    assert "20 gradients are left, and 60,000 of 100,000 weights change; ours: 10" in one(told, "Only").measured


@pytest.mark.parametrize(
    ("begin", "changed"),
    [
        ("at a fraction of its training time", {"proactive_s": 12.0}),
        ("Beyond the paper", {"prioritised": 0.969}),
        ("Only a small part", {"changed": 60_000.0}),
        ("Sparse training loses little", {"ours": (0.974, 0.99)}),
        ("Sparse training loses little", {"ours": (0.98, 0.984)}),
        ("Sparse training loses little", {"ours": (0.978, 0.99), "density": "1e-3"}),
        ("Sparse training loses little", {"auto": (0.974, 0.99)}),
        ("Communication falls", {"update_bytes": 41.0}),
        ("Sparse training costs", {"overhead": 1.06}),
        ("The deployed model", {"replica_digest": "b"}),
    ],
    ids=[
        "slow",
        "hard examples do not help",
        "dense",
        "worse on the stream",
        "worse on the test set",
        "worse at 1e-3",
        "the default is worse",
        "bytes",
        "overhead",
        "replica",
    ],
)
def test_what_falls_short_is_said_to(begin: str, changed: dict[str, Any]) -> None:
    assert one(found(**changed), begin).holds is False


def test_at_other_densities_bytes_and_quality_are_told_without_a_verdict() -> None:
    told = found(density="1e-2")
    assert one(told, "Communication").holds is None
    assert one(told, "Sparse training loses little").holds is None


def test_a_grid_of_baselines_alone_tells_of_those() -> None:
    records: list[Record] = [
        {"event": "setup", "commit": "c", "protocol": PROTOCOL},
        {"event": "cell", "cell": "first", "seed": 0, "learn_s": 1.0, "parameters": 1, "full_push_bytes": 4},
        cell("proactive-64", 0, {"": (0.9, 0.9)}),
        cell("retrained", 0, {"": (0.95, 0.9)}, learn_s=1000.0),
    ]
    quality, time = claims(summarise(records))
    assert quality.holds is False
    assert time.holds is False
    assert "none is as good at a tenth" in time.measured


def test_rows_are_over_seeds_and_in_the_order_of_the_paper() -> None:
    records: list[Record] = [
        {"event": "setup", "commit": "c", "protocol": PROTOCOL},
        *({"event": "cell", "cell": "first", "seed": seed, "learn_s": 1.0, "parameters": 1, "full_push_bytes": 4}
          for seed in (0, 1)),
        cell("closed-random-1e-2", 0, {"": (0.5, 0.5)}),
        *(cell("proactive-16", seed, {"": (0.5 + seed / 10, 0.5)}, learn_s=10.0 + seed) for seed in (0, 1)),
        cell("closed-top-1e-2", 0, {"": (0.5, 0.5)}),
        cell("proactive-8", 0, {"": (0.5, 0.5)}),
        cell("never-updated", 0, {"": (0.5, 0.5)}, updates=0),
    ]  # fmt: skip
    rows = summarise(records).rows
    assert [row.name for row in rows] == [
        "never-updated", "proactive-8", "proactive-16", "closed-top-1e-2", "closed-random-1e-2",
    ]  # fmt: skip
    sixteen = rows[2]
    assert (sixteen.seeds, sixteen.learn_s, sixteen.update_ms) == (2, 10.5, 105.0)
    assert sixteen.accuracy.mean == pytest.approx(0.55)
    assert rows[0].update_ms is None


def test_the_spread_is_the_sample_standard_deviation() -> None:
    assert Spread.of([0.9, 0.91, 0.92]).points() == "91.00 ± 1.00"
    assert Spread.of([0.9]).points() == "90.00"
