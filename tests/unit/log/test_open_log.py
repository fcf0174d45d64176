"""URLs become logs, or say what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from evergrad.errors import ConfigError, LogNotFound
from evergrad.log import UpdateLog, open_log
from tests.builders import Writer


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}", "file://localhost{}", "FILE:{}"])
def test_local_directory_in_each_spelling(tmp_path: Path, form: str) -> None:
    url = form.format(tmp_path / "a" / "log")
    if form.startswith("FILE"):
        with pytest.raises(ConfigError):
            open_log(url)
        return
    Writer(open_log(url, create=True)).begin()
    assert (tmp_path / "a" / "log" / "evergrad.json").is_file()
    assert open_log(url).begun()
    assert open_log(url).url == url


def test_names_with_spaces_and_signs_are_taken_as_they_are(tmp_path: Path) -> None:
    place = tmp_path / "a b%20c#d?e"
    writer = Writer(open_log(str(place), create=True)).begin().append()
    assert (place / "updates" / "000000000001.eg").is_file()
    assert writer.log.updates() == [1]


def test_file_url_is_unquoted(tmp_path: Path) -> None:
    Writer(open_log(str(tmp_path / "a b"), create=True)).begin()
    assert open_log(f"file://{tmp_path}/a%20b").begun()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "names no place"),
        ("file:", "names no place"),
        ("file://", "names no place"),
        ("memory:", "names no place"),
        ("file://data/updates", "names the machine 'data'"),
        ("file://updates", "names the machine 'updates'"),
        ("nats://host/log", "'nats' is not a kind of log"),
        ("gcs://bucket/log", "did you mean gs:?"),
        ("ftp://host/log", "use file:, s3:, gs:, az:, https: or memory:"),
        ("s3:", "names no place: write s3://, a bucket"),
        ("s3://", "names no place: write s3://, a bucket"),
        ("gs:bucket/log", "names no place: write gs://, a bucket"),
        ("az:///log", "names no place: write az://, a container"),
        ("s3://bucket/log?versionId=1", "has no [?] or #"),
        ("s3://bucket/log//deeper", "an empty part"),
        ("s3://bucket/../log", "an empty part"),
        ("s3://key:word@bucket/log", "user name or password"),
        ("file://key:word@host/log", "user name or password"),
    ],
)
def test_url_that_names_no_known_place_is_told(url: str, problem: str) -> None:
    for create in (False, True):
        with pytest.raises(ConfigError, match=problem) as caught:
            open_log(url, create=create)
        assert caught.value.key == "log"
        assert "key:word" not in str(caught.value)


def test_one_letter_before_a_colon_is_a_path_and_not_a_scheme() -> None:
    assert not open_log("C:/nowhere").begun()


def test_reading_makes_no_place(tmp_path: Path) -> None:
    log = open_log(str(tmp_path / "nowhere"))
    assert not log.begun()
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(LogNotFound):
        _ = log.schema
    with pytest.raises(LogNotFound):
        log.read(1)
    with pytest.raises(LogNotFound):
        log.snapshots()


def test_memory_is_shared_by_name_within_the_process() -> None:
    name = "memory:tests/unit/log/test_open_log.py"
    assert not open_log(name).begun()
    Writer(open_log(name, create=True)).begin().append()
    assert open_log(name).updates() == [1]
    assert open_log(name, create=True).begun()
    assert isinstance(open_log(f"{name}/other"), UpdateLog)
    assert not open_log(f"{name}/other").begun()
