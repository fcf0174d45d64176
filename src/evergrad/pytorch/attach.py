"""A module that stays fresh while it is in use: each update is written into its own tensors, where it touched them.

    replica ──exclusive lock──> touched positions ──> the same positions of the module's tensors

The module keeps its storage, so whatever looked at its tensors before (an optimizer, a compiled function, a captured
pointer) looks at the newest weights after. The price is a second copy of the model beside the replica's;
`bridge.ReplicaModule` has none, and replaces the module's storage instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import nn

from evergrad.errors import LogNotFound, LogUnavailable, NotSynced
from evergrad.log import UpdateLog
from evergrad.pytorch.bridge import as_numpy, module_tensors, require_cpu, schema_of
from evergrad.replica import Applied, Replica
from evergrad.schema import Schema


@dataclass(frozen=True, slots=True)
class _Target:
    """One tensor of the module, as an array over its memory in the tensor's own strides, and its place in its group."""

    array: npt.NDArray[Any]
    start: int
    stop: int

    def write(self, positions: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
        """Writes `values` at `positions` of the group's flat array."""
        at = positions.astype(np.int64, copy=False) - self.start
        if self.array.flags.c_contiguous:
            self.array.reshape(-1)[at] = values
        else:  # positions count in logical order, whatever the strides are
            self.array[np.unravel_index(at, self.array.shape)] = values

    def fill(self, group: npt.NDArray[Any]) -> None:
        self.array[...] = group[self.start : self.stop].reshape(self.array.shape)


class Attached:
    """What `attach` gives: a module that follows a replica, until `close`. Also a context manager.

    Attributes:
        module, replica: the two that belong together.
    """

    def __init__(self, module: nn.Module, replica: Replica, *, owned: bool) -> None:
        self.module, self.replica = module, replica
        self._owned = owned
        self._error: Exception | None = None
        self._targets: list[list[_Target]] = []  # until the first version
        self._detach = replica.on_update(self._on_update)  # before the copy, or an update between the two is lost
        with suppress(NotSynced), replica.pin():
            self._copy_all()

    @property
    def version(self) -> int:
        """The version that the module holds."""
        with self.pin() as version:
            return version

    @property
    def digest(self) -> int:
        """The digest of the module's weights, a 64-bit number."""
        with self.pin():
            return self.replica.digest

    def staleness_s(self) -> float:
        """Seconds since the arrival of the newest example that the weights learned from; infinite: none is known."""
        return self.replica.staleness_s()

    @contextmanager
    def pin(self) -> Iterator[int]:
        """Holds one version still in the module: nothing is written into it until the block ends. Gives that version.

        Any number of threads may pin at once, and inside another pin.

        Raises:
            NotSynced: no version yet; the module's weights are its own.
            SchemaMismatch: the log, which came later than this, is of another model. Nothing was written.
            Exception: what kept the newest update from being written (a tensor was moved or resized); the module may
                hold a part of it, until the next update writes everything.
        """
        with self.replica.pin() as version:
            if self._error is not None:
                raise self._error
            yield version

    def close(self) -> None:
        """Ends it: the module keeps the weights that it holds. A replica that `attach` made is closed too."""
        if self._owned:
            self.replica.close()
        detach, self._detach = self._detach, _nothing
        with self.replica.pin():  # or an update could still be on its way in
            detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _on_update(self, applied: Applied) -> None:
        whole = applied.touched is None or self._error is not None
        try:
            if whole:
                self._copy_all()
            else:
                for number, positions in applied.touched or ():
                    self._write(number, positions)
        except Exception as error:
            self._error = error
            raise
        self._error = None

    def _copy_all(self) -> None:
        self._targets = self._targets or _targets(self.module, self.replica.schema)
        for targets, array in zip(self._targets, self.replica.state.arrays, strict=True):
            for target in targets:
                target.fill(array)

    def _write(self, number: int, positions: npt.NDArray[Any]) -> None:
        targets, values = self._targets[number], self.replica.state.arrays[number][positions]
        cuts = np.searchsorted(positions, [target.stop for target in targets]).tolist()
        for target, first, last in zip(targets, [0, *cuts], cuts, strict=False):
            if first < last:
                target.write(positions[first:last], values[first:last])


def attach(
    module: nn.Module, log_or_replica: str | UpdateLog | Replica, *, follow: bool = True, must_exist: bool = True
) -> Attached:
    """Keeps `module` fresh in place: the newest version now, and each later update as it arrives.

    The module's parameters and buffers keep their memory. Each update writes only the elements that it touched, whole
    updates at a time, under the replica's exclusive lock: a forward pass inside `with attached.pin():` never sees a
    mix, and one outside of it may. A rollback of the replica is followed like an update.

    It works on modules in use: before or after `torch.compile` (which reads the same memory, and compiles nothing
    anew), with tied tensors, any memory format, and modules made in inference mode. The writes pass by autograd: they
    need no `no_grad`, and they do not mark a tensor as modified, so a backward pass belongs inside the pin of its
    forward pass. The tensors followed are those that the module has now; tensors put in their place later are not.
    Modules on other devices than the CPU are refused for now.

    Args:
        module: of the log's model. It is not put into evaluation mode.
        log_or_replica: a log, or its address, for a replica of this module's own, which `close` closes; or a replica
            that others use too, which stays theirs to close.
        follow: whether to let the replica follow its log in the background; otherwise `attached.replica.sync()` moves
            the module.
        must_exist: whether the log must hold a version now. Otherwise a server may start before its trainer: until
            there is a version, `pin` raises NotSynced.

    Raises:
        SchemaMismatch: the log is of another model, or the module is not on the CPU. Nothing was written.
        LogNotFound, LogUnavailable, NotSynced: there is no version yet, where it must exist.

    Example:
        >>> import evergrad, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> publisher = evergrad.Publisher(model, torch.optim.SGD(model.parameters(), lr=0.1), "memory:attach")
        >>> served = torch.nn.Linear(2, 1)
        >>> with evergrad.attach(served, "memory:attach") as attached, attached.pin() as version:
        ...     print(version, torch.equal(served.weight, model.weight))
        0 True
        >>> publisher.detach()
    """
    owned = not isinstance(log_or_replica, Replica)
    require_cpu(module)
    replica = Replica(log_or_replica) if not isinstance(log_or_replica, Replica) else log_or_replica
    try:
        replica.schema.require(schema_of(module))
        if replica.stats().version is None:
            replica.sync()
    except (LogNotFound, LogUnavailable, NotSynced):
        if must_exist:
            raise
    attached = Attached(module, replica, owned=owned)
    if follow:
        replica.follow()
    return attached


def _targets(module: nn.Module, schema: Schema) -> list[list[_Target]]:
    """The module's tensors by group of the schema, each group's in the order of its flat array; or SchemaMismatch."""
    schema.require(schema_of(module))
    arrays = {found.name: as_numpy(found.tensor) for found in module_tensors(module)[0]}
    groups: list[list[_Target]] = []
    for group in schema.groups:
        specs = [spec for spec in schema.tensors if spec.dtype == group.dtype]
        starts = [spec.offset - group.start for spec in specs]
        groups.append([_Target(arrays[s.name], start, start + s.size) for s, start in zip(specs, starts, strict=True)])
    return groups


def _nothing() -> None:
    """In the place of what was ended already."""
