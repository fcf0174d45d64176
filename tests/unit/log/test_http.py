"""A log behind a plain web server: read by name, whole or not at all, and never written."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from evergrad.errors import ConfigError, LogNotFound, LogUnavailable, ReadOnlyLog
from evergrad.log import open_log
from evergrad.log.store import http_store
from evergrad.testing import check_store_reader
from tests.builders import Writer
from tests.unit.log.places import Silent, running

BIG = bytes(range(256)) * 16384


class Folder(Silent, SimpleHTTPRequestHandler):
    """A folder of files, as the standard library serves it."""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with running(ThreadingHTTPServer(("127.0.0.1", 0), partial(Folder, directory=tmp_path))) as server:
        yield server


def test_objects_that_a_writer_left_in_the_folder_are_read(url: str, tmp_path: Path) -> None:
    writer = Writer(open_log(str(tmp_path / "a model"), create=True)).begin().append(2)
    store = writer.log.store
    assert store.create("snapshots/big", BIG)
    assert store.create("empty", b"")
    names = ["evergrad.json", "empty", "snapshots/big", *store.names("updates"), *store.names("schema")]
    objects = {name: store.read(name) or b"" for name in names}
    for end in ("", "/"):
        check_store_reader(open_log(f"{url}/a%20model{end}").store, objects)
    assert open_log(f"{url}/a%20model").schema.fingerprint == writer.log.schema.fingerprint


def test_log_that_is_not_there_is_told(url: str) -> None:
    with pytest.raises(LogNotFound):
        _ = open_log(f"{url}/nowhere").schema


def test_writing_and_listing_are_refused_by_name(url: str) -> None:
    store = open_log(url).store
    attempts: list[Callable[[], object]] = [
        lambda: store.create("a", b""),
        lambda: store.replace("a", b""),
        lambda: store.delete("a"),
        lambda: store.names("updates"),
        lambda: open_log(url, create=True),
    ]
    for attempt in attempts:
        with pytest.raises(ReadOnlyLog) as caught:
            attempt()
        assert caught.value.url == url
    assert store.watch("updates") is None


class Cut(Silent, BaseHTTPRequestHandler):
    """Promises all of BIG, and ends after a half; each next connection tells no more."""

    tags: dict[str, str]

    def do_GET(self) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(BIG)), **self.tags}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asked for the rest, and sees the beginning again, hangs up
            self.wfile.write(BIG[: len(BIG) // 2])


@pytest.mark.parametrize("tags", [{}, {"ETag": '"1"', "Accept-Ranges": "bytes"}], ids=["plain", "with an ETag"])
def test_answer_that_is_cut_short_is_an_error_and_never_short_data(tags: dict[str, str]) -> None:
    with running(ThreadingHTTPServer(("127.0.0.1", 0), type("Cut", (Cut,), {"tags": tags}))) as url:
        store = open_log(url).store
        for read in (lambda: store.read("a"), lambda: b"".join(store.stream("a") or ())):
            with pytest.raises(LogUnavailable, match="cut short") as caught:
                read()
            assert caught.value.url == url


class Broken(Silent, BaseHTTPRequestHandler):
    """Answers with the status that its path names; or, at /chunked, without saying how long the answer is."""

    def do_GET(self) -> None:
        if self.path == "/chunked":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"data")
        else:
            self.answer(int(self.path.rpartition("/")[2]), b"a page with https://user:secret@host in it")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("500", "500 Internal Server Error"),
        ("403", "403 Forbidden"),
        ("401", "401 Unauthorized"),
        ("chunked", "length"),
    ],
)
def test_answer_that_is_no_object_is_told(name: str, reason: str) -> None:
    with running(ThreadingHTTPServer(("127.0.0.1", 0), Broken)) as url:
        for read in (lambda: open_log(url).store.read(name), lambda: open_log(url).store.stream(name)):
            with pytest.raises(LogUnavailable, match=reason) as caught:
                read()
            assert "secret" not in caught.value.reason


def test_gone_is_not_there() -> None:
    with running(ThreadingHTTPServer(("127.0.0.1", 0), Broken)) as url:
        assert open_log(url).store.read("404") is None
        assert open_log(url).store.stream("404") is None


def test_server_that_accepts_and_says_nothing_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(LogUnavailable, match="it did not answer in time"):
            http_store(url, silent_s=1).read("a")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_server_that_is_gone_is_told(scheme: str) -> None:
    with pytest.raises(LogUnavailable, match="the connection was refused"):
        open_log(f"{scheme}://127.0.0.1:1/log").store.read("a")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https:", "names no place"),
        ("https:///log", "names no place"),
        ("https://host/log?token=secret", "take out what follows"),
        ("https://host/log#secret", "take out what follows"),
        ("https://someone:secret@host/log", "user name or password"),
        ("http://secret@host/log", "user name or password"),
        ("https://[secret/log", "cannot be read"),
    ],
)
def test_url_that_no_log_can_have_is_refused_without_telling_a_secret(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        open_log(url)
    assert "secret" not in str(caught.value)
