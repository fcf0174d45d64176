"""Object stores over obstore: S3, Google Cloud Storage, Azure, a plain HTTP server (to read), this process's memory.

A bucket's conditional write (`If-None-Match: *`, Google's `x-goog-if-generation-match: 0`) is the lock. An
acknowledged write is as durable as the service promises.

Credentials and endpoints come from the environment, by the names that each service's own tools use (`AWS_*`,
`GOOGLE_*`, `AZURE_*`), or from the machine's identity in its cloud; never from a URL. No message holds them: it is made
of what kind of failure it was, never of a request's or an answer's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, HTTPStore, MemoryStore, S3Store

from evergrad.errors import ConfigError, LogUnavailable, ReadOnlyLog
from evergrad.log.base import CHUNK_BYTES, Watch, require_name

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

CONNECT_S, SILENT_S, REQUEST_S = 3, 10, 600  # to connect; between two bytes of an answer; for one request at most
RETRIES, RETRYING_S = 3, 10  # a request that fails is tried again so often, and not after so many seconds
QUICK_BYTES = 8 << 20  # while more is sent, a server may be silent for as long as a request may take

_TIMES = {"connect_timeout": f"{CONNECT_S}s", "timeout": f"{REQUEST_S}s"}
_QUICK, _PATIENT = {**_TIMES, "read_timeout": f"{SILENT_S}s"}, {**_TIMES, "read_timeout": f"{REQUEST_S}s"}
_RETRY: RetryConfig = {
    "max_retries": RETRIES,
    "retry_timeout": timedelta(seconds=RETRYING_S),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
_ERRORS = (BaseError, OSError, ValueError)
_NO_BUCKET = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound|ContainerBeingDeleted)</Code>")
_IDENTITY = re.compile(r"//(169\.254\.|metadata)")
_STATUS = re.compile(r"status code: (\d{3}(?: [A-Z][A-Za-z-]*)*)")
_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
_CAUSES = {
    "ConnectionRefused": "the connection was refused",
    "dns error": "the name of its host is not known",
    "BadScheme": "plain http is not allowed; for a server of your own set AWS_, GOOGLE_ or AZURE_ALLOW_HTTP=true",
    "TimedOut": "it did not answer in time",
    "ertificate": "its certificate was not accepted",
    "UnexpectedEof": "the answer was cut short",
    "IncompleteMessage": "the answer was cut short",
    "end of file before message length": "the answer was cut short",
    "Range request not supported": "the answer was cut short, and the server cannot send its rest alone",
    "Content-Length": "the server does not tell an object's length (Content-Length)",
    "redential": "there are no credentials, or they cannot be used",
}
_VARIABLES = {"s3": "AWS_*", "gs": "GOOGLE_*", "az": "AZURE_*"}
Place: TypeAlias = S3Store | GCSStore | AzureStore | HTTPStore | MemoryStore


class ObstoreStore:
    """An `ObjectStore` over one of obstore's stores. There is nothing to watch: readers poll.

    Args:
        store: where objects are.
        url: what to call it in messages.
        patient: where large objects are written to: the same place, with more time for a request; None: `store`.
        writable: False: it can be read by name, and neither written nor listed (ReadOnlyLog).
    """

    def __init__(self, store: Place, url: str, patient: Place | None = None, *, writable: bool = True) -> None:
        self._store, self._url, self._patient, self._writable = store, url, patient or store, writable

    def create(self, name: str, data: bytes) -> bool:
        """Stores `data` under `name`; False where that name exists already."""
        self._require_writable()
        try:
            obstore.put(self._for(data), require_name(name, self._url), data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        except _ERRORS as error:
            raise self._unavailable(error) from None
        return True

    def replace(self, name: str, data: bytes) -> None:
        """Stores `data` under `name`, whatever was there."""
        self._require_writable()
        try:
            obstore.put(self._for(data), require_name(name, self._url), data, mode="overwrite", use_multipart=False)
        except _ERRORS as error:
            raise self._unavailable(error) from None

    def _require_writable(self) -> None:
        if not self._writable:
            raise ReadOnlyLog(self._url)

    def _for(self, data: bytes) -> Place:
        return self._patient if len(data) > QUICK_BYTES else self._store

    def read(self, name: str) -> bytes | None:
        """The bytes under `name`, or None where there are none."""
        try:
            answer = obstore.get(self._store, require_name(name, self._url))
            data = bytes(answer.bytes())
        except FileNotFoundError as error:
            self._require_bucket(error)
            return None
        except _ERRORS as error:
            raise self._unavailable(error) from None
        self._require_whole(len(data), answer.meta["size"])
        return data

    def stream(self, name: str) -> Iterator[bytes] | None:
        """The bytes under `name` in order, about a mebibyte at a time; None where there is no such object."""
        try:
            answer = obstore.get(self._store, require_name(name, self._url))
        except FileNotFoundError as error:
            self._require_bucket(error)
            return None
        except _ERRORS as error:
            raise self._unavailable(error) from None
        return self._chunks(answer)

    def _chunks(self, answer: obstore.GetResult) -> Iterator[bytes]:
        size, given = answer.meta["size"], 0
        try:
            for part in answer.stream(min_chunk_size=CHUNK_BYTES):
                view = memoryview(part)
                given += len(view)
                yield from (bytes(view[at : at + CHUNK_BYTES]) for at in range(0, len(view), CHUNK_BYTES))
        except _ERRORS as error:
            raise self._unavailable(error) from None
        self._require_whole(given, size)

    def delete(self, name: str) -> None:
        """Removes `name`; no error where it is not there."""
        self._require_writable()
        try:
            obstore.delete(self._store, require_name(name, self._url))
        except FileNotFoundError as error:
            self._require_bucket(error)
        except _ERRORS as error:
            raise self._unavailable(error) from None

    def names(self, prefix: str) -> list[str]:
        """The names of all objects directly in the folder `prefix`, whole and ascending."""
        self._require_writable()
        try:
            found = obstore.list_with_delimiter(self._store, require_name(prefix, self._url))
        except _ERRORS as error:
            raise self._unavailable(error) from None
        return sorted(item["path"] for item in found["objects"])

    def watch(self, folder: str) -> Watch | None:
        """None: nothing tells what appears here."""
        require_name(folder, self._url)
        return None

    def _require_bucket(self, error: FileNotFoundError) -> None:
        # A bucket that is not there answers like an object that is not there. Only the object's absence is an answer.
        if _NO_BUCKET.search(str(error)):
            raise self._unavailable(error) from None

    def _require_whole(self, found: int, expected: int) -> None:
        if found != expected:
            raise LogUnavailable(self._url, f"the answer was cut short after {found} of {expected} bytes")

    def _unavailable(self, error: Exception) -> LogUnavailable:
        return LogUnavailable(self._url, _reason(error))


def _reason(error: Exception) -> str:
    """What kind of failure it was, in our words: the error's own may hold a signed request or a server's whole page."""
    text = str(error)
    code = _CODE.search(text)
    if _NO_BUCKET.search(text):
        return "the bucket or container does not exist; make it first"
    if _IDENTITY.search(text):
        return "the environment holds no credentials, and this machine has no identity that the service knows"
    if status := _STATUS.search(text):
        return f"the server answered {status[1]}" + (f" ({code[1]})" if code else "")
    if isinstance(error, PermissionDeniedError):
        return "these credentials may not do that"
    if isinstance(error, UnauthenticatedError):
        return "these credentials were not accepted"
    causes = (said for sign, said in _CAUSES.items() if sign in text)
    return next(causes, f"the request failed ({type(error).__name__})")


def bucket_store(scheme: str, bucket: str, prefix: str, url: str) -> ObstoreStore:
    """The store in a bucket, or an Azure container; contacts nobody.

    Args:
        scheme: s3, gs or az.
        prefix: the folder in the bucket; empty: the bucket itself.

    Raises:
        ConfigError: what the environment says cannot be used.
    """
    try:
        quick, patient = (_bucket(scheme, bucket, prefix, times) for times in (_QUICK, _PATIENT))
    except _ERRORS as error:
        if "Account must be specified" in str(error):
            raise ConfigError("log", f"{url} needs a storage account; set AZURE_STORAGE_ACCOUNT_NAME") from None
        problem = f"what the environment says about {scheme}: cannot be used ({type(error).__name__})"
        raise ConfigError("log", f"{problem}; check its {_VARIABLES[scheme]} variables") from None
    return ObstoreStore(quick, url, patient)


def _bucket(scheme: str, bucket: str, prefix: str, times: dict[str, str]) -> Place:
    # Times are configuration here and not `client_options`, which would replace all that the environment says of those.
    config: Any = times
    kind: type[S3Store | GCSStore | AzureStore] = GCSStore if scheme == "gs" else AzureStore
    if scheme == "s3":
        # Without conditional writes there is no lock. Deleting one by one is what every S3-compatible service knows.
        kind, config = S3Store, {**times, "conditional_put": "etag", "disable_bulk_delete": "true"}
    return kind(bucket, prefix=prefix or None, config=config, retry_config=_RETRY)


def http_store(url: str, *, silent_s: int = SILENT_S) -> ObstoreStore:
    """The store to read what an HTTP server or a CDN has below a URL; contacts nobody.

    The server must tell each object's length: it must not compress on the way.

    Args:
        url: a URL without user name, query or fragment.
        silent_s: how long it may be silent in the middle of an answer.

    Raises:
        ConfigError: it is no URL.
    """
    client: ClientConfig = {
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "read_timeout": timedelta(seconds=silent_s),
        "timeout": timedelta(seconds=REQUEST_S),
        "allow_http": url.startswith("http:"),
    }
    try:
        return ObstoreStore(HTTPStore(url, client_options=client, retry_config=_RETRY), url, writable=False)
    except _ERRORS as error:
        raise ConfigError("log", f"{url!r} is no URL of a server ({type(error).__name__})") from None


_memory: dict[str, ObstoreStore] = {}


def memory_store(name: str, url: str, *, create: bool) -> ObstoreStore | None:
    """The store of that name in this process's memory; None where it does not exist and `create` is false."""
    if create and name not in _memory:
        _memory[name] = ObstoreStore(MemoryStore(), url)
    return _memory.get(name)
