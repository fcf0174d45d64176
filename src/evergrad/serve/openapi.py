"""What the server's OpenAPI document says beyond its paths: bodies, errors, and the token."""

from __future__ import annotations

from typing import Any

from evergrad.serve.tensors import DATATYPES

_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
    "additionalProperties": False,
}
_WORDS = {
    400: "The request is not one, or the model cannot take it",
    401: "The bearer token is missing or wrong",
    403: "Only from this machine itself",
    404: "No such model, version or request",
    405: "Not with this method",
    413: "The request is too large",
    500: "A defect in the server or the model; its log says more",
    503: "There is no version to serve yet, or no room on the disk",
}
_PARAMETERS = {"type": "object"}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}},
        "datatype": {"type": "string", "enum": sorted(DATATYPES)},
        "parameters": _PARAMETERS,
        "data": {"type": "array", "items": {}},
    },
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
            },
        },
    },
}
_ANSWER = {
    "type": "object",
    "required": ["model_name", "model_version", "id", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "parameters": _PARAMETERS,
        "outputs": {"type": "array", "items": {**_TENSOR, "required": ["name", "shape", "datatype", "data"]}},
    },
}
_ARRAY = {
    "type": "object",
    "required": ["shape", "datatype", "data"],
    "properties": {key: _TENSOR["properties"][key] for key in ("shape", "datatype", "data")},  # type: ignore[index]
}
_LABEL = {"type": "object", "required": ["id", "y"], "properties": {"id": {"type": "string"}, "y": _ARRAY}}
_FEEDBACK = {
    "type": "object",
    "properties": {
        "labels": {"type": "array", "minItems": 1, "items": _LABEL},
        "examples": {"type": "object", "required": ["x", "y"], "properties": {"x": _ARRAY, "y": _ARRAY}},
    },
    "minProperties": 1,
    "maxProperties": 1,
}
_COUNT = {"type": "integer", "minimum": 0}
_TAKEN = {
    "type": "object",
    "required": ["joined", "duplicates", "batch"],
    "properties": {"joined": _COUNT, "duplicates": _COUNT, "batch": {"anyOf": [_COUNT, {"type": "null"}]}},
}
_OBJECT: dict[str, Any] = {"type": "object"}


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for FastAPI's `responses`."""
    content = {"application/json": {"schema": _ERROR}}
    return {code: {"description": _WORDS[code], "content": content} for code in codes}


def inference() -> dict[str, Any]:
    """A route that infers: keyword arguments of FastAPI's `add_api_route`."""
    answered = {
        "description": "Outputs, and the version that computed them all; with binary_data_output as binary tensors",
        "content": {
            "application/json": {"schema": _ANSWER},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
    return {
        "responses": {200: answered, **errors(400, 401, 404, 413, 500, 503)},
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST}}},
        },
    }


def feedback() -> dict[str, Any]:
    """The route that takes labels and examples."""
    words = "All of it is taken in, and on the disk of the server"
    taken = {"description": words, "content": {"application/json": {"schema": _TAKEN}}}
    return {
        "responses": {200: taken, **errors(400, 401, 404, 413, 500, 503)},
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": _FEEDBACK}}}},
    }


def share() -> dict[str, Any]:
    """The route that sets the candidate's share."""
    number = {"type": "number", "minimum": 0, "maximum": 1}
    body = {"type": "object", "required": ["share"], "properties": {"share": number}}
    return {
        "responses": {**told(), **errors(400, 401, 403, 404, 413)},
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}},
    }


def told() -> dict[int | str, dict[str, Any]]:
    """An answer that is an object."""
    return {200: {"description": "OK", "content": {"application/json": {"schema": _OBJECT}}}}


def without_validation(document: dict[str, Any], token: bool) -> dict[str, Any]:
    """FastAPI's document without the 422 that no route here gives, and with the token where there is one."""
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    if token:
        document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document
