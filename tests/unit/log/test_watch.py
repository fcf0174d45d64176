"""Waiting for a file: nothing that appears is missed, and no descriptor is kept."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from evergrad.log.local import local_store
from evergrad.log.watch import Calls, Inotify, watch_folder

FOREVER_S = 3600.0  # a test that fails waits as long


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_appears_between_two_waits_ends_the_next_one(tmp_path: Path) -> None:
    watch = Inotify(str(tmp_path))
    for number in range(3):
        (tmp_path / f"a{number}").write_bytes(b"")
        (tmp_path / f"b{number}").write_bytes(b"")
        watch.wait(FOREVER_S)
    os.rename(tmp_path / "a0", tmp_path / "c")
    watch.wait(FOREVER_S)
    watch.close()


def test_what_appears_during_a_wait_ends_it(tmp_path: Path) -> None:
    watch = Inotify(str(tmp_path))
    done = threading.Event()

    def wait() -> None:
        watch.wait(FOREVER_S)
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    (tmp_path / "a").write_bytes(b"")
    assert done.wait(60)
    thread.join()
    watch.close()


class Counting(Calls):
    """Counts how often a watch is set, and can fail like a system at its limits."""

    def __init__(self, fail_init: int = 0, fail_add: int = 0) -> None:
        super().__init__()
        self.fail_init, self.fail_add = fail_init, fail_add

    def init(self) -> int:
        if self.fail_init:
            raise OSError(self.fail_init, "too many")
        return super().init()

    def add(self, fd: int, path: str, mask: int) -> int:
        if self.fail_add:
            raise OSError(self.fail_add, "too many")
        return super().add(fd, path, mask)


def test_temporary_and_vanishing_files_end_no_wait(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"")
    watch = Inotify(str(tmp_path))
    (tmp_path / ".tmp-1").write_bytes(b"")
    (tmp_path / "old").unlink()
    assert not watch._appeared()
    (tmp_path / "new").write_bytes(b"")
    assert watch._appeared()
    watch.wait(0.0)
    watch.close()


def test_folder_that_comes_later_goes_and_comes_again_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "updates"
    watch = Inotify(str(folder))
    for _ in range(3):
        (tmp_path / "other").write_bytes(b"")
        watch.wait(0.0)
        folder.mkdir()
        watch.wait(FOREVER_S)
        (folder / "1.eg").write_bytes(b"")
        watch.wait(FOREVER_S)
        (folder / "1.eg").unlink()
        folder.rmdir()
        watch.wait(0.0)
    folder.mkdir()
    (folder / "1.eg").write_bytes(b"")
    watch.wait(FOREVER_S)
    folder.rename(tmp_path / "elsewhere")
    folder.mkdir()
    watch.wait(FOREVER_S)
    (folder / "1.eg").write_bytes(b"")
    watch.wait(FOREVER_S)
    watch.close()


def test_place_that_vanishes_whole_and_comes_back_is_seen(tmp_path: Path) -> None:
    place, away = tmp_path / "log", tmp_path / "away"
    (place / "updates").mkdir(parents=True)
    watch = Inotify(str(place / "updates"))
    (place / "updates").rmdir()
    place.rename(away)
    watch.wait(0.0)
    watch.wait(0.0)
    (place / "updates").mkdir(parents=True)
    watch.wait(FOREVER_S)
    watch.close()


def test_wake_ends_a_wait_from_another_thread_and_is_not_lost_before_one(tmp_path: Path) -> None:
    watch = Inotify(str(tmp_path))
    watch.wake()
    watch.wake()
    watch.wait(FOREVER_S)
    watch.wait(0.0)
    thread = threading.Thread(target=watch.wait, args=(FOREVER_S,))
    thread.start()
    watch.wake()
    thread.join()
    watch.close()


def test_close_ends_a_wait_and_what_follows_it_does_nothing(tmp_path: Path) -> None:
    before = open_descriptors()
    watch = Inotify(str(tmp_path))
    thread = threading.Thread(target=watch.wait, args=(FOREVER_S,))
    thread.start()
    watch.close()
    thread.join()
    watch.close()
    watch.wake()
    watch.wait(FOREVER_S)
    assert open_descriptors() == before


def test_no_descriptor_is_kept_whatever_happens(tmp_path: Path) -> None:
    before = open_descriptors()
    for _ in range(50):
        watch = watch_folder(str(tmp_path / "updates"))
        assert watch is not None
        watch.wait(0.0)
        watch.close()
        assert watch_folder(str(tmp_path / "not" / "there")) is None
        with pytest.raises(OSError, match="too many"):
            Inotify(str(tmp_path), system=Counting(fail_add=errno.ENOSPC))
        with pytest.raises(OSError, match="too many"):
            Inotify(str(tmp_path), system=Counting(fail_init=errno.EMFILE))
    assert open_descriptors() == before


def test_place_of_a_log_is_watched_before_it_holds_a_folder(tmp_path: Path) -> None:
    store = local_store(tmp_path, "file:log", create=True)
    assert store is not None
    watch = store.watch("updates")
    assert watch is not None
    store.create("updates/1.eg", b"")
    watch.wait(FOREVER_S)
    store.replace("latest.json", b"")
    store.create("updates/2.eg", b"")
    watch.wait(FOREVER_S)
    watch.close()


@pytest.mark.parametrize(
    ("mounts", "watched"),
    [
        ("ext4 on /", True),
        ("nfs4 on {}", False),
        ("nfs4 on /\next4 on {}", True),
        ("ext4 on {}\nfuse.sshfs on {}", False),
        ("ext4 on {}\nnfs on {}beside", True),
    ],
)
def test_file_system_that_others_write_to_is_polled(mounts: str, watched: bool, tmp_path: Path) -> None:
    place = tmp_path / "a place"
    place.mkdir()
    table = tmp_path / "mounts"
    with table.open("w") as lines:
        for line in mounts.splitlines():
            kind, _, point = line.partition(" on ")
            escaped = point.format(place).replace(" ", "\\040")
            lines.write(f"22 27 0:21 / {escaped} rw,relatime shared:1 - {kind} source rw\n")
    watch = watch_folder(str(place / "updates"), mounts=str(table))
    assert (watch is not None) == watched
    if watch is not None:
        watch.close()


def test_system_that_does_not_tell_its_mounts_is_polled(tmp_path: Path) -> None:
    assert watch_folder(str(tmp_path), mounts=str(tmp_path / "nothing")) is None
