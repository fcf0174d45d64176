"""What the two objects of a log that are replaced say: `evergrad.json`, its root, and `latest.json`."""

from __future__ import annotations

import re

import msgspec

from evergrad.errors import CorruptRecord, UnsupportedFormat

FORMAT = 1
MAX_FOLD_BASE = 1 << 20
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Root(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `evergrad.json` says.

    Attributes:
        log: the id of this log, or of its newest generation.
        begins: the version that it begins with; what is older is of another schema.
        model: the import path that builds the module.
    """

    format: int
    log: str
    schema: str
    fold_base: int
    begins: int = 0
    model: str | None = None


class _FormatOnly(msgspec.Struct):
    format: int


class Latest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `latest.json` says: the log's id, and the newest snapshot that readers may begin with."""

    log: str
    snapshot: int


def decode_root(data: bytes) -> Root:
    """Reads `evergrad.json`. Raises CorruptRecord, UnsupportedFormat."""
    try:
        found = msgspec.json.decode(data, type=_FormatOnly).format
        if found > FORMAT:
            raise UnsupportedFormat("evergrad.json", found, FORMAT)
        root = msgspec.json.decode(data, type=Root)
    except _UNREADABLE as error:
        raise CorruptRecord("evergrad.json", str(error)) from error
    if root.format != FORMAT or not re.fullmatch(r"[0-9a-f]{32}", root.schema):
        raise CorruptRecord("evergrad.json", f"format {root.format} and schema {root.schema!r}, as no writer writes")
    if not re.fullmatch(r"[0-9a-f]{16}", root.log) or not 2 <= root.fold_base <= MAX_FOLD_BASE:
        raise CorruptRecord("evergrad.json", f"log {root.log!r} and fold base {root.fold_base}, as no writer writes")
    if not 0 <= root.begins < 1 << 63:
        raise CorruptRecord("evergrad.json", f"it begins with version {root.begins}, as no writer writes")
    return root


def decode_latest(data: bytes) -> Latest | None:
    """Reads `latest.json`; None where it cannot be read: it is a hint, not a promise."""
    try:
        return msgspec.json.decode(data, type=Latest)
    except _UNREADABLE:
        return None
