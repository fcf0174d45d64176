"""How far a history is known to be on the disk, and since which start of the machine it has been written."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from evergrad.history.handles import sync_path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first `batches` are on the disk; later ones were written since the start of the machine named `boot`."""

    batches: int
    boot: str


def boot_id() -> str:
    """Names this start of the machine; empty where the system does not tell."""
    return _BOOT.read_text().strip() if _BOOT.exists() else ""


def read_mark(folder: Path) -> Mark:
    """The mark in the file `synced`; where a crash took it, one that trusts no batch."""
    try:
        return msgspec.json.decode((folder / "synced").read_bytes(), type=Mark)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return Mark(0, "")


def write_mark(folder: Path, mark: Mark, *, durable: bool) -> None:
    """Replaces the mark; `durable`: and waits until it is on the disk."""
    temporary = folder / "synced.new"
    with open(temporary, "wb") as file:
        file.write(msgspec.json.encode(mark))
        file.flush()
        if durable:
            os.fsync(file.fileno())
    os.replace(temporary, folder / "synced")
    if durable:
        sync_path(folder)
