"""Updates to bytes and back; snapshots to safetensors and back. No storage here (see `log`).

wire       an update's header and sections, by docs/format.md
rice       the codes for indices and differences
snapshot   safetensors, with version and digest in its metadata
"""

from evergrad.codec.snapshot import (
    SnapshotInfo,
    SnapshotReader,
    decode_snapshot,
    encode_snapshot,
    read_snapshot,
    snapshot_pieces,
)
from evergrad.codec.wire import (
    HEADER_BYTES,
    compact,
    decode,
    decode_header,
    encode,
    encoded_bytes,
    split,
    with_header,
)

__all__ = [
    "HEADER_BYTES",
    "SnapshotInfo",
    "SnapshotReader",
    "compact",
    "decode",
    "decode_header",
    "decode_snapshot",
    "encode",
    "encode_snapshot",
    "encoded_bytes",
    "read_snapshot",
    "snapshot_pieces",
    "split",
    "with_header",
]
