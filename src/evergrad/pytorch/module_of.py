"""The module of a log's model, as the log itself says it."""

from __future__ import annotations

from torch import nn

from evergrad.config import import_object
from evergrad.errors import FactoryNotTrusted, ModuleUnknown
from evergrad.log import UpdateLog, open_log
from evergrad.log.signature import Signature, read_program, read_signature
from evergrad.pytorch.bridge import schema_of
from evergrad.pytorch.program import load_program


def module_of(log: str | UpdateLog, *, trust_factory: bool = False) -> nn.Module:
    """A module of a log's model, for `attach` or a server: by the log's program, which needs none of the model's code.

    Its weights are noughts (a factory's: its own) until something keeps it fresh. A program's module is for inference:
    it computes what the recorded model does in evaluation mode. On the CPU its answers are the recorded model's bit for
    bit, but where that takes shortcuts that are not traced, such as a transformer's fast path.

    Args:
        log: the log, or its address. A log that has gone on with another structure: the newest one.
        trust_factory: where there is no program, follow the import path that the log names. That runs code which
            whoever can write the log has chosen.

    Raises:
        ModuleUnknown: it does not say. FactoryNotTrusted: it says so by an import path alone.
        ProgramRefused: the program is missing, damaged, or asks for what programs may not do, or this torch cannot.
        SchemaMismatch: it is one of another model. UnsupportedFormat: a newer release wrote it.
        ConfigError: the import path leads nowhere. LogNotFound, LogUnavailable.

    Example:
        >>> import evergrad, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> publisher = evergrad.Publisher(model, torch.optim.SGD(model.parameters(), lr=0.1), "memory:module_of")
        >>> publisher.record(torch.ones(4, 2))
        True
        >>> served = module_of("memory:module_of")
        >>> with evergrad.attach(served, "memory:module_of") as attached, attached.pin():
        ...     print(torch.equal(served(torch.ones(3, 2)), model(torch.ones(3, 2))))
        True
        >>> publisher.detach()
    """
    opened = log if isinstance(log, UpdateLog) else open_log(log)
    return module_by(opened, read_signature(opened), trust_factory=trust_factory)


def module_by(log: UpdateLog, signature: Signature | None, *, trust_factory: bool = False) -> nn.Module:
    """As `module_of`, for who has read the log's signature already."""
    if signature is not None and signature.program is not None:
        data = read_program(log, signature)
        return load_program(data, log.schema, f"programs/{signature.program}.json")
    if log.model is None:
        raise ModuleUnknown(log.url)
    if not trust_factory:
        raise FactoryNotTrusted(log.url, log.model)
    module: nn.Module = import_object(log.model, "model")()
    log.schema.require(schema_of(module))
    return module
