"""The gRPC face of a served model: the Open Inference Protocol's service, by KServe's messages.

Models are not loaded or unloaded by request: those calls stay UNIMPLEMENTED.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc

from evergrad.errors import ServerError
from evergrad.serve.access import Tls, Token
from evergrad.serve.info import one_line
from evergrad.serve.model import ModelPlane, code_of
from evergrad.serve.sdk import InferInput, InferRequest, InvalidInput, RequestedOutput, messages, services
from evergrad.serve.tensors import Array, from_bytes, from_list

logger = logging.getLogger(__name__)
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip
_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    503: grpc.StatusCode.UNAVAILABLE,
}
_OPEN = ("ServerLive", "ServerReady")


class RpcServer:
    """Serves the plane over gRPC, in the event loop that starts it.

    Args:
        port: 0 takes any free one.
        max_bytes: of one message.
        shared: whether other processes listen on the same port too.
    """

    def __init__(
        self,
        plane: ModelPlane,
        host: str,
        port: int,
        *,
        max_bytes: int,
        token: Token | None = None,
        tls: Tls | None = None,
        shared: bool = False,
    ) -> None:
        self._plane, self._address, self._tls, self._token = plane, f"{host}:{port}", tls, token
        self._options = (
            ("grpc.max_receive_message_length", max_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(shared)),
        )
        self._server: Any = None
        self.port = port

    async def start(self) -> None:
        """Accepts calls. Raises ServerError: the address cannot be used."""
        server = grpc.aio.server(options=self._options)
        services.add_GRPCInferenceServiceServicer_to_server(_Service(self._plane, self._token), server)
        try:
            if self._tls is None:
                self.port = server.add_insecure_port(self._address)
            else:
                pair = (self._tls.key.read_bytes(), self._tls.cert.read_bytes())
                self.port = server.add_secure_port(self._address, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:
            raise ServerError(self._address, "cannot listen there; choose another gRPC port") from error
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Answers the calls under way, for five seconds at most."""
        if self._server is not None:
            await self._server.stop(5)


class _Service(services.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, plane: ModelPlane, token: Token | None) -> None:
        self._plane, self._token = plane, token

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        async def call() -> Any:
            return messages.ServerLiveResponse(live=True)

        return await self._guarded(context, "ServerLive", call)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        async def call() -> Any:
            return messages.ServerReadyResponse(ready=await self._plane.ready())

        return await self._guarded(context, "ServerReady", call)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        async def call() -> Any:
            return messages.ModelReadyResponse(ready=await self._plane.model_ready(request.name, request.version))

        return await self._guarded(context, "ModelReady", call)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        async def call() -> Any:
            return messages.ServerMetadataResponse(**self._plane.metadata())

        return await self._guarded(context, "ServerMetadata", call)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        async def call() -> Any:
            return messages.ModelMetadataResponse(**await self._plane.model_metadata(request.name, request.version))

        return await self._guarded(context, "ModelMetadata", call)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        async def call() -> Any:
            found = await self._plane.answer(request.model_name, request.model_version, lambda: decode_message(request))
            facts = found.parameters.items()
            # The protocol's parameters are texts, booleans and whole numbers.
            found.parameters = {key: repr(value) if isinstance(value, float) else value for key, value in facts}
            return found.to_grpc()

        return await self._guarded(context, "ModelInfer", call)

    async def _guarded(self, context: Any, method: str, call: Callable[[], Awaitable[Any]]) -> Any:
        if self._token is not None and method not in _OPEN:
            headers = dict(context.invocation_metadata() or ())
            if not self._token.opens(headers.get("authorization")):
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this server asks for a bearer token")
        try:
            return await call()
        except Exception as error:
            code = code_of(error)
            if code == 500:
                logger.exception("%s failed", method)
                problem = f"{type(error).__name__} in the server; its log says more"
            else:
                problem = one_line(error)
            status = _STATUS.get(code, grpc.StatusCode.INTERNAL)
        return await context.abort(status, problem)


def decode_message(request: Any) -> InferRequest:
    """The request in a message, checked whole.

    Raises:
        InvalidInput: its tensors are not what they claim to be.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidInput(f"{len(request.inputs)} inputs, and {len(raw)} raw_input_contents")
    arrays = [_array(tensor, raw[number] if raw else None) for number, tensor in enumerate(request.inputs)]
    inputs = [
        InferInput(tensor.name, list(array.shape), tensor.datatype, array)
        for tensor, array in zip(request.inputs, arrays, strict=True)
    ]
    outputs = [RequestedOutput(output.name) for output in request.outputs]
    return InferRequest(request.model_name, inputs, request_id=request.id or None, request_outputs=outputs or None)


def _array(tensor: Any, raw: bytes | None) -> Array:
    shape = list(tensor.shape)
    try:
        if raw is not None:
            if tensor.HasField("contents"):
                raise ValueError("it has contents beside raw_input_contents")
            return from_bytes(raw, tensor.datatype, shape)
        field = _CONTENTS.get(tensor.datatype)
        values: Iterable[Any] = getattr(tensor.contents, field) if field else ()
        return from_list(list(values), tensor.datatype, shape)
    except ValueError as error:
        raise InvalidInput(f"input {tensor.name!r}: {error}") from None
