from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """A log of this test's own, in this process's memory."""
    return f"memory:{request.node.nodeid}"


@pytest.fixture(params=["memory", "file"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A log of this test's own, of each kind."""
    return f"memory:{request.node.nodeid}" if request.param == "memory" else f"file:{tmp_path / 'updates'}"


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """These models are too small to share, and threads that wait for each other on a busy machine cost seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
