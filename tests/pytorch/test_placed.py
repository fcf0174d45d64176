"""A module on a device of its own: it follows the replica's memory bit for bit, there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import evergrad
from evergrad.errors import NotSynced, SchemaMismatch
from evergrad.pytorch.bridge import ReplicaModule
from evergrad.pytorch.placed import PlacedModule

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def make() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


@pytest.mark.parametrize("device", DEVICES)
def test_it_follows_updates_rollbacks_and_older_versions(tmp_path: Path, device: str) -> None:
    model, url = make(), f"file:{tmp_path}"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with evergrad.Publisher(model, optimizer, url, density=0.3, snapshot_every_bytes=1 << 30) as publisher:
        replica = evergrad.Replica(url)
        replica.sync()
        placed, outputs = PlacedModule(make(), replica, device), []

        def check(version: int) -> None:
            found, told = placed.predict(X)
            assert told == version
            if version < len(outputs):
                assert np.array_equal(found, outputs[version])
            else:
                outputs.append(found)

        check(0)
        for version in range(1, 5):
            optimizer.zero_grad()
            model(torch.from_numpy(X)).square().sum().backward()
            optimizer.step()
            publisher.publish()
            replica.sync()
            check(version)
            other = evergrad.Replica(url)
            other.sync()
            assert np.allclose(placed.predict(X)[0], ReplicaModule(make(), other).predict(X)[0], atol=1e-5)
        assert len({found.tobytes() for found in outputs}) == 5
        with replica.at(2):
            check(2)
        check(4)
        replica.rollback(1)
        check(1)
        replica.resume()
        replica.sync()
        check(4)
        fresh = PlacedModule(make(), replica, device)
        assert np.array_equal(fresh.predict(X)[0], outputs[4])


def test_a_snapshot_is_copied_whole(tmp_path: Path) -> None:
    model, url = make(), f"file:{tmp_path}"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with evergrad.Publisher(model, optimizer, url, density=0.3) as publisher:
        replica = evergrad.Replica(url, undo_bytes=0)
        replica.sync()
        placed = PlacedModule(make(), replica, "cpu")
        placed.predict(X)
        for _ in range(30):
            optimizer.zero_grad()
            model(torch.from_numpy(X)).square().sum().backward()
            optimizer.step()
            publisher.publish()
        for path in (tmp_path / "updates").iterdir():
            path.unlink()
        replica.sync()
        assert replica.stats().snapshots == 2
        late = evergrad.Replica(url)
        late.sync()
        assert np.array_equal(placed.predict(X)[0], PlacedModule(make(), late, "cpu").predict(X)[0])


def test_another_model_is_refused_and_no_version_is_told(tmp_path: Path) -> None:
    model, url = make(), f"file:{tmp_path}"
    evergrad.Publisher(model, torch.optim.SGD(model.parameters(), lr=0.1), url).detach()
    with pytest.raises(SchemaMismatch):
        PlacedModule(nn.Linear(4, 2), evergrad.Replica(url), "cpu")
    with pytest.raises(NotSynced):
        PlacedModule(make(), evergrad.Replica(url), "cpu").predict(X)
