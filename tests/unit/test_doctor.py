"""What an installation can do is told as it is, and nothing optional is loaded to tell it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evergrad.doctor import Findings, Torch, examine, examine_log, in_a_fresh_process, installed
from evergrad.errors import LogUnavailable
from evergrad.log import UpdateLog, open_log
from evergrad.log.local import LocalStore
from evergrad.testing import FakeClock, FaultyStore
from tests.builders import NEWEST_US, Unlisted, Writer, fresh_log, fresh_store, snapshot_name, update_name
from tests.unit.log.test_watch import Counting

SAID = Torch(threads=4, cuda=None, devices=(), device_kernels=False, compiler_error=None, cache="/cache")


def lacking(*missing: str) -> Callable[[str, str], str | None]:
    """Finds every package but these."""
    return lambda module, _: None if module in missing else "1.0"


def look(*missing: str, said: Torch | str = SAID) -> Findings:
    return examine(find=lacking(*missing), ask_torch=lambda: said, environment={})


def test_all_that_is_there_is_told_with_its_version() -> None:
    found = look()
    assert {package.version for package in found.packages} == {"1.0"}
    assert (found.selection, found.torch, found.torch_error, found.log) == ("numba", SAID, None, None)
    assert (found.cores, found.inotify_error, found.ok) == (len(os.sched_getaffinity(0)), None, True)


@pytest.mark.parametrize(
    ("module", "needed_for", "install"),
    [
        ("torch", "Publisher", "pip install 'evergrad[torch]'"),
        ("numba", "compiled selection", "pip install 'evergrad[torch]'"),
        ("kserve", "evergrad serve", "pip install 'evergrad[serve]'"),
        ("onnxruntime", "adapters.onnx", "pip install 'evergrad[onnx]'"),
        ("matplotlib", "report", "pip install 'evergrad[report]'"),
        ("sklearn", "evergrad demo", "pip install 'evergrad[demo]'"),
        ("typer", "command", "pip install 'evergrad[cli]'"),
        ("xxhash", "everything", "pip install evergrad"),
        ("triton", "CUDA", None),
        ("river", "OnDrift", "pip install 'evergrad[drift]'"),
        ("pyarrow", "Parquet", "pip install 'evergrad[parquet]'"),
    ],
)
def test_what_is_missing_is_told_with_what_needs_it_and_what_brings_it(
    module: str, needed_for: str, install: str | None
) -> None:
    (package,) = (package for package in look(module).packages if package.version is None)
    assert needed_for in package.needed_for
    assert package.install == install


def test_every_extra_that_is_named_is_one_of_the_projects() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    extras = {package.extra for package in look().packages if package.extra}
    assert extras
    assert all(f"\n{extra} = [" in project for extra in extras)


def test_without_numba_torch_selects_and_without_torch_nothing_does_nor_is_asked() -> None:
    def ask() -> Torch:
        raise AssertionError("torch is not there")

    assert look("numba").selection == "torch"
    found = examine(find=lacking("torch"), ask_torch=ask)
    assert (found.selection, found.torch, found.torch_error, found.ok) == ("none", None, None, True)


def test_packages_that_are_there_and_do_not_load_are_told() -> None:
    found = look(said="OSError: libtorch.so: cannot open")
    assert (found.selection, found.torch, found.torch_error) == ("none", None, "OSError: libtorch.so: cannot open")
    broken = Torch(
        threads=1, cuda=None, devices=(), device_kernels=False, compiler_error="ImportError: too new", cache=None
    )
    assert (look(said=broken).selection, look(said=broken).torch) == ("none", broken)


def test_the_environment_and_the_system_are_asked() -> None:
    found = examine(
        find=lacking("torch"), system=Counting(fail_init=errno.EMFILE), environment={"OMP_NUM_THREADS": "3"}
    )
    assert found.omp_num_threads == "3"
    assert found.inotify_error == "too many"


def test_packages_are_found_without_loading_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed("numpy", "numpy") == sys.modules["numpy"].__version__
    assert installed("no_such_package", "numpy") is None
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "only_a_folder").mkdir()
    assert installed("only_a_folder", "numpy") is None
    (tmp_path / "breaks_when_loaded.py").write_text("raise RuntimeError")
    assert installed("breaks_when_loaded", "no-such-distribution") == "of unknown version"
    monkeypatch.setitem(sys.modules, "blocked", None)
    assert installed("blocked", "numpy") is None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise OSError('libtorch.so')", "OSError: libtorch.so"),
        ("import os; os.kill(os.getpid(), 9)", "the process ended: Killed"),
        ("raise SystemExit(3)", "the process ended with status 3"),
        ("pass", "IndexError: list index out of range"),
        ("print('{}')", "ValidationError: Object missing required field `threads`"),
    ],
)
def test_a_process_that_does_not_answer_is_told_in_one_line(code: str, reason: str) -> None:
    assert in_a_fresh_process([sys.executable, "-c", code]) == reason


def test_no_python_to_start_is_told() -> None:
    assert "FileNotFoundError" in str(in_a_fresh_process(["/no/such/python"]))


# -- logs -------------------------------------------------------------------------------------------------------------


def test_a_local_log(tmp_path: Path) -> None:
    url = f"file:{tmp_path / 'log'}"
    writer = Writer(open_log(url, create=True)).begin().append(20)
    before = sorted(tmp_path.rglob("*"))
    found = examine_log(url, FakeClock(NEWEST_US / 1e6 + 19 + 60))
    assert (found.url, found.error, found.schema) == (url, None, writer.log.schema.fingerprint)
    assert (found.tensors, found.nbytes, found.model) == (5, writer.log.schema.nbytes, None)
    assert (found.listed, found.listing_error, found.writing, found.watched) == (True, None, "permitted", True)
    assert (found.snapshot, found.head, found.staleness_s) == (0, 20, pytest.approx(60.0))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("versions", [0, 1, 2, 3, 7, 8, 13])
def test_the_head_of_a_place_that_cannot_be_listed_is_found_by_names(versions: int) -> None:
    store = Unlisted(fresh_store())
    Writer(UpdateLog(store, "unlisted:")).begin().append(versions)
    found = examine_log(UpdateLog(store, "unlisted:"))
    assert (found.error, found.snapshot, found.head) == (None, 0, versions)
    assert (found.listed, found.writing, found.watched) == (False, "read-only kind", False)


def test_a_head_whose_update_is_deleted_is_that_of_its_snapshot() -> None:
    writer = Writer(fresh_log()).begin().append(3)
    writer.log.write_snapshot(writer.snapshot())
    writer.log.prune(0)
    found = examine_log(writer.log, FakeClock(NEWEST_US / 1e6 + 5))
    assert (found.error, found.snapshot, found.head, found.staleness_s) == (None, 3, 3, pytest.approx(5.0))


class NotListed(FaultyStore):
    """As with credentials that may read and not list."""

    def names(self, prefix: str) -> list[str]:
        raise LogUnavailable("faulty:", "these credentials may not do that")


def test_a_listing_that_is_refused_is_told_and_readers_do_without() -> None:
    store = fresh_store()
    Writer(UpdateLog(store, "memory:test")).begin().append(5)
    found = examine_log(UpdateLog(NotListed(store), "memory:test"))
    assert (found.error, found.listed, found.head, found.writing) == (None, False, 5, "not tried")
    assert "may not do that" in str(found.listing_error)


class Forbidden(LocalStore):
    """A directory of somebody else's."""

    def may_write(self, access: Callable[[str, int], bool] = os.access) -> bool:
        return super().may_write(lambda path, mode: not path.endswith("updates") and access(path, mode))


def test_a_local_log_that_permissions_protect(tmp_path: Path) -> None:
    Writer(open_log(str(tmp_path), create=True)).begin().append(1)
    found = examine_log(UpdateLog(Forbidden(tmp_path, "file:log"), "file:log"))
    assert (found.error, found.writing, found.head) == (None, "denied", 1)


def test_logs_that_are_not_there_are_told_and_status_follows(tmp_path: Path) -> None:
    for url, error in {
        str(tmp_path / "nowhere"): "LogNotFound: no update log at",
        str(tmp_path): "LogNotFound: no update log at",
        "s4:nowhere": "ConfigError: log: 's4' is not a kind of log",
        "s3://user:secret@bucket": "ConfigError: log: a s3 URL with a user name",
    }.items():
        found = examine(url, find=lacking("torch"))
        assert found.log is not None
        assert str(found.log.error).startswith(error)
        assert "secret" not in str(found)
        assert not found.ok


def test_a_log_that_was_begun_and_holds_no_version_is_told() -> None:
    log = Writer(fresh_log()).begin().log
    for name in ("latest.json", snapshot_name(0)):
        log.store.delete(name)
    found = examine_log(log)
    assert str(found.error).startswith("LogNotFound")
    assert (found.schema, found.listed) == (log.schema.fingerprint, True)


@pytest.mark.parametrize("name", ["evergrad.json", snapshot_name(0), update_name(4)])
def test_an_object_that_is_damaged_is_named(name: str) -> None:
    log = Writer(fresh_log()).begin().append(4).log
    log.store.replace(name, b"{" * 100)
    found = examine_log(UpdateLog(log.store, log.url))
    assert str(found.error).startswith(f"CorruptRecord: {name}")


def test_what_fails_while_it_is_read_is_told() -> None:
    log = Writer(fresh_log()).begin().append(2).log
    store = FaultyStore(log.store, fail_read={update_name(2)})
    assert "no answer about updates" in str(examine_log(UpdateLog(store, "memory:test")).error)
