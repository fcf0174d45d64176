"""A store in memory keeps the promises of `evergrad.log.base`, and the check of them can fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from evergrad.errors import LogUnavailable
from evergrad.log.base import ObjectStore, Watch
from evergrad.log.local import local_store
from evergrad.log.store import ObstoreStore, memory_store
from evergrad.testing import FaultyStore, check_object_store
from tests.builders import fresh_store


def test_memory_keeps_the_promises() -> None:
    check_object_store(fresh_store)
    check_object_store(lambda: FaultyStore(fresh_store()))


class Overwriting(ObstoreStore):
    def create(self, name: str, data: bytes) -> bool:
        super().create(name, data)
        return True


class Forgetting(ObstoreStore):
    def read(self, name: str) -> bytes | None:
        return super().read(name) or None


class Unordered(ObstoreStore):
    def names(self, prefix: str) -> list[str]:
        return super().names(prefix)[::-1]


class Appending(ObstoreStore):
    def replace(self, name: str, data: bytes) -> None:
        super().replace(name, (self.read(name) or b"") + data)


class Keeping(ObstoreStore):
    def delete(self, name: str) -> None:
        super().replace(name, b"")


class Shortening(ObstoreStore):
    def stream(self, name: str) -> Iterator[bytes] | None:
        chunks = super().stream(name)
        return None if chunks is None else islice(chunks, 1)


class Gulping(ObstoreStore):
    def stream(self, name: str) -> Iterator[bytes] | None:
        data = self.read(name)
        return None if data is None else iter([data])


class Deep(ObstoreStore):
    def names(self, prefix: str) -> list[str]:
        return sorted([*super().names(prefix), *super().names(f"{prefix}/deeper")])


class Racing(ObstoreStore):
    def create(self, name: str, data: bytes) -> bool:
        if self.read(name) is not None:
            return False
        if name.startswith("raced/"):
            self.together.wait()
        self.replace(name, data)
        return True

    together = threading.Barrier(4)


class Trusting(ObstoreStore):
    def read(self, name: str) -> bytes | None:
        return None if ".." in name else super().read(name)


class NeverWoken:
    def wait(self, timeout_s: float) -> None:
        raise AssertionError("broken promise: a watch wakes")

    def wake(self) -> None: ...

    def close(self) -> None: ...


class Sleeping(ObstoreStore):
    def watch(self, folder: str) -> Watch | None:
        return NeverWoken()


BROKEN = [
    Overwriting, Forgetting, Unordered, Appending, Keeping, Shortening, Gulping, Deep, Racing, Trusting, Sleeping,
]  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_check_finds_a_store_that_breaks_a_promise(kind: Callable[[MemoryStore, str], ObjectStore]) -> None:
    with pytest.raises(AssertionError, match="broken promise"):
        check_object_store(lambda: kind(MemoryStore(), "memory:test"))


def test_place_that_does_not_exist_is_none_unless_it_is_to_be_made(tmp_path: Path) -> None:
    assert local_store(tmp_path / "a" / "b", "file:b", create=False) is None
    assert local_store(tmp_path / "a" / "b", "file:b", create=True) is not None
    assert (tmp_path / "a" / "b").is_dir()
    assert memory_store("tests/nowhere", "memory:nowhere", create=False) is None


def test_failure_of_the_place_is_told_with_its_url(tmp_path: Path) -> None:
    store = local_store(tmp_path, "file:log", create=True)
    assert store is not None
    (tmp_path / "updates").write_text("in the way")
    with pytest.raises(LogUnavailable) as caught:
        store.create("updates/1.eg", b"")
    assert caught.value.url == "file:log"
    assert "\n" not in caught.value.reason


def test_names_of_one_folder_do_not_hold_those_of_its_neighbours() -> None:
    store = fresh_store()
    for name in ("updates/1.eg", "updates2/1.eg", "snapshots/1.safetensors", "updates"):
        store.create(name, b"")
    assert store.names("updates") == ["updates/1.eg"]


def test_many_names_are_ascending_in_whatever_order_they_were_created(tmp_path: Path) -> None:
    store = local_store(tmp_path, "file:log", create=True)
    assert store is not None
    wanted = [f"updates/{version:012d}.eg" for version in range(60)]
    for step in range(60):
        store.create(wanted[step * 37 % 60], b"")
    assert store.names("updates") == wanted
