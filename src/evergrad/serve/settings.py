"""How a server serves: one frozen object."""

from __future__ import annotations

from dataclasses import dataclass, field

from evergrad.errors import ConfigError
from evergrad.serve.access import Tls, Token
from evergrad.serve.batch import Batching
from evergrad.serve.feedback import Feedback
from evergrad.serve.signature import TensorType

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a server serves.

    Attributes:
        name: how clients call the model: `POST /v2/models/{name}/infer`.
        host: where to listen. Without `token`, anybody who can reach it may ask.
        port: 0 takes any free one.
        grpc_port: where to serve gRPC too; None: not at all; 0 takes any free one.
        batching: how requests are put together.
        max_staleness_s: from where on the server is not ready, though it answers; None: never.
        max_request_bytes: of one request's body, over HTTP and gRPC.
        input: what the model takes, which requests are then checked against; None: not known.
        recorded: input and output as the log's signature has them: what the metadata tells where `input` does not.
        token: what requests must carry, those for health aside.
        tls: serves HTTPS, and gRPC over TLS.
        feedback: where labels go that come back; None: it takes none, and keeps no request.
        worker: its number, where several processes share the ports.

    Raises:
        ConfigError: one of them cannot be.
    """

    name: str = "model"
    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    batching: Batching = field(default_factory=Batching)
    max_staleness_s: float | None = None
    max_request_bytes: int = 1 << 28
    input: TensorType | None = None
    recorded: tuple[TensorType, TensorType] | None = None
    token: Token | None = None
    tls: Tls | None = None
    feedback: Feedback | None = None
    worker: int | None = None

    def __post_init__(self) -> None:
        if not self.name or not set(self.name) <= _NAME:
            raise ConfigError("name", f"must be letters, digits, '.', '_' or '-', not {self.name!r}")
        for key, port in (("port", self.port), ("grpc_port", self.grpc_port)):
            if port is not None and not 0 <= port <= 65535:
                raise ConfigError(key, f"must lie in 0 to 65535, not {port}")
        if self.max_staleness_s is not None and not self.max_staleness_s > 0:
            raise ConfigError("max_staleness_s", f"must be above 0, not {self.max_staleness_s}")
        if self.max_request_bytes < 1:
            raise ConfigError("max_request_bytes", f"must be 1 or more, not {self.max_request_bytes}")
