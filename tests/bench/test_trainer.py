"""The trainer's benchmark says what it measured; no test asserts a time."""

from __future__ import annotations

from benchmarks.trainer import measure

RATIOS = {"ratio", "prefetch_ratio", "checkpoint_ratio", "publish_ratio", "publish_ratio_median"}
TIMES = {"plain_ms", "trainer_ms", "prefetch_ms", "checkpointed_ms", "published_ms"}
DESCRIBED = {"model", "sampler", "density", "steps", "block_steps"}


def test_a_short_run_measures_everything_in_whole_blocks() -> None:
    found = measure("lenet5", sampler="loss_prioritised", density=1e-2, block=2, steps=3)
    assert found.keys() == RATIOS | TIMES | DESCRIBED
    assert (found["steps"], found["block_steps"]) == (4, 2)
    assert all(found[key] > 0 for key in RATIOS | TIMES)
