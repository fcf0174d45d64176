"""The one place that imports KServe's SDK, and what Evergrad uses of it.

`import kserve` reads the options of its own model server from `sys.argv`, whoever's program that is: it is shown the
program's name alone.
"""

from __future__ import annotations

import sys

from evergrad.errors import MissingDependency

_argv = sys.argv
sys.argv = _argv[:1]
try:
    from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelRepository
    from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServerNotReady
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
    from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services
    from kserve.protocol.infer_type import RequestedOutput
    from kserve.protocol.rest.v2_datamodels import (
        InferenceResponse,
        ListModelsResponse,
        ModelMetadataResponse,
        ModelReadyResponse,
        ServerLiveResponse,
        ServerMetadataResponse,
        ServerReadyResponse,
    )
    from kserve.protocol.rest.v2_endpoints import V2Endpoints
except ModuleNotFoundError as error:
    if error.name != "kserve":
        raise
    raise MissingDependency("kserve", "serve") from error
finally:
    sys.argv = _argv

__all__ = [
    "DataPlane",
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "InferenceResponse",
    "InvalidInput",
    "ListModelsResponse",
    "Model",
    "ModelMetadataResponse",
    "ModelNotFound",
    "ModelNotReady",
    "ModelReadyResponse",
    "ModelRepository",
    "RequestedOutput",
    "ServerLiveResponse",
    "ServerMetadataResponse",
    "ServerNotReady",
    "ServerReadyResponse",
    "V2Endpoints",
    "messages",
    "services",
]
