"""The HTTP face of a served model: which routes there are, and what an error looks like to a client.

    GET  /v2                               GET  /v2/models/{name}                 POST /v2/models/{name}/infer
    GET  /v2/health/live                   GET  /v2/models/{name}/ready           GET  /metrics
    GET  /v2/health/ready                  GET  /v2/models/{name}/weights_info
    GET  /v2/models

KServe's routes to load and unload models are left out: anybody who reaches the port could stop the serving.
Every error is `{"error": "one line"}`; what went wrong inside is told in the server's log alone.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException

from evergrad.errors import NotSynced
from evergrad.serve.info import metrics_registry, one_line, weights_info
from evergrad.serve.model import ModelPlane, ServedModel
from evergrad.serve.sdk import (
    InferenceResponse,
    InvalidInput,
    ListModelsResponse,
    ModelMetadataResponse,
    ModelNotFound,
    ModelNotReady,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerNotReady,
    ServerReadyResponse,
    V2Endpoints,
)
from evergrad.serve.servable import Servable

logger = logging.getLogger(__name__)
MAX_REQUEST_BYTES = 1 << 28
_STATUS: dict[type[Exception], int] = {
    InvalidInput: 400,
    ModelNotFound: 404,
    ModelNotReady: 503,
    ServerNotReady: 503,
    NotSynced: 503,
}


def make_app(model: ServedModel, servable: Servable) -> FastAPI:
    """The application that serves one model."""
    app = FastAPI(title="Evergrad model server", docs_url=None, redoc_url=None)
    plane = ModelPlane(model)
    app.include_router(_protocol_routes(plane))
    app.include_router(_own_routes(plane, servable))
    for kind in (*_STATUS, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)
    return app


def _protocol_routes(plane: ModelPlane) -> APIRouter:
    kserve, router = V2Endpoints(plane), APIRouter(prefix="/v2", tags=["V2"])

    async def infer(request: Request, model_name: str) -> Response:
        plane.get_model_from_registry(model_name)
        body = await _read_body(request)
        asked = plane.decode_inference_request(body, dict(request.headers), model_name)
        found, headers = await plane.infer(model_name, asked)
        answer, more = plane.encode(model_name, found, {}, {})
        if isinstance(answer, bytes):
            return Response(answer, 200, {**headers, **more}, "application/octet-stream")
        return _json(answer)

    for path, endpoint, response_model in (
        ("", kserve.metadata, ServerMetadataResponse),
        ("/health/live", kserve.live, ServerLiveResponse),
        ("/health/ready", kserve.ready, ServerReadyResponse),
        ("/models", kserve.models, ListModelsResponse),
        ("/models/{model_name}", _only_name(kserve.model_metadata), ModelMetadataResponse),
        ("/models/{model_name}/ready", _only_name(kserve.model_ready), ModelReadyResponse),
    ):
        router.add_api_route(path, endpoint, response_model=response_model, methods=["GET"])
    router.add_api_route(
        "/models/{model_name}/infer",
        infer,
        methods=["POST"],
        responses={200: {"model": InferenceResponse}},
        openapi_extra={"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}},
    )
    return router


def _only_name(endpoint: Any) -> Any:
    # KServe's own also take a version, as a query where the path has none, and fail on it.
    async def of_model(model_name: str) -> Any:
        return await endpoint(model_name)

    return of_model


def _own_routes(plane: ModelPlane, servable: Servable) -> APIRouter:
    router, registry = APIRouter(), metrics_registry(servable.replica)

    async def info(model_name: str) -> Response:
        plane.get_model_from_registry(model_name)
        return _json(await run_in_threadpool(weights_info, servable.replica))

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept") or "")
        return Response(await run_in_threadpool(encode, registry), media_type=content_type)

    router.add_api_route("/v2/models/{model_name}/weights_info", info, methods=["GET"])
    router.add_api_route("/metrics", metrics, methods=["GET"])
    return router


async def _read_body(request: Request) -> bytes:
    body, said = bytearray(), int(request.headers.get("content-length", 0))
    async for chunk in request.stream():
        body += chunk
        if max(said, len(body)) > MAX_REQUEST_BYTES:
            raise HTTPException(413, f"a request has at most {MAX_REQUEST_BYTES} bytes")
    return bytes(body)


def _json(content: Any, status: int = 200) -> Response:
    # msgspec writes NaN and infinity, which JSON does not have, as null.
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _json({"error": one_line(error.detail)}, error.status_code)
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
    if status == 500:
        return _json({"error": f"{type(error).__name__} in the server; its log says more"}, status)
    logger.debug("%s %s: %d, %s", request.method, request.url.path, status, error)
    return _json({"error": one_line(error)}, status)
