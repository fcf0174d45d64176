"""Servers on loopback that stand for the places of logs: S3, Google's, Azure's, and a plain web server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from moto.server import ThreadedMotoServer

BUCKET = "logs"
AZURITE = Path(__file__).parents[3] / "build" / "azurite" / "node_modules" / "azurite" / "dist/src/blob/main.js"


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    """Gives the server's URL, while it runs in a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def s3() -> Iterator[dict[str, str]]:
    """The environment that leads to an S3 server with one bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        _send("PUT", f"{url}/{BUCKET}")
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "the-access-key",
            "AWS_SECRET_ACCESS_KEY": "the-secret-key",
        }
    finally:
        server.stop()


def _send(method: str, url: str, headers: dict[str, str] | None = None) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        connection.request(method, url.partition(parts.netloc)[2], b"", headers or {})
        assert connection.getresponse().status < 300
    finally:
        connection.close()


class Silent(BaseHTTPRequestHandler):
    """A handler that answers in one go, and says nothing to stderr."""

    def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *said: object) -> None:
        pass


class Refusing(Silent):
    """Answers all with 403 and a page that says more than it should."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        page = f"<Error><Code>Denied</Code><Message>{self.path} {self.headers}</Message></Error>"
        self.answer(403, page.encode())

    def do_PUT(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.do_GET()


class Google(Silent):
    """The few calls of Google's XML interface that a log needs, two names to a page of a list."""

    objects: dict[str, bytes]
    lock: threading.Lock

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            if self.headers.get("x-goog-if-generation-match") == "0" and self._key() in self.objects:
                return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            self.objects[self._key()] = data
        return self._answer(200)

    def do_DELETE(self) -> None:
        self._answer(404 if self.objects.pop(self._key(), None) is None else 204)

    def do_GET(self) -> None:
        if urlsplit(self.path).path.strip("/") == BUCKET:
            return self._list({key: found[0] for key, found in parse_qs(urlsplit(self.path).query).items()})
        if not self._key().startswith(f"{BUCKET}/"):
            return self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        data = self.objects.get(self._key())
        return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>") if data is None else self._answer(200, data)

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).strip("/")

    def _list(self, query: dict[str, str]) -> None:
        prefix, below = query.get("prefix", ""), f"{BUCKET}/"
        keys = sorted(key.removeprefix(below) for key in self.objects if key.startswith(below + prefix))
        direct = [key for key in keys if "/" not in key[len(prefix) :]]
        folders = {prefix + key[len(prefix) :].partition("/")[0] + "/" for key in keys if key not in direct}
        start = int(query.get("continuation-token", "0"))
        rest = f"<NextContinuationToken>{start + 2}</NextContinuationToken>" if start + 2 < len(direct) else ""
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<Size>{len(self.objects[below + key])}</Size><ETag>1</ETag></Contents>"
            for key in direct[start : start + 2]
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders)
        self._answer(200, f"<ListBucketResult>{items}{rest}</ListBucketResult>".encode())

    def _answer(self, status: int, data: bytes = b"") -> None:
        self.answer(status, data, ETag='"1"', x_goog_generation="1", Last_Modified=formatdate(0, usegmt=True))


@contextmanager
def gs() -> Iterator[dict[str, str]]:
    """The environment that leads to what a log sees of Google Cloud Storage, with one bucket."""
    kind = type("OneGoogle", (Google,), {"objects": {}, "lock": threading.Lock()})
    with running(ThreadingHTTPServer(("127.0.0.1", 0), kind)) as url:
        yield {"GOOGLE_BASE_URL": url, "GOOGLE_ALLOW_HTTP": "true", "GOOGLE_BEARER_TOKEN": "the-token"}


@contextmanager
def az() -> Iterator[dict[str, str]]:
    """The environment that leads to Azurite with one container."""
    key = base64.b64encode(os.urandom(64)).decode()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--inMemoryPersistence", "--disableTelemetry", "--silent", "--skipApiVersionCheck"]
    command = ["node", str(AZURITE), "--blobPort", str(port), *flags]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"tests:{key}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any("successfully listens" in line for line in process.stdout), "Azurite ended before it listened"
            url = f"http://127.0.0.1:{port}/tests"
            _make_container(url, key)
            yield {
                "AZURE_STORAGE_ENDPOINT": url,
                "AZURE_ALLOW_HTTP": "true",
                "AZURE_STORAGE_ACCOUNT_NAME": "tests",
                "AZURE_STORAGE_ACCOUNT_KEY": key,
            }
        finally:
            process.terminate()


def _make_container(url: str, key: str) -> None:
    date, version = formatdate(usegmt=True), "2023-11-03"
    signed = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n/tests/tests/{BUCKET}\nrestype:container"
    signature = base64.b64encode(hmac.new(base64.b64decode(key), signed.encode(), hashlib.sha256).digest()).decode()
    headers = {"x-ms-date": date, "x-ms-version": version, "Content-Type": ""}
    headers["Authorization"] = f"SharedKey tests:{signature}"
    _send("PUT", f"{url}/{BUCKET}?restype=container", headers)
