from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import evergrad
from evergrad.errors import ConfigError, NonFiniteLoss, SchemaMismatch
from evergrad.log.signature import read_signature
from evergrad.metrics import Prequential, accuracy, log_loss
from evergrad.records import read_records
from evergrad.testing import FakeClock
from tests.pipeline.tasks import make_examples, pairs, seeded_model


def run(folder: Path, **changes):
    model = changes.pop("model", None) or seeded_model()
    settings = {
        "model": model,
        "loss": cross_entropy,
        "optimizer": torch.optim.Adam(model.parameters(), 1e-2),
        "stream": pairs(400),
        "log": f"file:{folder / 'updates'}",
        "trigger": evergrad.EveryN(8),
        "sampler": evergrad.Uniform(),
        "batch_size": 32,
        "density": 0.05,
        "score": accuracy,
    }
    return evergrad.run(**(settings | changes))


@pytest.mark.parametrize("forward", ["deployed", "master"])
def test_a_run_learns_and_a_replica_ends_with_its_digest(tmp_path: Path, forward: str) -> None:
    scores = []
    found = run(tmp_path, stream=pairs(1600), forward=forward, observe=lambda p: scores.append(p.score))
    assert (found.examples, found.steps, found.updates) == (1600, 200, 200)
    assert np.mean(scores[:5]) < 0.6
    assert np.mean(scores[-50:]) > 0.9
    replica = evergrad.Replica(f"file:{tmp_path / 'updates'}")
    assert (replica.sync(), replica.digest) == (found.version, found.digest)
    assert 0 < found.update_bytes < found.updates * found.full_push_bytes


def test_a_run_records_how_its_model_computes_unless_it_is_told_not_to(tmp_path: Path) -> None:
    found = run(tmp_path / "a"), run(tmp_path / "b", publishing={"program": False})
    assert found[0] == found[1]
    signature = read_signature(evergrad.open_log(f"file:{tmp_path / 'a' / 'updates'}"))
    assert signature is not None
    assert signature.program is not None
    assert signature.inputs[0].shape == (-1, 8)
    assert read_signature(evergrad.open_log(f"file:{tmp_path / 'b' / 'updates'}")) is None


def test_equal_seeds_give_equal_runs(tmp_path: Path) -> None:
    first, second = (run(tmp_path / name) for name in ("a", "b"))
    assert first == second


def test_without_a_log_it_is_plain_training(tmp_path: Path) -> None:
    found = run(tmp_path, log=None)
    assert (found.updates, found.version, found.steps) == (0, 0, 50)
    assert list(tmp_path.iterdir()) == []


def test_every_batch_leaves_a_record_with_what_the_observer_adds(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    run(tmp_path, records=records, observe=lambda p: {"where": p.examples}, clock=FakeClock())
    found = list(read_records(records))
    assert [r["where"] for r in found] == list(range(8, 401, 8)) == [r["examples"] for r in found]
    assert {r["event"] for r in found} == {"batch"}
    assert sum(r["update_bytes"] for r in found) > 0
    assert [r["version"] for r in found] == list(range(1, 51))


def test_a_batch_is_scored_by_what_was_served_for_it_and_predicted_where_nothing_was(tmp_path: Path) -> None:
    asked, seen, found = [], [], Prequential({"accuracy": accuracy, "log_loss": log_loss}, window=8)

    def stream():
        for number, (x, y) in enumerate(pairs(32)):
            served = np.where(np.arange(4) == y[:, None], 9.0, 0.0).astype("f4") if number % 2 else None
            yield evergrad.Batch(x, y, 0.0, served)

    def predict(x):
        asked.append(len(x))
        return np.zeros((len(x), 4), "f4")

    def observe(progress):
        found.add(progress.outputs, progress.batch.y)
        seen.append((progress.score, found.values()["accuracy_windowed"]))
        return found.values()

    run(tmp_path, stream=stream(), predict=predict, observe=observe, records=tmp_path / "records.jsonl")
    assert asked == [8, 8]
    assert [score for score, _ in seen][1::2] == [1.0, 1.0]
    assert all(score == windowed < 1 for score, windowed in seen[::2])
    assert [r["log_loss"] for r in read_records(tmp_path / "records.jsonl")][-1] == found.values()["log_loss"]


def test_the_second_run_on_a_log_continues_it_while_a_replica_follows(tmp_path: Path) -> None:
    model = seeded_model()
    first = run(tmp_path, model=model)
    replica = evergrad.Replica(f"file:{tmp_path / 'updates'}")
    assert replica.sync() == first.version
    weights, updates = replica.weights, replica.stats().updates
    second = run(tmp_path, model=model, stream=pairs(400, seed=3))
    assert second.version > first.version
    assert (replica.sync(), replica.digest) == (second.version, second.digest)
    assert replica.stats().updates > updates
    assert all(view is not None and (view == replica.weights[name]).all() for name, view in weights.items())


def test_bad_predictions_hold_updates_and_the_next_good_one_carries_them(tmp_path: Path) -> None:
    flips = range(600, 608)
    held, versions = [], []

    def stream():
        for number, (x, y) in enumerate(pairs(8 * 700)):
            yield x, (y + 1) % 4 if number in flips else y

    def observe(progress) -> None:
        held.append(progress.held)
        versions.append(progress.updates)

    found = run(tmp_path, stream=stream(), gate=evergrad.Gate(alpha=1e-3, patience=64), observe=observe)
    assert not any(held[:600])
    assert sum(held[600:608]) >= 6
    assert not held[-1]
    assert found.steps == 700
    assert found.updates == 700 - sum(held)
    replica = evergrad.Replica(f"file:{tmp_path / 'updates'}")
    assert (replica.sync(), replica.digest) == (found.version, found.digest)


def test_a_non_finite_loss_ends_the_run_by_name_and_leaves_a_valid_log(tmp_path: Path) -> None:
    model = seeded_model()

    def stream():
        yield from pairs(80)
        x, y = make_examples(8)
        yield x * np.inf, y

    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteLoss, match="step 11"):
        run(tmp_path, model=model, stream=stream())
    replica = evergrad.Replica(f"file:{tmp_path / 'updates'}")
    assert replica.sync() == 10
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    again = run(tmp_path, model=model)
    assert (replica.sync(), replica.digest) == (again.version, again.digest)


def test_another_models_log_is_refused_with_the_tensor(tmp_path: Path) -> None:
    run(tmp_path)
    other = torch.nn.Linear(8, 4)
    with pytest.raises(SchemaMismatch) as caught:
        run(tmp_path, model=other)
    assert (caught.value.tensor, caught.value.expected) == ("1.running_mean", "F32 [16]")


@pytest.mark.parametrize(
    "item", [np.zeros(3), (np.zeros((3, 8)), np.zeros(2)), (1, 2, 3), (np.float32(1), np.float32(1))]
)
def test_a_stream_of_something_else_is_refused(tmp_path: Path, item: object) -> None:
    with pytest.raises(ConfigError, match="stream"):
        run(tmp_path, stream=[item])


def test_torch_loaders_are_streams(tmp_path: Path) -> None:
    x, y = make_examples(64)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    found = run(tmp_path, stream=torch.utils.data.DataLoader(dataset, batch_size=16))
    assert (found.examples, found.steps) == (64, 4)
