"""A publisher that goes on from a checkpoint writes the log that an uninterrupted one would have written."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import evergrad
from evergrad import maintain
from evergrad.pytorch.publisher import Publisher
from evergrad.pytorch.select import RandomK
from evergrad.pytorch.settings import Forward
from tests.pytorch.models import FORWARDS, assert_equal, batch_norm, deployed_bits, train

SETTINGS: dict[str, Callable[[], dict[str, Any]]] = {
    "density": lambda: {"density": 0.05},
    "exact values": lambda: {"k": 7, "values": "exact"},
    "random": lambda: {"k": 9, "selector": RandomK(seed=3)},
    "quality": lambda: {"quality": 0.05},
    "budget": lambda: {"budget": "2 kB/s"},
    "often snapshots": lambda: {"density": 0.05, "snapshot_every": 5, "keep_versions": 3},
}


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


class Clock:
    """Seconds that follow the training steps."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


def go_on(publisher: Publisher, model: nn.Module, optimizer: Any, clock: Clock, seed: int, every: int) -> None:
    for number, _ in enumerate(train(model, optimizer, 7, seed=seed)):
        clock.now_s += 1
        example = 7 * seed + number
        publisher.publish(examples=(example, example + 1), hold=number % every != every - 1)


def saved(model: nn.Module, optimizer: Any, publisher: Publisher) -> tuple[Any, ...]:
    return copy.deepcopy((dict(model.named_buffers()), optimizer.state_dict(), publisher.state_dict()))


def resumed(checkpoint: tuple[Any, ...], log: str, clock: Clock, **settings: Any) -> tuple[Any, ...]:
    model = batch_norm()
    optimizer = momentum(model)
    for name, buffer in model.named_buffers():
        buffer.copy_(checkpoint[0][name])
    publisher = Publisher(model, optimizer, log, resume=checkpoint[2], clock=clock, **settings)
    optimizer.load_state_dict(checkpoint[1])
    return publisher, model, optimizer


def objects(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("crash", ["nothing", "some", "all"])
def test_the_log_is_that_of_an_uninterrupted_run(
    forward: Forward, every: int, kind: str, crash: str, tmp_path: Path
) -> None:
    """`crash`: how much of what was appended after the checkpoint got lost."""
    clock, log = Clock(), tmp_path / "log"
    model = batch_norm()
    optimizer = momentum(model)
    publisher = Publisher(model, optimizer, f"file:{log}", forward=forward, clock=clock, **SETTINGS[kind]())
    go_on(publisher, model, optimizer, clock, 1, every)
    checkpoint, then_s = saved(model, optimizer, publisher), clock.now_s
    shutil.copytree(log, tmp_path / "then")
    go_on(publisher, model, optimizer, clock, 2, every)
    publisher.detach()
    expected, bits = objects(log), deployed_bits(publisher)

    crashed = tmp_path / "crashed"
    shutil.copytree(log if crash == "nothing" else tmp_path / "then", crashed)
    if crash == "some":
        for name in sorted(set(expected) - set(objects(crashed)))[:2]:
            if name.startswith("updates"):
                (crashed / name).write_bytes(expected[name])
    clock.now_s = then_s
    again, model, optimizer = resumed(checkpoint, f"file:{crashed}", clock, forward=forward, **SETTINGS[kind]())
    assert objects(crashed).keys() <= expected.keys() | objects(tmp_path / "then").keys()
    go_on(again, model, optimizer, clock, 2, every)
    assert deployed_bits(again) == bits
    assert again.stats() == publisher.stats()
    again.detach()
    assert objects(crashed) == expected


@pytest.mark.parametrize("damage", ["rolled back", "begun anew", "behind"])
def test_a_log_that_went_another_way_gets_the_difference(damage: str, tmp_path: Path) -> None:
    clock, log = Clock(), tmp_path / "log"
    model = batch_norm()
    optimizer = momentum(model)
    publisher = Publisher(model, optimizer, f"file:{log}", density=0.05, clock=clock)
    go_on(publisher, model, optimizer, clock, 1, 1)
    checkpoint = saved(model, optimizer, publisher)
    publisher.detach()
    if damage == "rolled back":
        maintain.rollback(evergrad.open_log(f"file:{log}"), 3)
    elif damage == "begun anew":
        shutil.rmtree(log)
    else:
        (log / "updates" / f"{publisher.version:012d}.eg").unlink()
    again, *_ = resumed(checkpoint, f"file:{log}", clock, density=0.05)
    assert deployed_bits(again) == deployed_bits(publisher)
    replica = evergrad.Replica(f"file:{log}")
    assert_equal(again, replica)
    again.detach()


def test_with_a_thread_the_difference_is_the_next_update(tmp_path: Path) -> None:
    clock, log = Clock(), tmp_path / "log"
    model = batch_norm()
    optimizer = momentum(model)
    publisher = Publisher(model, optimizer, f"file:{log}", density=0.05, clock=clock, background=True)
    go_on(publisher, model, optimizer, clock, 1, 1)
    checkpoint = saved(model, optimizer, publisher)
    go_on(publisher, model, optimizer, clock, 2, 1)
    publisher.close()
    version = publisher.version
    again, model, optimizer = resumed(checkpoint, f"file:{log}", clock, density=0.05, background=True)
    assert again.version == version + 1
    go_on(again, model, optimizer, clock, 2, 1)
    again.flush()
    assert deployed_bits(again) == deployed_bits(publisher)
    assert_equal(again, evergrad.Replica(f"file:{log}"))
    again.detach()
