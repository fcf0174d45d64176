"""A small client of a model server, with the standard library and numpy alone."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
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
        id: the request's, by which `label` tells its labels later.
    """

    outputs: Array
    version: int
    digest: int
    staleness_s: float
    id: str = ""


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

    def infer(self, x: Array, version: int | None = None, request_id: str | None = None) -> Answer:
        """The model's outputs for a batch; tensors travel as binary data.

        Args:
            version: None: the newest; an older one as long as the server holds what it takes to go back.
            request_id: None: the server gives one.

        Raises:
            ServerError: the server is not there, refuses the batch, or its answer is not one.
        """
        body, headers = self._encode(x, request_id)
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
                str(found["id"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(self._url, f"its answer is not one of an Evergrad server: {error!r}") from error

    def label(self, labels: Mapping[str, Array]) -> dict[str, Any]:
        """Tells the labels of answered requests, by the requests' ids; each [rows, ...], as the input.

        Gives how many were `joined`, how many are `duplicates` (told before), and the `batch`'s number in the stream.

        Raises:
            ServerError: the server is not there, takes no feedback, or refuses; nothing was taken in then.
        """
        return self._feedback({"labels": [{"id": name, "y": self._listed(y)} for name, y in labels.items()]})

    def teach(self, x: Array, y: Array) -> dict[str, Any]:
        """Tells labelled examples that were not asked for: [examples, ...] each. As `label`."""
        return self._feedback({"examples": {"x": self._listed(x), "y": self._listed(y)}})

    def _feedback(self, content: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        answer, _ = self._ask("POST", f"{self._path}/feedback", json.dumps(content).encode(), headers)
        found: dict[str, Any] = json.loads(answer)
        return found

    def _listed(self, array: Array) -> dict[str, Any]:
        return {"shape": list(array.shape), "datatype": self._datatype(array), "data": array.ravel().tolist()}

    def _datatype(self, array: Array) -> str:
        try:
            return datatype_of(array)
        except ValueError as error:
            raise ServerError(self._url, str(error)) from error

    def _encode(self, x: Array, request_id: str | None) -> tuple[bytes, dict[str, str]]:
        datatype = self._datatype(x)
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
            **({} if request_id is None else {"id": request_id}),
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
