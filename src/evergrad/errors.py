"""Every exception that Evergrad raises on purpose.

```
EvergradError
├── ConfigError                  a setting is unknown, missing or out of range
├── MissingDependency            an optional package is needed and absent
├── ScoreMismatch                outputs and labels that cannot be scored against each other
├── JoinMismatch                 predictions or labels that cannot be taken in by a join
├── RequestNotHeld               labels of requests that nobody answered, or whose inputs are gone
├── SchemaMismatch               two models (or a model and a log) differ in a tensor
├── LogError
│   ├── LogNotFound              nothing is at that place
│   ├── LogUnavailable           the store refused, or could not be reached or read
│   ├── ReadOnlyLog              this kind of place can only be read
│   ├── WriterConflict           somebody else wrote that version
│   ├── VersionNotInLog          retention has removed that version, or nobody wrote it yet
│   ├── CorruptRecord            bytes that cannot be what they claim to be
│   ├── UnsupportedFormat        written by a format that this release cannot read
│   ├── ModuleUnknown            the log does not say how to build its module
│   ├── FactoryNotTrusted        it says so by code of its own alone, which nobody allowed to run
│   └── ProgramRefused           it says so by a program that cannot be used
├── ReplicaError
│   ├── NotSynced                the replica holds no version yet
│   ├── BaseMismatch             the update starts from another version
│   ├── DigestMismatch           the state is not the one that the publisher had
│   └── VersionNotHeld           the undo ring does not reach back so far
├── TrainingError
│   ├── NonFiniteLoss            the loss is NaN or infinite
│   ├── LossRefused              the loss cannot be computed for these labels
│   ├── NonFiniteWeights         a weight became NaN or infinite
│   ├── OptimizerAttached        the optimizer already feeds a publisher
│   ├── WeightsChanged           deployed weights were written behind the publisher's back
│   └── CheckpointDamaged        there are checkpoints, and none can be read
├── HistoryError
│   ├── HistoryMismatch          a batch does not fit the history's columns
│   ├── HistoryDamaged           the files hold less than the commit record says
│   ├── HistoryUnavailable       the disk refused, or it is closed or open to read; what it holds is unchanged
│   ├── HistoryLocked            somebody else is writing to it
│   └── NotInHistory             retention has removed that, or it has not arrived yet
└── ServerError                  a model server did not start, or does not answer
```

Each error carries its facts as attributes, says what was found against what was expected, and what to do next.
Attributes are the constructor's arguments, in order, so every error survives a trip between processes.
"""

from __future__ import annotations


class EvergradError(Exception):
    """Root of all errors of this library."""


class ConfigError(EvergradError):
    """A setting is unknown, missing or out of range."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key, self.problem = key, problem

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}"


class MissingDependency(EvergradError):
    """An optional package is needed and absent."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, extra)
        self.package, self.extra = package, extra

    def __str__(self) -> str:
        return f"this needs the package {self.package!r}; install it with: pip install 'evergrad[{self.extra}]'"


class ScoreMismatch(EvergradError):
    """Outputs and labels that cannot be scored against each other."""

    def __init__(self, score: str, expected: str, found: str) -> None:
        super().__init__(score, expected, found)
        self.score, self.expected, self.found = score, expected, found

    def __str__(self) -> str:
        return (
            f"{self.score}: expected {self.expected}, found {self.found}; "
            "nothing of this batch was scored: fix the stream or the model's outputs, or choose another score"
        )


class JoinMismatch(EvergradError):
    """Predictions or labels that cannot be taken in by a join."""

    def __init__(self, part: str, expected: str, found: str) -> None:
        super().__init__(part, expected, found)
        self.part, self.expected, self.found = part, expected, found

    def __str__(self) -> str:
        return (
            f"{self.part}: expected {self.expected}, found {self.found}; "
            "none of the call was taken in: fix what is told, or start a new join where inputs or outputs have changed"
        )


class RequestNotHeld(EvergradError):
    """Labels of requests that nobody answered, or whose inputs are gone."""

    def __init__(self, request: str, unknown: int, told: int) -> None:
        super().__init__(request, unknown, told)
        self.request, self.unknown, self.told = request, unknown, told

    def __str__(self) -> str:
        return (
            f"{self.unknown} of {self.told} requests wait for no labels here, the first is {self.request!r}: never "
            "answered, or too long ago; nothing was taken in: leave them out, or send their inputs along as examples"
        )


class SchemaMismatch(EvergradError):
    """Two models, or a model and a log, differ in a tensor."""

    def __init__(
        self,
        tensor: str,
        expected: str,
        found: str,
        advice: str = "use the model that this log was made for, or give this model a log of its own",
    ) -> None:
        super().__init__(tensor, expected, found, advice)
        self.tensor, self.expected, self.found, self.advice = tensor, expected, found, advice

    def __str__(self) -> str:
        return f"tensor {self.tensor!r}: expected {self.expected}, found {self.found}; {self.advice}"


class LogError(EvergradError):
    """Something is wrong with an update log."""


class LogNotFound(LogError):
    """Nothing is at that place."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url

    def __str__(self) -> str:
        return f"no update log at {self.url}; check the path, or start a publisher there first"


class LogUnavailable(LogError):
    """The store refused, or could not be reached or read."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        return (
            f"the log at {self.url} cannot be used: {self.reason}; check that it exists, its permissions and its disk"
        )


class ReadOnlyLog(LogError):
    """This kind of place can only be read."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url

    def __str__(self) -> str:
        return (
            f"the log at {self.url} can only be read, and not listed: give a publisher the place behind it "
            "(file:, s3:, gs: or az:), and give this URL to replicas"
        )


class WriterConflict(LogError):
    """Somebody else wrote that version: only one publisher may write to a log at a time."""

    def __init__(self, url: str, version: int, writer: str) -> None:
        super().__init__(url, version, writer)
        self.url, self.version, self.writer = url, version, writer

    def __str__(self) -> str:
        return (
            f"version {self.version} of the log at {self.url} was already written by {self.writer}; stop one of the "
            "two publishers, then open a new Publisher to continue from the log's head, or use another log"
        )


class VersionNotInLog(LogError):
    """Retention has removed that version, or nobody wrote it yet."""

    def __init__(self, url: str, version: int, held: str) -> None:
        super().__init__(url, version, held)
        self.url, self.version, self.held = url, version, held

    def __str__(self) -> str:
        return f"version {self.version} is not in the log at {self.url}, which holds {self.held}; choose one of those"


class CorruptRecord(LogError):
    """Bytes that cannot be what they claim to be."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name} is damaged: {self.reason}; it was not applied, and readers resume from the next snapshot"


class UnsupportedFormat(LogError):
    """Written by a format that this release cannot read."""

    def __init__(self, name: str, found: int, supported: int) -> None:
        super().__init__(name, found, supported)
        self.name, self.found, self.supported = name, found, supported

    def __str__(self) -> str:
        return f"{self.name} has format {self.found}, this release reads up to {self.supported}; upgrade evergrad here"


class ModuleUnknown(LogError):
    """The log does not say how to build its module."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url

    def __str__(self) -> str:
        return (
            f"the log at {self.url} does not say how to build its module; name it (evergrad serve --model "
            "package.module:callable), or let the publisher record it: evergrad run does with its first batch, "
            "Publisher.record(x) does elsewhere"
        )


class FactoryNotTrusted(LogError):
    """The log says how to build its module by an import path alone, and nobody allowed to follow it."""

    def __init__(self, url: str, factory: str) -> None:
        super().__init__(url, factory)
        self.url, self.factory = url, factory

    def __str__(self) -> str:
        return (
            f"the log at {self.url} holds no program, only the import path {self.factory!r}, which would run code that "
            "whoever writes the log has chosen; name it yourself (evergrad serve --model), or allow what the log says "
            "(--trust-factory)"
        )


class ProgramRefused(LogError):
    """The log says how to build its module by a program that cannot be used."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return (
            f"{self.name} cannot be used: {self.reason}; nothing of it was run: name the module instead (evergrad "
            "serve --model package.module:callable), or let the publisher record it again"
        )


class ReplicaError(EvergradError):
    """A replica cannot do what was asked."""


class NotSynced(ReplicaError):
    """The replica holds no version yet."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url

    def __str__(self) -> str:
        return f"the replica of {self.url} holds no version yet; call sync() first"


class BaseMismatch(ReplicaError):
    """The update starts from another version, or belongs to another model."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(expected, found)
        self.expected, self.found = expected, found

    def __str__(self) -> str:
        return f"the update applies to {self.found}, this state is {self.expected}; resynchronise from a snapshot"


class DigestMismatch(ReplicaError):
    """The state is not the one that the publisher had."""

    def __init__(self, version: int, expected: int, found: int) -> None:
        super().__init__(version, expected, found)
        self.version, self.expected, self.found = version, expected, found

    def __str__(self) -> str:
        return (
            f"version {self.version} should have digest {self.expected:016x}, this state has {self.found:016x}; "
            "the last good version is kept until a snapshot heals it"
        )


class VersionNotHeld(ReplicaError):
    """The undo ring does not reach back so far."""

    def __init__(self, version: int, held: list[int]) -> None:
        super().__init__(version, held)
        self.version, self.held = version, held

    def __str__(self) -> str:
        return (
            f"version {self.version} is not held, only {self.held[0]} to {self.held[-1]}; give the replica more "
            "undo_bytes, or take the whole log back with: evergrad log rollback"
        )


class TrainingError(EvergradError):
    """A training step cannot be taken or published."""


class NonFiniteLoss(TrainingError):
    """The loss is NaN or infinite."""

    def __init__(self, step: int, value: float) -> None:
        super().__init__(step, value)
        self.step, self.value = step, value

    def __str__(self) -> str:
        return (
            f"the loss of step {self.step} is {self.value}; no step was taken and nothing was published: "
            "look at the newest examples, the learning rate, or clip the gradients"
        )


class LossRefused(TrainingError):
    """The loss cannot be computed for these labels."""

    def __init__(self, outputs: str, labels: str, reason: str) -> None:
        super().__init__(outputs, labels, reason)
        self.outputs, self.labels, self.reason = outputs, labels, reason

    def __str__(self) -> str:
        return (
            f"the loss refuses outputs {self.outputs} and labels {self.labels}: {self.reason}; "
            "look for labels out of range, or of another dtype or shape than the loss takes"
        )


class NonFiniteWeights(TrainingError):
    """A weight became NaN or infinite."""

    def __init__(self, tensor: str, step: int) -> None:
        super().__init__(tensor, step)
        self.tensor, self.step = tensor, step

    def __str__(self) -> str:
        return (
            f"step {self.step} left NaN or infinity in {self.tensor!r}; deployed weights and log are unchanged: "
            "restore the model from the log, and lower the learning rate or clip the gradients"
        )


class OptimizerAttached(TrainingError):
    """The optimizer already feeds a publisher."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url

    def __str__(self) -> str:
        return f"this optimizer already feeds the publisher of {self.url}; close() or detach() that one first"


class WeightsChanged(TrainingError):
    """Deployed weights were written behind the publisher's back."""

    def __init__(self, tensor: str) -> None:
        super().__init__(tensor)
        self.tensor = tensor

    def __str__(self) -> str:
        return (
            f"{self.tensor!r} was changed in place outside optimizer.step(), where the deployed weights lie; "
            "open a new Publisher, and make such changes inside `with publisher.master():`"
        )


class CheckpointDamaged(TrainingError):
    """There are checkpoints, and none can be read."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return (
            f"no checkpoint in {self.path} can be read: {self.reason}; restore one from a copy, or remove the folder "
            "to begin with the log's newest weights and a new optimizer"
        )


class HistoryError(EvergradError):
    """The history cannot be read or written."""


class HistoryMismatch(HistoryError):
    """A batch does not fit the history's columns."""

    def __init__(self, column: str, expected: str, found: str) -> None:
        super().__init__(column, expected, found)
        self.column, self.expected, self.found = column, expected, found

    def __str__(self) -> str:
        return (
            f"column {self.column!r}: expected {self.expected}, found {self.found}; "
            "nothing was appended: fix the stream, or start a new history"
        )


class HistoryDamaged(HistoryError):
    """The files hold less than the commit record says."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"the history at {self.path} cannot be used: {self.reason}; restore it, or start a new one elsewhere"


class HistoryUnavailable(HistoryError):
    """The disk refused, or the history is closed or open to read; what it holds is unchanged."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return (
            f"the history at {self.path} refused: {self.reason}; nothing in it changed, try again when that is mended"
        )


class HistoryLocked(HistoryError):
    """Somebody else is writing to it: only one at a time may."""

    def __init__(self, path: str, process: int) -> None:
        super().__init__(path, process)
        self.path, self.process = path, process

    def __str__(self) -> str:
        return (
            f"the history at {self.path} is written by process {self.process}; close it there first, "
            "or open it here with read_only=True"
        )


class NotInHistory(HistoryError):
    """Retention has removed that, or it has not arrived yet."""

    def __init__(self, what: str, held: str) -> None:
        super().__init__(what, held)
        self.what, self.held = what, held

    def __str__(self) -> str:
        return f"{self.what} is not in the history, which holds {self.held}; choose one of those"


class ServerError(EvergradError):
    """A model server did not start, or does not answer."""

    def __init__(self, server: str, problem: str) -> None:
        super().__init__(server, problem)
        self.server, self.problem = server, problem

    def __str__(self) -> str:
        return f"{self.server}: {self.problem}"
