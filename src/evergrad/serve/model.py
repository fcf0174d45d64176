"""The served model, as KServe's SDK sees it: whole answers, each computed and described by one version.

Predictions run one after another in one worker thread: a prediction holds its version still, so two at once would wait
for each other anyway, and the event loop stays free for health, metrics and the bytes of other requests.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from evergrad.errors import NotSynced
from evergrad.serve.info import hex_digest, one_line
from evergrad.serve.request import decode_request
from evergrad.serve.sdk import (
    DataPlane,
    InferOutput,
    InferRequest,
    InferResponse,
    InvalidInput,
    Model,
    ModelNotReady,
    ModelRepository,
)
from evergrad.serve.servable import Servable
from evergrad.serve.tensors import Array, datatype_of

logger = logging.getLogger(__name__)
INPUT, OUTPUT = "input-0", "output-0"


class ServedModel(Model):  # type: ignore[misc]
    """A servable under the name that its clients use."""

    def __init__(self, name: str, servable: Servable) -> None:
        super().__init__(name)
        self._servable = servable
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="evergrad-predict")

    @property
    def version(self) -> int | None:
        """The version served now; None: none yet. Waits for nothing."""
        try:
            return self._servable.replica.version
        except NotSynced:
            return None

    async def healthy(self) -> bool:
        """Whether there is a version to serve."""
        return self.version is not None

    def load(self) -> bool:
        """Refuses: what makes this model ready is the log's first version, not a request for it."""
        raise ModelNotReady(self.name, "The log's first version is not here yet.")

    def get_input_types(self) -> list[dict[str, Any]]:
        """A module does not say what it takes: one tensor, of any shape."""
        return [{"name": INPUT, "datatype": "FP32", "shape": [-1]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """As for inputs."""
        return [{"name": OUTPUT, "datatype": "FP32", "shape": [-1]}]

    async def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:  # noqa: ARG002
        """Answers one request.

        Raises:
            InvalidInput: the model cannot take its input.
        """
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._answer, payload)

    def _answer(self, request: InferRequest) -> InferResponse:
        if len(request.inputs) != 1:
            raise InvalidInput(f"this model takes one input tensor, found {len(request.inputs)}")
        x: Array = request.inputs[0].data
        replica = self._servable.replica
        with replica.pin():
            outputs, version = self._predict(x)
            facts: dict[str, Any] = {"version": version, "digest": hex_digest(replica.digest)}
            staleness_s = replica.staleness_s()
        if math.isfinite(staleness_s):
            facts["staleness_s"] = staleness_s
        return InferResponse(
            response_id=request.id or str(uuid.uuid4()),
            model_name=self.name,
            model_version=str(version),
            infer_outputs=[InferOutput(OUTPUT, list(outputs.shape), datatype_of(outputs), outputs)],
            parameters=facts,
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    def _predict(self, x: Array) -> tuple[Array, int]:
        try:
            outputs, version = self._servable.predict(x)
        except (RuntimeError, ValueError, IndexError) as error:
            problem = f"the model does not take {datatype_of(x)} {list(x.shape)}: {one_line(error)}"
            logger.warning("%s: %s", self.name, problem)
            raise InvalidInput(problem) from error
        return np.array(outputs), version  # a copy: outputs may be views of the weights

    def close(self) -> None:
        """Ends the worker after the prediction that it is at."""
        self._worker.shutdown(cancel_futures=True)


class ModelPlane(DataPlane):  # type: ignore[misc]
    """KServe's data plane of one served model: what REST, and later gRPC, ask."""

    def __init__(self, model: ServedModel) -> None:
        models = ModelRepository()
        models.update(model)
        super().__init__(models)
        self._model = model

    def metadata(self) -> dict[str, Any]:
        """The server's name, version and protocol extensions: models are not loaded or unloaded by request."""
        return {**super().metadata(), "extensions": ["binary_tensor_data"]}

    async def ready(self) -> bool:
        """Whether the model is."""
        return await self._model.healthy()

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """The model's tensors, and the one version that it serves now."""
        found = await super().model_metadata(model_name)
        version = self._model.version
        return {**found, "platform": "evergrad", "versions": [] if version is None else [str(version)]}

    def decode_inference_request(self, body: bytes, headers: dict[str, str], model_name: str) -> InferRequest:
        """The request in a body, checked whole; KServe's own decoder believes the sizes that it is told."""
        return decode_request(body, headers.get("inference-header-content-length"), model_name)
