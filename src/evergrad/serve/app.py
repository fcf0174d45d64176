"""The HTTP face of a served model: which routes there are, and what an error looks like to a client.

    GET  /v2                 GET  /v2/models/{name}[/versions/{version}]          GET  /metrics
    GET  /v2/health/live     GET  /v2/models/{name}[/versions/{version}]/ready    GET  /openapi.json
    GET  /v2/health/ready    POST /v2/models/{name}[/versions/{version}]/infer
    GET  /v2/models          GET  /v2/models/{name}/weights_info                  .../candidate (see `_admin_routes`)
                             POST /v2/models/{name}/feedback

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

from evergrad.errors import ConfigError
from evergrad.serve import openapi
from evergrad.serve.access import Token, is_loopback
from evergrad.serve.info import one_line, weights_info
from evergrad.serve.labels import decode_feedback
from evergrad.serve.model import CODES, ModelPlane, code_of
from evergrad.serve.request import decode_request
from evergrad.serve.sdk import (
    ListModelsResponse,
    ModelMetadataResponse,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerNotReady,
    ServerReadyResponse,
    V2Endpoints,
)

logger = logging.getLogger(__name__)
MAX_REQUEST_BYTES = 1 << 28
_OPEN = frozenset(("/v2/health/live", "/v2/health/ready"))


def make_app(plane: ModelPlane, *, token: Token | None = None, max_bytes: int = MAX_REQUEST_BYTES) -> FastAPI:
    """The application that serves one model.

    Args:
        token: what requests must carry, those for health aside; None: nothing.
        max_bytes: most bytes of a request's body.
    """
    app = FastAPI(title="Evergrad model server", docs_url=None, redoc_url=None)
    app.include_router(_protocol_routes(plane, max_bytes))
    app.include_router(_own_routes(plane, max_bytes))
    app.include_router(_admin_routes(plane, max_bytes))
    for kind in (*CODES, ServerNotReady, HTTPException, Exception):  # each by name: only a defect is logged as one
        app.add_exception_handler(kind, _answer_error)
    if token is not None:
        app.add_middleware(_Guard, token=token)
    document = app.openapi

    def described() -> dict[str, Any]:
        return openapi.without_validation(document(), token is not None)

    app.openapi = described  # type: ignore[method-assign]
    return app


class _Guard:
    """Lets requests through that carry the token, and those for health."""

    def __init__(self, app: Any, token: Token) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            if not self._token.opens(header):
                answer = json_response({"error": "this server asks for a bearer token"}, 401)
                answer.headers["WWW-Authenticate"] = "Bearer"
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _protocol_routes(plane: ModelPlane, max_bytes: int) -> APIRouter:
    kserve, router = V2Endpoints(plane), APIRouter(prefix="/v2", tags=["V2"])

    async def ready(model_name: str, version: str | None = None) -> dict[str, Any]:
        if not await plane.model_ready(model_name, version):
            raise plane.model.not_ready()
        return {"name": model_name, "ready": True}

    async def infer(request: Request, model_name: str, version: str | None = None) -> Response:
        plane.require(model_name)
        body = await _read_body(request, max_bytes)
        length = request.headers.get("inference-header-content-length")
        found = await plane.answer(model_name, version, lambda: decode_request(body, length, model_name))
        answer, headers = plane.encode(model_name, found, {}, {})
        if isinstance(answer, bytes):
            return Response(answer, 200, headers, "application/octet-stream")
        return json_response(answer)

    for path, endpoint, response_model, codes in (
        ("", kserve.metadata, ServerMetadataResponse, (401,)),
        ("/health/live", kserve.live, ServerLiveResponse, ()),
        ("/health/ready", kserve.ready, ServerReadyResponse, (503,)),
        ("/models", kserve.models, ListModelsResponse, (401,)),
        ("/models/{model_name}", _by_name(plane.model_metadata), ModelMetadataResponse, (401, 404)),
        ("/models/{model_name}/ready", _by_name(ready), ModelReadyResponse, (401, 404, 503)),
        ("/models/{model_name}/versions/{version}", plane.model_metadata, ModelMetadataResponse, (401, 404, 503)),
        ("/models/{model_name}/versions/{version}/ready", ready, ModelReadyResponse, (401, 404, 503)),
    ):
        responses = openapi.errors(*codes)
        router.add_api_route(path, endpoint, response_model=response_model, methods=["GET"], responses=responses)
    described = openapi.inference()
    router.add_api_route("/models/{model_name}/infer", _by_request(infer), methods=["POST"], **described)
    router.add_api_route("/models/{model_name}/versions/{version}/infer", infer, methods=["POST"], **described)
    return router


def _by_name(endpoint: Any) -> Any:
    # What is not in the path would be taken from the query.
    async def of_model(model_name: str) -> Any:
        return await endpoint(model_name)

    return of_model


def _by_request(endpoint: Any) -> Any:
    async def of_request(request: Request, model_name: str) -> Response:
        answer: Response = await endpoint(request, model_name)
        return answer

    return of_request


def _own_routes(plane: ModelPlane, max_bytes: int) -> APIRouter:
    router = APIRouter()

    async def info(model_name: str) -> Response:
        plane.require(model_name)
        lane = plane.model.stable
        return json_response(await run_in_threadpool(weights_info, lane.replica, lane.missing))

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept") or "")
        text = await run_in_threadpool(encode, plane.model.metrics.registry)
        return Response(text, media_type=content_type)

    async def feedback(request: Request, model_name: str) -> Response:
        plane.require(model_name)
        found = decode_feedback(await _read_body(request, max_bytes))
        return json_response(await plane.model.take_feedback(found))

    router.add_api_route("/v2/models/{model_name}/feedback", feedback, methods=["POST"], **openapi.feedback())
    known = {**openapi.told(), **openapi.errors(401, 404)}
    router.add_api_route("/v2/models/{model_name}/weights_info", info, methods=["GET"], responses=known)
    exposed = {200: {"description": "Prometheus's text", "content": {"text/plain": {}}}, **openapi.errors(401)}
    router.add_api_route("/metrics", metrics, methods=["GET"], responses=exposed)
    return router


def _admin_routes(plane: ModelPlane, max_bytes: int) -> APIRouter:
    """What the operator says about the candidate, from this machine alone: GET, PUT its share, promote, drop."""
    router, model = APIRouter(prefix="/v2/models/{model_name}/candidate", tags=["candidate"]), plane.model

    def admitted(request: Request, model_name: str) -> None:
        plane.require(model_name)
        if not is_loopback(request.client.host if request.client else None):
            raise HTTPException(403, "the candidate is managed from this machine itself")

    def told() -> Response:
        trial = model.trial
        if trial is None:
            return json_response({"candidate": None})
        facts = {"share": trial.share, "shadow": trial.shadow, "version": trial.lane.version}
        return json_response({"candidate": {**facts, "log": trial.lane.replica.log.url}})

    async def show(request: Request, model_name: str) -> Response:
        admitted(request, model_name)
        return told()

    async def set_share(request: Request, model_name: str) -> Response:
        admitted(request, model_name)
        body = await _read_body(request, max_bytes)
        try:
            model.set_share(msgspec.json.decode(body, type=_Share).share)
        except (msgspec.DecodeError, UnicodeDecodeError, ConfigError) as error:
            raise HTTPException(400, one_line(error)) from error
        return told()

    async def promote(request: Request, model_name: str) -> Response:
        admitted(request, model_name)
        await run_in_threadpool(model.promote().close)
        return told()

    async def drop(request: Request, model_name: str) -> Response:
        admitted(request, model_name)
        await run_in_threadpool(model.drop().close)
        return told()

    known = {**openapi.told(), **openapi.errors(401, 403, 404, 503)}
    router.add_api_route("", show, methods=["GET"], responses=known)
    router.add_api_route("", set_share, methods=["PUT"], **openapi.share())
    router.add_api_route("/promote", promote, methods=["POST"], responses=known)
    router.add_api_route("/drop", drop, methods=["POST"], responses=known)
    return router


class _Share(msgspec.Struct):
    share: float


async def _read_body(request: Request, max_bytes: int) -> bytes:
    said = request.headers.get("content-length", "0")
    body, expected = bytearray(), int(said) if said.isascii() and said.isdecimal() else 0
    async for chunk in request.stream():
        body += chunk
        if max(expected, len(body)) > max_bytes:
            raise HTTPException(413, f"a request has at most {max_bytes} bytes")
    return bytes(body)


def json_response(content: Any, status: int = 200) -> Response:
    """An answer as JSON; NaN and infinity, which JSON does not have, as null."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return json_response({"error": one_line(error.detail)}, error.status_code)
    status = 503 if isinstance(error, ServerNotReady) else code_of(error)
    if status == 500:  # the middleware that calls this raises it again, and uvicorn logs it
        return json_response({"error": f"{type(error).__name__} in the server; its log says more"}, status)
    logger.debug("%s %s: %d, %s", request.method, request.url.path, status, error)
    return json_response({"error": one_line(error)}, status)
