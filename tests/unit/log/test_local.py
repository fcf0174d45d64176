"""The local directory: one winner, whole objects, synced when durable, and every error of the system told."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from evergrad.errors import ConfigError, LogUnavailable
from evergrad.log import open_log
from evergrad.log.local import LocalStore, local_store
from evergrad.testing import check_object_store
from tests.builders import Writer

URL = "file:log"
NOW_S = 1_700_000_000.0


def failing(number: int) -> Callable[..., None]:
    def fail(*where: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("durable", [False, True], ids=["quick", "durable"])
@pytest.mark.parametrize("link", [os.link, failing(errno.EPERM)], ids=["links", "no links"])
def test_directory_keeps_the_promises(durable: bool, link: Callable[[str, str], None], tmp_path: Path) -> None:
    check_object_store(lambda: LocalStore(tmp_path, URL, durable=durable, link=link))
    assert not list(tmp_path.rglob(".tmp-*"))


def test_of_two_processes_that_race_for_each_name_exactly_one_wins(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from evergrad.log.local import LocalStore\n"
        "store = LocalStore(Path(sys.argv[1]), 'file:log')\n"
        "print(flush=True); input()\n"
        "print(*[turn for turn in range(400) if store.create(f'raced/{turn}', sys.argv[2].encode())])"
    )
    who = ["a" * 1000, "b" * 1000]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in who
    ]
    for process in processes:
        assert process.stdout
        process.stdout.readline()
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    won = [[int(turn) for turn in process.communicate()[0].split()] for process in processes]
    assert sorted(won[0] + won[1]) == list(range(400))
    for name, turns in zip(who, won, strict=True):
        assert all((tmp_path / "raced" / str(turn)).read_text() == name for turn in turns)


def test_reader_of_a_mutable_object_sees_the_old_or_the_new_bytes(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, URL)
    store.replace("latest.json", b"0" * 100_000)

    def write() -> None:
        for number in range(300):
            store.replace("latest.json", b"%d" % (number % 10) * 100_000)

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        data = store.read("latest.json")
        assert data is not None
        assert data == data[:1] * 100_000
    thread.join()


class Recorded:
    """Writes down what the store does to the disk, in order."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, list[str]()
        self.store = LocalStore(root, URL, durable=True, fsync=self.fsync, link=self.link)

    def fsync(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}")).relative_to(self.root)
        self.calls.append(f"sync {path.parent / '.tmp' if path.name.startswith('.tmp-') else path}")
        os.fsync(fd)

    def link(self, source: str, target: str) -> None:
        self.calls.append(f"link {Path(target).relative_to(self.root)}")
        os.link(source, target)

    def during(self, work: Callable[[], object]) -> list[str]:
        self.calls.clear()
        work()
        return list(self.calls)


def test_durable_store_answers_when_bytes_name_and_new_folders_are_synced(tmp_path: Path) -> None:
    disk = Recorded(tmp_path)
    create, replace = disk.store.create, disk.store.replace
    written = ["sync updates/.tmp", "link updates/1.eg", "sync updates"]
    assert disk.during(lambda: create("updates/1.eg", b"1")) == [*written, "sync ."]
    assert disk.during(lambda: create("updates/2.eg", b"2")) == [line.replace("1", "2") for line in written]
    again = disk.during(lambda: create("updates/1.eg", b"1"))
    assert again == [*written[:2], "sync updates/1.eg", "sync updates"], "what another wrote is synced as well"
    assert disk.during(lambda: replace("latest.json", b"1")) == ["sync .tmp", "sync ."]
    assert disk.during(lambda: disk.store.read("updates/1.eg")) == []


def test_store_that_is_not_durable_never_syncs(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, URL, fsync=failing(errno.EIO))
    assert store.create("updates/1.eg", b"1")
    store.replace("latest.json", b"1")


def test_durable_is_for_directories_and_makes_its_own_durably(tmp_path: Path) -> None:
    Writer(open_log(f"file:{tmp_path}/a/b", create=True, durable=True)).begin().append(2)
    assert open_log(f"file:{tmp_path}/a/b", durable=True).updates() == [1, 2]
    with pytest.raises(ConfigError, match="ends with this process") as caught:
        open_log("memory:log", create=True, durable=True)
    assert caught.value.key == "durable"


def test_sync_that_fails_is_told_and_the_name_is_as_it_was(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, URL, durable=True, fsync=failing(errno.EIO))
    for attempt in (lambda: store.create("updates/1.eg", b"1"), lambda: store.replace("latest.json", b"1")):
        with pytest.raises(LogUnavailable, match="Input/output error"):
            attempt()
    assert [path.name for path in tmp_path.rglob("*")] == ["updates"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_write_that_fails_is_told_with_its_name_and_leaves_nothing(number: int, tmp_path: Path) -> None:
    store = LocalStore(tmp_path, URL, link=failing(number))
    with pytest.raises(LogUnavailable) as caught:
        store.create("updates/1.eg", b"1")
    assert (caught.value.url, caught.value.reason) == (URL, f"updates/1.eg: {os.strerror(number)}")
    assert (store.read("updates/1.eg"), os.listdir(tmp_path / "updates")) == (None, [])


def test_full_disk_leaves_nothing_and_the_same_write_succeeds_later(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from evergrad.errors import LogUnavailable; from evergrad.log.local import LocalStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "store = LocalStore(Path(sys.argv[1]), 'file:log')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "for write in (store.create, store.replace):\n"
        "    try: write('updates/1.eg', bytes(2000))\n"
        "    except LogUnavailable as error: print(error.reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["updates/1.eg: File too large"] * 2
    assert os.listdir(tmp_path / "updates") == []
    assert LocalStore(tmp_path, URL).create("updates/1.eg", bytes(2000))


def test_file_in_the_way_of_a_folder_is_told_to_all(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, URL)
    (tmp_path / "updates").write_text("in the way")
    attempts: list[Callable[[], object]] = [
        lambda: store.create("updates/1.eg", b""),
        lambda: store.replace("updates/1.eg", b""),
        lambda: store.read("updates/1.eg"),
        lambda: store.stream("updates/1.eg"),
        lambda: store.delete("updates/1.eg"),
        lambda: store.names("updates"),
    ]
    for attempt in attempts:
        with pytest.raises(LogUnavailable, match="Not a directory"):
            attempt()


def test_directory_that_was_taken_away_is_not_made_anew(tmp_path: Path) -> None:
    store = local_store(tmp_path / "log", URL, create=True)
    assert store is not None
    (tmp_path / "log").rmdir()
    for name in ("evergrad.json", "updates/1.eg"):
        with pytest.raises(LogUnavailable, match="the directory is gone"):
            store.create(name, b"")
        assert store.read(name) is None
    assert store.names("updates") == []


def test_store_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = local_store(Path("log"), URL, create=True)
    assert store is not None
    monkeypatch.chdir("elsewhere")
    store.create("a", b"")
    assert (tmp_path / "log" / "a").exists()


def test_folders_are_no_objects(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, URL)
    store.create("updates/deep/1.eg", b"")
    assert (store.read("updates"), store.stream("updates"), store.names("updates")) == (None, None, [])


def test_stream_that_is_not_read_to_its_end_keeps_no_file_open(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, URL)
    store.create("a", bytes(3 << 20))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        chunks = store.stream("a")
        assert chunks is not None
        next(chunks)
        chunks = store.stream("a")
        del chunks
    assert len(os.listdir("/proc/self/fd")) == before


def test_stream_of_an_object_that_is_deleted_meanwhile_gives_all_of_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, URL)
    store.create("a", bytes(3 << 20))
    chunks = store.stream("a")
    store.delete("a")
    assert chunks is not None
    assert sum(map(len, chunks)) == 3 << 20


def leave_strays(root: Path) -> dict[str, Path]:
    """What crashes leave: one long ago and one just now, in a folder and beside the folders; and what is not ours."""
    ages = {"updates/.tmp-old": 4000, ".tmp-old": 4000, "updates/.tmp-new": 10, "updates/.mine": 4000}
    for name, age_s in ages.items():
        (root / name).write_bytes(b"half an obj")
        os.utime(root / name, (NOW_S - age_s,) * 2)
    return {name: root / name for name in ages}


def test_strays_are_never_objects_and_old_ones_are_removed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, URL)
    store.create("updates/1.eg", b"1")
    strays = leave_strays(tmp_path)
    assert store.names("updates") == ["updates/.mine", "updates/1.eg"]
    store.remove_strays(clock=lambda: NOW_S)
    assert [name for name, path in strays.items() if path.exists()] == ["updates/.tmp-new", "updates/.mine"]


def test_only_who_opens_to_write_removes_strays(tmp_path: Path) -> None:
    (tmp_path / "updates").mkdir()
    strays = leave_strays(tmp_path)
    local_store(tmp_path, URL, create=False)
    assert all(path.exists() for path in strays.values())
    local_store(tmp_path, URL, create=True)
    assert [name for name, path in strays.items() if path.exists()] == ["updates/.mine"]
