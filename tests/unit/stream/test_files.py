"""Streams from files: in order, in batches, never a pickle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evergrad.config import build
from evergrad.errors import ConfigError
from evergrad.stream.files import NpzStream
from evergrad.testing import FakeClock


def test_arrays_come_in_file_order_a_batch_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.arange(10).reshape(5, 2), y=np.arange(5))
    stream = NpzStream(path=str(path), batch=2, clock=FakeClock(7.0))
    for _ in range(2):
        found = list(stream)
        assert [batch.y.tolist() for batch in found] == [[0, 1], [2, 3], [4]]
        assert [batch.x[:, 0].tolist() for batch in found] == [[0, 2], [4, 6], [8]]
        assert {batch.arrived_s for batch in found} == {7.0}


def test_empty_arrays_give_no_batches(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((0, 2)), y=np.zeros(0))
    assert list(NpzStream(path=str(tmp_path / "data.npz"))) == []


def test_it_is_made_from_a_table(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros(3), y=np.zeros(3))
    assert [len(batch) for batch in build(NpzStream, {"path": str(path), "batch": 2}, "stream")] == [2, 1]


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros(2)},
        {"x": np.zeros(2), "y": np.zeros(3)},
        {"x": np.float32(0), "y": np.zeros(1)},
        {"x": np.array([None]), "y": np.zeros(1)},
    ],
    ids=["missing", "lengths", "scalar", "pickled"],
)
def test_arrays_that_are_no_examples_are_told_by_path(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(ConfigError) as caught:
        list(NpzStream(path=str(path)))
    assert caught.value.key == "stream.path"
    assert str(path) in caught.value.problem


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut", b"\x93NUMPY", b"\x80\x04K\x01."])
def test_file_that_is_no_archive_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"data\.npz"):
        list(NpzStream(path=str(path)))


def test_single_array_file_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.zeros(3))
    with pytest.raises(ConfigError, match="must hold plain arrays x and y"):
        list(NpzStream(path=str(tmp_path / "data.npy")))


def test_archive_cut_anywhere_is_told(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.arange(100), y=np.arange(100))
    data = path.read_bytes()
    for cut in range(0, len(data), 7):
        path.write_bytes(data[:cut])
        with pytest.raises(ConfigError):
            list(NpzStream(path=str(path)))


def test_archive_with_altered_bytes_is_read_or_told(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.arange(100), y=np.arange(100))
    data = path.read_bytes()
    told = 0
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            list(NpzStream(path=str(path)))
        except ConfigError:
            told += 1
    assert told > len(data) // 2


def test_settings_are_checked_when_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stream\.path: no file"):
        NpzStream(path=str(tmp_path / "nowhere.npz"))
    with pytest.raises(ConfigError, match=r"stream\.batch"):
        NpzStream(path=str(tmp_path), batch=0)
