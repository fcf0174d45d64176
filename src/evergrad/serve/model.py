"""The served model, as KServe's SDK sees it: whole answers, each computed and described by one version."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Callable
from typing import Any

from evergrad.errors import HistoryError, HistoryMismatch, NotSynced, RequestNotHeld, VersionNotHeld
from evergrad.serve.batch import Batching, Computed
from evergrad.serve.candidate import Trial
from evergrad.serve.feedback import Labelling, Taken
from evergrad.serve.info import hex_digest
from evergrad.serve.labels import Examples, Labels
from evergrad.serve.lane import Lane
from evergrad.serve.metrics import Metrics
from evergrad.serve.sdk import (
    DataPlane,
    InferOutput,
    InferRequest,
    InferResponse,
    InvalidInput,
    Model,
    ModelNotFound,
    ModelNotReady,
    ModelRepository,
)
from evergrad.serve.servable import Candidate, Servable, require_share
from evergrad.serve.signature import INPUT, OUTPUT, TensorType
from evergrad.serve.tensors import Array, datatype_of

logger = logging.getLogger(__name__)
STABLE, CANDIDATE = "stable", "candidate"
_TOLD_VERSIONS = 100
CODES: dict[type[Exception], int] = {  # the errors that are a request's fault, or a matter of time
    InvalidInput: 400,
    ModelNotFound: 404,
    VersionNotHeld: 404,
    HistoryMismatch: 400,
    RequestNotHeld: 404,
    HistoryError: 503,
    ModelNotReady: 503,
    NotSynced: 503,
}


def code_of(error: BaseException) -> int:
    """The HTTP status that tells an error."""
    return next((code for kind, code in CODES.items() if isinstance(error, kind)), 500)


class ServedModel(Model):  # type: ignore[misc]
    """A servable under the name that its clients use, and maybe a candidate beside it.

    Args:
        input_type: what it takes; None: not known, and shown by the first request that is answered.
        recorded: input and output, to tell where `input_type` does not.
        max_staleness_s: from where on it is not ready; None: never.
        labelling: takes labels of what it answers, where anybody does; it is closed with the model.
    """

    def __init__(
        self,
        name: str,
        servable: Servable,
        *,
        batching: Batching,
        candidate: Candidate | None = None,
        input_type: TensorType | None = None,
        recorded: tuple[TensorType, TensorType] | None = None,
        max_staleness_s: float | None = None,
        worker: int | None = None,
        labelling: Labelling | None = None,
    ) -> None:
        super().__init__(name)
        self.labelling = labelling
        self.metrics = Metrics(name, lambda: self.lanes, worker, labelling)
        self.stable = Lane(servable, STABLE, batching, self.metrics)
        self.trial: Trial | None = None
        if candidate is not None:
            self.trial = Trial(Lane(candidate.servable, CANDIDATE, batching, self.metrics), candidate, self.metrics)
        self._input, self._max_staleness_s = input_type, max_staleness_s
        self._shown = recorded if input_type is None else None

    @property
    def lanes(self) -> list[Lane]:
        """The served model's, and the candidate's where there is one."""
        return [self.stable] if self.trial is None else [self.stable, self.trial.lane]

    def follow(self) -> None:
        """Lets the replicas follow their logs."""
        for lane in self.lanes:
            lane.follow()

    async def healthy(self) -> bool:
        """Whether there is a version to serve."""
        return self.stable.version is not None

    def ready_to_serve(self) -> bool:
        """Whether there is a version, and it is not staler than allowed. A staleness that nobody knows is allowed."""
        if self.stable.version is None:
            return False
        staleness_s = self.stable.replica.staleness_s()
        return self._max_staleness_s is None or not self._max_staleness_s < staleness_s < math.inf

    def load(self) -> bool:
        """Refuses: what makes this model ready is the log's first version, not a request for it."""
        raise self.not_ready()

    def not_ready(self) -> ModelNotReady:
        """The error that says what it waits for."""
        if self.stable.version is not None:
            return ModelNotReady(self.name, "Its version is staler than it may be.")
        missing = self.stable.missing
        return ModelNotReady(self.name, f"Reason: {missing}" if missing else "The log's first version is not here yet.")

    async def tensor_types(self) -> tuple[list[TensorType], list[TensorType]]:
        """Inputs and outputs; none where nobody said what the model takes and nothing was answered yet."""
        self._look_up()
        if self._shown is None and self._input is not None and self.stable.version is not None:
            try:
                found = await asyncio.wrap_future(self.stable.submit(self._input.example()))
                self._shown = self._input, TensorType.of(OUTPUT, found.outputs)
            except InvalidInput as error:
                logger.warning("noughts of the declared input do not show the output: %s", error)
        if self._shown is None:
            return [] if self._input is None else [self._input], []
        return [self._shown[0]], [self._shown[1]]

    def _look_up(self) -> None:
        if self._shown is None and self._input is None:
            self._shown = self.stable.recorded

    async def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:  # noqa: ARG002
        """Answers one request.

        Raises:
            InvalidInput: the model cannot take its input.
            VersionNotHeld: the version asked for is not in the undo ring.
        """
        x, version = self._checked(payload), asked_version(payload.model_version)
        trial = self.trial
        to_trial = trial is not None and version is None and trial.answers(payload.id)
        lane = trial.lane if trial is not None and to_trial else self.stable
        computed = await asyncio.wrap_future(lane.submit(x, version))
        if trial is not None and not to_trial and version is None and trial is self.trial:
            trial.compare(payload.id, x, computed)
        self._look_up()
        if self._shown is None and self._input is None:
            self._shown = TensorType.of(INPUT, x), TensorType.of(OUTPUT, computed.outputs)
        response = self._response(payload, computed, lane.track)
        # An older version that was asked for by name says nothing about how well the model is served.
        labelling = self.labelling if version is None else None
        if labelling is not None and not labelling.served(response.id, x, computed.outputs):
            self.metrics.not_kept()
        return response

    async def take_feedback(self, found: Labels | Examples) -> Taken:
        """Takes in labels of requests, or examples, whose outputs the served model then computes.

        Raises:
            ModelNotFound: this server takes none. InvalidInput: the model cannot take the examples.
            RequestNotHeld, HistoryMismatch, HistoryError: see `Labelling`.
        """
        labelling = self.labelling
        if labelling is None:
            raise ModelNotFound(f"{self.name}'s feedback: the server was started without --feedback;")
        try:
            if isinstance(found, Labels):
                taken = await asyncio.to_thread(labelling.label, found.of)
            else:
                computed = await asyncio.wrap_future(self.stable.submit(found.x))
                taken = await asyncio.to_thread(labelling.example, found.x, found.y, computed.outputs)
        except Exception as error:
            self.metrics.refused(code_of(error), error.unknown if isinstance(error, RequestNotHeld) else 0)
            raise
        self.metrics.taken("joined" if isinstance(found, Labels) else "example", taken.joined, taken.duplicates)
        return taken

    def _checked(self, request: InferRequest) -> Array:
        if len(request.inputs) != 1:
            raise InvalidInput(f"this model takes one input tensor, found {len(request.inputs)}")
        (tensor,) = request.inputs
        problem = self._input and self._input.problem(tensor.name, tensor.data)
        if problem:
            raise InvalidInput(problem)
        for output in request.request_outputs or ():
            if output.name != OUTPUT:
                raise InvalidInput(f"this model's output is {OUTPUT!r}, found {output.name!r}")
        x: Array = tensor.data
        return x

    def _response(self, request: InferRequest, computed: Computed, track: str) -> InferResponse:
        facts: dict[str, Any] = {"version": computed.version, "digest": hex_digest(computed.digest)}
        if math.isfinite(computed.staleness_s):
            facts["staleness_s"] = computed.staleness_s
        if track != STABLE:
            facts["track"] = track
        outputs = computed.outputs
        return InferResponse(
            response_id=request.id or str(uuid.uuid4()),
            model_name=self.name,
            model_version=str(computed.version),
            infer_outputs=[InferOutput(OUTPUT, list(outputs.shape), datatype_of(outputs), outputs)],
            parameters=facts,
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    def set_share(self, share: float) -> None:
        """How much goes to the candidate. Raises ConfigError, ModelNotFound: there is none."""
        self._require_trial().share = require_share(share)

    def promote(self) -> Lane:
        """Puts the candidate in the served model's place; gives the lane to close, off the event loop.

        Raises:
            ModelNotFound: there is no candidate. NotSynced: it has no version yet.
        """
        trial = self._require_trial()
        if trial.lane.version is None:
            raise NotSynced(trial.lane.replica.log.url)
        old, self.stable, self.trial = self.stable, trial.lane, None
        self.stable.track, self._shown = STABLE, None
        return old

    def drop(self) -> Lane:
        """Ends the candidate; gives the lane to close. Raises ModelNotFound: there is none."""
        lane = self._require_trial().lane
        self.trial = None
        return lane

    def _require_trial(self) -> Trial:
        if self.trial is None:
            raise ModelNotFound(f"{self.name}'s candidate")
        return self.trial

    def close(self) -> None:
        """Answers what waits; ends threads and replicas."""
        for lane in self.lanes:
            lane.close()
        if self.labelling is not None:
            self.labelling.close()


def asked_version(text: str | None) -> int | None:
    """The version that a path or a gRPC field names; None: the newest. Raises ModelNotFound where it is no number."""
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise ModelNotFound(f"version {text[:40]!r}: a version is a number")
    return int(text)


class ModelPlane(DataPlane):  # type: ignore[misc]
    """KServe's data plane of one served model: what REST and gRPC ask."""

    def __init__(self, model: ServedModel) -> None:
        models = ModelRepository()
        models.update(model)
        super().__init__(models)
        self.model = model

    def metadata(self) -> dict[str, Any]:
        """The server's name, version and protocol extensions: models are not loaded or unloaded by request."""
        return {**super().metadata(), "extensions": ["binary_tensor_data"]}

    async def ready(self) -> bool:
        """Whether the model is."""
        return self.model.ready_to_serve()

    async def model_ready(self, model_name: str, version: str | None = None) -> bool:
        """Whether the model, or one version of it, can be asked. Raises ModelNotFound, VersionNotHeld."""
        await self._require(model_name, version)
        return self.model.ready_to_serve()

    async def model_metadata(self, model_name: str, version: str | None = None) -> dict[str, Any]:
        """The model's tensors, and the newest of the versions that can be asked for. Raises as `model_ready`."""
        held = await self._require(model_name, version)
        inputs, outputs = await self.model.tensor_types()
        return {
            "name": model_name,
            "versions": [str(each) for each in held[-_TOLD_VERSIONS:]],
            "platform": "evergrad",
            "inputs": [each.told() for each in inputs],
            "outputs": [each.told() for each in outputs],
        }

    def require(self, model_name: str) -> None:
        """Raises ModelNotFound where there is no such model."""
        self.get_model_from_registry(model_name)

    async def _require(self, model_name: str, version: str | None) -> list[int]:
        self.require(model_name)
        asked = asked_version(version)
        # In another thread: it waits for a batch of an older version that is being computed.
        held = await asyncio.to_thread(lambda: self.model.stable.versions)
        if asked is not None and not held:
            raise self.model.not_ready()
        if asked is not None and asked not in held:
            raise VersionNotHeld(asked, held)
        return held

    async def answer(self, model_name: str, version: str | None, decode: Callable[[], InferRequest]) -> InferResponse:
        """Answers a request, and counts it.

        Raises:
            InvalidInput, ModelNotFound, VersionNotHeld, ModelNotReady: it cannot be answered.
        """
        self.require(model_name)
        start, track = time.perf_counter(), STABLE
        code = 500
        try:
            request = decode()
            request.model_version = version
            response, _ = await self.infer(model_name, request)
            code, track = 200, response.parameters.get("track", STABLE)
            return response
        except Exception as error:
            code = code_of(error)
            raise
        finally:
            self.model.metrics.answered(track, code, time.perf_counter() - start)
