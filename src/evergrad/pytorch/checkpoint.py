"""Checkpoints: one file holds everything that training goes on from, written whole or not at all, beside training.

    000000001200-<XXH3-128 of the file>.safetensors     tensors, and in `tree` (MessagePack) what holds them together

The name tells what the bytes must be, so a damaged file is known for one, and the one before it is taken. Written
beside, synced, renamed: a crash leaves whole files, and at worst an unfinished one, which the next start removes.
"""

from __future__ import annotations

import logging
import re
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import xxhash

from evergrad.errors import CheckpointDamaged, ConfigError, HistoryUnavailable
from evergrad.pytorch.bridge import as_numpy, as_tensor, dtype_name
from evergrad.replica.cache import write_file
from evergrad.schema import RESERVED_NAME, STORAGE, TensorSpec

logger = logging.getLogger(__name__)
_NAME = re.compile(r"(\d{12,})-([0-9a-f]{32})\.safetensors")
_TENSOR, _ARRAY, _TUPLE, _INTEGER = range(4)
_TREE = "tree"


class Checkpoints:
    """The checkpoints in a folder, numbered upwards.

    Args:
        path: the folder; made where it does not exist.
        every: a new one is due after so many steps.
        keep: so many are kept; older ones are deleted once a newer one is on the disk.
        background: a thread writes them; one that is due while the one before is being written is left out.

    Raises:
        ConfigError: `every` or `keep` is below 1, or the folder cannot be made.
    """

    def __init__(self, path: str | Path, *, every: int = 100, keep: int = 2, background: bool = True) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if value < 1:
                raise ConfigError(f"checkpoints.{name}", f"must be 1 or more, not {value}")
        self.path, self.every = Path(path), every
        self._keep, self._background = keep, background
        self._thread: threading.Thread | None = None
        self.failure: Exception | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for stray in self.path.glob(".*.safetensors-*"):
                stray.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError("checkpoints", f"{path} cannot be used: {error}") from error

    @property
    def busy(self) -> bool:
        """Whether one is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(
        self,
        number: int,
        tree: Any,
        *,
        before: Callable[[], None] = lambda: None,
        after: Callable[[list[int]], None] = lambda _: None,
    ) -> None:
        """Writes a checkpoint, of copies that are made at once.

        A disk that refuses is a warning in the log and `failure`; the checkpoints that are there stay.

        Args:
            number: larger than those before; one of the same number is replaced.
            tree: see `Stateful`.
            before: called before the checkpoint is in its place, on the thread that writes it; where it raises OSError
                or HistoryUnavailable, that is a disk that refuses, too.
            after: called there when it is, with the numbers of all that are kept.
        """
        pieces = list(_pieces(tree))
        self.wait()
        if not self._background:
            self._write(number, pieces, before, after)
            return
        self._thread = threading.Thread(
            target=self._write, args=(number, pieces, before, after), name="evergrad-checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Returns when none is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def newest(self) -> tuple[int, Any] | None:
        """Number and tree of the newest one that is whole; None where there is none at all.

        Raises:
            CheckpointDamaged: there are some, and none is whole.
        """
        problem = ""
        for number, path in reversed(self._found()):
            try:
                return number, _read(path)
            except (OSError, ValueError) as error:
                problem = problem or str(error)
                logger.warning("the checkpoint %s cannot be read (%s); the one before is taken", path, error)
        if problem:
            raise CheckpointDamaged(str(self.path), problem)
        return None

    def _found(self) -> list[tuple[int, Path]]:
        matches = ((_NAME.fullmatch(path.name), path) for path in self.path.iterdir())
        return sorted((int(match[1]), path) for match, path in matches if match)

    def _write(
        self,
        number: int,
        pieces: list[memoryview],
        before: Callable[[], None],
        after: Callable[[list[int]], None],
    ) -> None:
        checksum = xxhash.xxh3_128()
        for piece in pieces:
            checksum.update(piece)
        try:
            before()
            written = self.path / f"{number:012d}-{checksum.hexdigest()}.safetensors"
            write_file(written, pieces)
            found = self._found()
            older = [path for other, path in found if other < number]
            kept = {written, *older[max(0, len(older) + 1 - self._keep) :]}
            for _, path in found:
                if path not in kept:
                    path.unlink(missing_ok=True)
            after([other for other, _ in self._found()])
            self.failure = None
        except (OSError, HistoryUnavailable) as error:
            self.failure = error
            logger.warning("no checkpoint was written at %d: %s; training goes on without", number, error)


def _pieces(tree: Any) -> Iterator[memoryview]:
    """The bytes of a safetensors file; those of tensors are copies."""
    tensors: list[torch.Tensor] = []
    told = msgspec.msgpack.encode(_told(tree, tensors))
    named = [(str(number), tensor) for number, tensor in enumerate(tensors)]
    named.append((_TREE, torch.frombuffer(bytearray(told), dtype=torch.uint8)))
    named.sort(key=lambda each: -each[1].element_size())  # it keeps each tensor aligned
    table: dict[str, Any] = {RESERVED_NAME: {"format": "pt"}}
    stop = 0
    for name, tensor in named:
        start, stop = stop, stop + tensor.nbytes
        table[name] = {"dtype": dtype_name(tensor), "shape": list(tensor.shape), "data_offsets": [start, stop]}
    header = msgspec.json.encode(table)
    header += b" " * (-len(header) % 8)
    yield memoryview(struct.pack("<Q", len(header)) + header)
    for _, tensor in named:
        yield as_numpy(tensor).reshape(-1).view(np.uint8).data


def _told(value: Any, tensors: list[torch.Tensor]) -> Any:
    """As MessagePack can tell it; tensors and arrays are copied into `tensors`, and told by their number."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, torch.Tensor | np.ndarray):
        kind = _TENSOR if isinstance(value, torch.Tensor) else _ARRAY
        tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(value))
        order = _memory_order(tensor)
        tensors.append(tensor.detach().permute(order).to("cpu", copy=True).contiguous())
        return msgspec.msgpack.Ext(kind, msgspec.msgpack.encode((len(tensors) - 1, order)))
    if isinstance(value, dict):
        return {key: _told(each, tensors) for key, each in value.items()}
    if isinstance(value, list | tuple):
        each = [_told(each, tensors) for each in value]
        return each if isinstance(value, list) else msgspec.msgpack.Ext(_TUPLE, msgspec.msgpack.encode(each))
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return msgspec.msgpack.Ext(_INTEGER, str(value).encode())
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise ConfigError("checkpoint", f"a {type(value).__name__} cannot be kept; see evergrad.stateful.Stateful")


def _memory_order(tensor: torch.Tensor) -> list[int]:
    """The sides of a tensor as they lie in memory: optimizers walk weights and moments by address (channels_last)."""
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda side: -strides[side])


def _read(path: Path) -> Any:
    """The tree in a checkpoint. Raises ValueError where the file is not what its name says."""
    data = bytearray(path.read_bytes())
    match = _NAME.fullmatch(path.name)
    if match is None or xxhash.xxh3_128_hexdigest(data) != match[2]:
        raise ValueError("its checksum is another")
    (length,) = struct.unpack_from("<Q", data)
    table = msgspec.json.decode(bytes(data[8 : 8 + length]))
    tensors = {}
    for name, entry in table.items():
        if name == RESERVED_NAME:
            continue
        start = 8 + length + entry["data_offsets"][0]
        spec = TensorSpec(name, entry["dtype"], tuple(entry["shape"]), 0)
        tensors[name] = as_tensor(np.ndarray(spec.size, STORAGE[spec.dtype], data, start), spec)
    return _decoded(tensors[_TREE].numpy().tobytes(), tensors)


def _decoded(told: bytes, tensors: dict[str, torch.Tensor]) -> Any:
    def ext(code: int, data: memoryview) -> Any:
        if code == _TUPLE:
            return tuple(_decoded(bytes(data), tensors))
        if code == _INTEGER:
            return int(bytes(data))
        number, order = msgspec.msgpack.decode(data)
        tensor = tensors[str(number)].permute([order.index(side) for side in range(len(order))])
        return tensor if code == _TENSOR else tensor.numpy()

    return msgspec.msgpack.decode(told, ext_hook=ext)
