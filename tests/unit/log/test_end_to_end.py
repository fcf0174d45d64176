"""A whole life of a replica over a web server and over S3: begin, folds, a lost update, the snapshot, deletion."""

from __future__ import annotations

import functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evergrad.log import UpdateLog, open_log
from evergrad.replica import Replica
from tests.builders import Writer, equal_states, update_name, wide_schema
from tests.unit.log import places


class Quiet(SimpleHTTPRequestHandler):
    """The standard library's server of a directory, which says nothing to stderr."""

    def log_message(self, *said: object) -> None:
        pass


def whole_life(written: UpdateLog, url: str, cache: Path) -> None:
    writer = Writer(written, schema=wide_schema(), fold_base=4).begin()
    replica = Replica(url, cache=cache)
    assert replica.sync() == 0
    writer.append(40)
    assert replica.sync() == 40
    assert equal_states(replica.state, writer.state)
    # 0 to 4 one by one, then 4-8, 8-12, 12-16, 16-32, 32-36, 36-40.
    assert (replica.stats().updates, replica.stats().snapshots) == (10, 1)

    writer.append(2)
    written.store.delete(update_name(41))
    assert replica.sync() == 40
    written.write_snapshot(writer.snapshot())
    assert replica.sync() == 42
    assert equal_states(replica.state, writer.state)
    assert replica.stats().snapshots == 2
    replica.close()

    written.prune(0)
    writer.append(3)
    again = Replica(url, cache=cache)
    assert again.sync() == 45
    assert (again.stats().snapshots, again.stats().updates) == (0, 3)
    fresh = Replica(url)
    assert fresh.sync() == 45
    assert equal_states(fresh.state, writer.state)
    assert again.digest == fresh.digest == writer.state.digest


def test_over_http(tmp_path: Path) -> None:
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with places.running(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as url:
        whole_life(open_log(f"file:{tmp_path / 'model'}", create=True), f"{url}/model", tmp_path / "cache")


def test_over_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with places.s3() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{places.BUCKET}/a/model"
        whole_life(open_log(url, create=True), url, tmp_path)
