"""The signature of a log's model: what it takes and gives, and the program that computes it (`docs/format.md`).

    signature/<log id>.json     inputs and outputs, and the program's name and size; replaced where it is recorded again
    programs/<sha256>.json      the program, under the first 32 hexadecimal digits of its SHA-256

A log's id is that of its newest generation, so a model of another structure has a signature of its own. A reader that
does not know these objects loses nothing by it. What is *in* a program, and which of it is refused, is
`pytorch.program`'s to say; here its bytes are only counted and compared with their checksum.

A crash of the writer leaves a program that no signature names, which is harmless, or the signature from before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import msgspec

from evergrad.errors import ProgramRefused, UnsupportedFormat
from evergrad.log.layout import UpdateLog
from evergrad.schema import STORAGE

FORMAT = 1
MAX_PROGRAM_BYTES = 1 << 26
"""A program is at most this large: it holds no weights."""
_MAX_SIGNATURE_BYTES = 1 << 20


class TensorInfo(msgspec.Struct, frozen=True):
    """One input or output: dtype as in a schema, -1 for a side of any length."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Signature(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `signature/<log id>.json` says.

    Attributes:
        inputs, outputs: in order.
        program: its name, 32 hexadecimal digits; None: there is none.
        program_bytes: its size.
    """

    format: int
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    program: str | None = None
    program_bytes: int = 0


class _FormatOnly(msgspec.Struct):
    format: int


def write_signature(
    log: UpdateLog, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], program: bytes
) -> Signature:
    """Records a program and what it takes and gives, in the place of what was recorded before.

    Raises:
        ProgramRefused: it is too large. LogUnavailable: the store failed; call it again. LogNotFound: no log here.
    """
    if len(program) > MAX_PROGRAM_BYTES:
        raise ProgramRefused("the program", f"it takes {len(program)} bytes, {MAX_PROGRAM_BYTES} at most")
    digest = _digest(program)
    if not log.store.create(_program_name(digest), program) and log.store.read(_program_name(digest)) != program:
        # What is there was torn or damaged: nobody can use it, for its name is its checksum.
        log.store.replace(_program_name(digest), program)
    signature = Signature(FORMAT, tuple(inputs), tuple(outputs), digest, len(program))
    log.store.replace(_signature_name(log), msgspec.json.encode(signature))
    return signature


def forget_program(log: UpdateLog) -> None:
    """Takes a recorded program back, where there is one: it is not what the model computes now. As `write_signature`.

    The program's object stays, for a reader may be about to read it.
    """
    name = _signature_name(log)
    if log.store.read(name) is not None:
        log.store.replace(name, msgspec.json.encode(Signature(FORMAT)))


def read_signature(log: UpdateLog) -> Signature | None:
    """What the log says of its model's inputs, outputs and program; None: nothing.

    Raises:
        ProgramRefused: it cannot be read. UnsupportedFormat: a newer release wrote it. LogNotFound, LogUnavailable.
    """
    name = _signature_name(log)
    data = _read(log, name, _MAX_SIGNATURE_BYTES)
    if data is None:
        return None
    try:
        found = msgspec.json.decode(data, type=_FormatOnly).format
        if found > FORMAT:
            raise UnsupportedFormat(name, found, FORMAT)
        signature = msgspec.json.decode(data, type=Signature)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProgramRefused(name, f"it is damaged: {error}") from error
    tensors = [*signature.inputs, *signature.outputs]
    known = all(each.dtype in STORAGE and all(side >= -1 for side in each.shape) for each in tensors)
    program = signature.program
    if signature.format != FORMAT or not known or not (program is None or re.fullmatch(r"[0-9a-f]{32}", program)):
        raise ProgramRefused(name, "it says what no writer writes")
    return signature


def read_program(log: UpdateLog, signature: Signature) -> bytes:
    """The bytes of the program that a signature names, as they were written.

    Raises:
        ProgramRefused: it is missing, damaged or too large, or there is none. LogUnavailable.
    """
    name = _program_name(signature.program or "")
    data = _read(log, name, min(signature.program_bytes, MAX_PROGRAM_BYTES))
    if data is None:
        raise ProgramRefused(name, "the signature names it, and it is missing")
    if len(data) != signature.program_bytes or _digest(data) != signature.program:
        raise ProgramRefused(name, f"it is damaged: {len(data)} bytes whose checksum is {_digest(data)}")
    return data


def _read(log: UpdateLog, name: str, most: int) -> bytes | None:
    """All of an object, or so much of it that the reader sees that it is too large."""
    chunks = log.store.stream(name)
    if chunks is None:
        return None
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > most:
            raise ProgramRefused(name, f"it is larger than {most} bytes")
    return bytes(data)


def _digest(program: bytes) -> str:
    return hashlib.sha256(program).hexdigest()[:32]


def _program_name(digest: str) -> str:
    return f"programs/{digest}.json"


def _signature_name(log: UpdateLog) -> str:
    return f"signature/{log.id}.json"
