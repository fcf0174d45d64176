"""A small client of a model server, with the standard library and numpy alone."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from evergrad.errors import ServerError
from evergrad.serve.tensors import Array, datatype_of, from_bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, and the model that computed it: all of one version.

    Attributes:
        staleness_s: seconds since the newest example that the model had learned from; infinite: none is known.
    """

    outputs: Array
    version: int
    digest: int
    staleness_s: float


class InferenceClient:
    """Asks one model of one server, over a connection that is kept open, and opened again after the server restarted.

    One thread at a time may use it; threads have one each.

    Args:
        url: the server's, e.g. `http://127.0.0.1:8080`.
        token: the bearer token, where the server asks for one.
        tls: whom to trust over https; None: whom this machine trusts.
        input_name: where the server says what the model takes.

    Example:
        >>> InferenceClient("http://127.0.0.1:1").ready()
        False
    """

    def __init__(
        self,
        url: str,
        name: str = "model",
        timeout_s: float = 10.0,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        input_name: str = "input-0",
    ) -> None:
        self._url, self._path, self._input_name = url, f"/v2/models/{name}", input_name
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._connection: http.client.HTTPConnection
        try:
            parts = urlsplit(url)
            place = parts.hostname or "", parts.port
            if parts.scheme == "https":
                self._connection = http.client.HTTPSConnection(*place, timeout=timeout_s, context=tls)
            elif parts.scheme == "http":
                self._connection = http.client.HTTPConnection(*place, timeout=timeout_s)
            else:
                raise ValueError(f"{parts.scheme!r} is neither http nor https")
        except (ValueError, http.client.InvalidURL) as error:
            raise ServerError(url, "is not the URL of a server; write for example http://127.0.0.1:8080") from error

    def infer(self, x: Array, version: int | None = None) -> Answer:
        """The model's outputs for a batch; tensors travel as binary data.

        Args:
            version: None: the newest; an older one as long as the server holds what it takes to go back.

        Raises:
            ServerError: the server is not there, refuses the batch, or its answer is not one.
        """
        body, headers = self._encode(x)
        path = "" if version is None else f"/versions/{version}"
        answer, answer_headers = self._ask("POST", f"{self._path}{path}/infer", body, headers)
        try:
            length = int(answer_headers["inference-header-content-length"])
            found = json.loads(answer[:length])
            (output,) = found["outputs"]
            facts = found["parameters"]
            return Answer(
                from_bytes(answer[length:], output["datatype"], output["shape"]),
                int(facts["version"]),
                int(facts["digest"], 16),
                float(facts.get("staleness_s", "inf")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(self._url, f"its answer is not one of an Evergrad server: {error!r}") from error

    def _encode(self, x: Array) -> tuple[bytes, dict[str, str]]:
        try:
            datatype = datatype_of(x)
        except ValueError as error:
            raise ServerError(self._url, str(error)) from error
        tensor = x.astype(x.dtype.newbyteorder("<"), copy=False).tobytes()
        request: dict[str, Any] = {
            "inputs": [
                {
                    "name": self._input_name,
                    "shape": list(x.shape),
                    "datatype": datatype,
                    "parameters": {"binary_data_size": len(tensor)},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
        header = json.dumps(request).encode()
        return header + tensor, {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(header)),
        }

    def info(self) -> dict[str, Any]:
        """What the server says about its weights: version, digest, staleness_s, updates, ..., error.

        Raises:
            ServerError: the server is not there, or has no such model.
        """
        answer, _ = self._ask("GET", f"{self._path}/weights_info")
        try:
            found: dict[str, Any] = json.loads(answer)
        except ValueError as error:
            raise ServerError(self._url, f"its answer is not JSON: {error}") from error
        return found

    def ready(self) -> bool:
        """Whether the server is there and has a version to serve."""
        try:
            self._ask("GET", "/v2/health/ready")
        except ServerError:
            return False
        return True

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[bytes, http.client.HTTPMessage]:
        kept_open = self._connection.sock is not None
        try:
            status, answer, found = self._exchange(method, path, body, headers or {})
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            if kept_open and not isinstance(error, TimeoutError):  # closed by the server since the last request
                return self._ask(method, path, body, headers)
            raise ServerError(self._url, f"does not answer: {error or type(error).__name__}") from error
        if status != 200:
            raise ServerError(self._url, f"answered {status}: {_problem(answer)}")
        return answer, found

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        self._connection.request(method, path, body, {**self._headers, **headers})
        response = self._connection.getresponse()
        return response.status, response.read(), response.headers

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _problem(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, TypeError, KeyError):
        return answer[:200].decode(errors="replace")
