"""Update logs: what trainer and replicas share, and all that they share.

`open_log` turns a URL into an `UpdateLog`. A new kind of place is one more file beside `local` and `store`, and passes
`evergrad.testing.check_object_store`.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from evergrad.errors import ConfigError, ReadOnlyLog
from evergrad.log.base import ObjectStore, StoreReader, Watch
from evergrad.log.layout import UpdateLog
from evergrad.log.local import local_store
from evergrad.log.store import bucket_store, http_store, memory_store

__all__ = ["ObjectStore", "StoreReader", "UpdateLog", "Watch", "open_log"]

_BUCKETS = {"s3": "a bucket", "gs": "a bucket", "az": "a container"}
_MEANT = {"s3a": "s3", "gcs": "gs", "azure": "az", "abfs": "az", "abfss": "az", "mem": "memory"}


def open_log(url: str, *, create: bool = False, durable: bool = False) -> UpdateLog:
    """Opens the log at a URL.

    Args:
        url: one of

            - `file:path`, `file:///path` or a plain path: a local directory.
            - `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`: an object store. Credentials and
              endpoints come from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`). Nobody is contacted yet.
            - `https://host/path`, `http://host/path`: what a web server or CDN serves, to read. As above.
            - `memory:name`: this process's memory.
        create: make the place where it does not exist (for a publisher). Nothing is written into it yet. A bucket must
            be there.
        durable: for a local directory: each write waits until the disk has it, so that a crash of the machine loses
            nothing that was acknowledged. Object stores do so always.

    Raises:
        ConfigError: a kind of URL that Evergrad does not know, or one that names no place; or `durable` in memory.
        LogUnavailable: the place exists and cannot be used.
        ReadOnlyLog: `create` where nobody can write.

    >>> open_log("memory:doctest", create=True).begun()
    False
    """
    scheme, rest = _scheme_and_rest(url)
    if scheme in _BUCKETS:
        return UpdateLog(bucket_store(scheme, *_bucket_and_prefix(scheme, url), url), url)
    if scheme in {"http", "https"}:
        return UpdateLog(http_store(_server(url, create=create)), url)
    if not rest:
        raise ConfigError("log", f"{url!r} names no place; write for example file:updates")
    if scheme == "file":
        return UpdateLog(local_store(Path(rest), url, create=create, durable=durable), url)
    if scheme == "memory":
        if durable:
            raise ConfigError("durable", f"{url!r} ends with this process; use file: or an object store")
        return UpdateLog(memory_store(rest, url, create=create), url)
    instead = f"did you mean {_MEANT[scheme]}:?" if scheme in _MEANT else "use file:, s3:, gs:, az:, https: or memory:"
    raise ConfigError("log", f"{scheme!r} is not a kind of log that this release knows; {instead}")


def _scheme_and_rest(url: str) -> tuple[str, str]:
    scheme, colon, rest = url.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        return "file", url
    if not rest.startswith("//"):
        return scheme, rest
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError("log", f"a {scheme} URL that cannot be read: {error}") from error
    if "@" in parts.netloc:
        raise ConfigError("log", f"a {scheme} URL with a user name or password; take them out and use the environment")
    if scheme != "file":
        return scheme, rest
    if parts.netloc not in {"", "localhost"}:
        raise ConfigError("log", f"{url!r} names the machine {parts.netloc!r}; write file:path or file:///path")
    return scheme, unquote(parts.path)


def _bucket_and_prefix(scheme: str, url: str) -> tuple[str, str]:
    bucket, _, prefix = url.removeprefix(f"{scheme}:").removeprefix("//").partition("/")
    if not url.startswith(f"{scheme}://") or not bucket:
        raise ConfigError(
            "log", f"{url!r} names no place: write {scheme}://, {_BUCKETS[scheme]}, and a prefix if wanted"
        )
    if {"?", "#"} & set(url):
        raise ConfigError("log", f"a {scheme} URL has no ? or #; settings come from the environment")
    prefix = prefix.strip("/")
    if any(part in {"", ".", ".."} for part in prefix.split("/")) and prefix:
        raise ConfigError("log", f"{url!r} has an empty part, '.' or '..' in its prefix; name each folder")
    return bucket, prefix


def _server(url: str, *, create: bool) -> str:
    parts = urlsplit(url)
    if not parts.netloc:
        raise ConfigError("log", f"{url!r} names no place; write {parts.scheme}://host/path")
    if parts.query or parts.fragment:
        raise ConfigError("log", f"the {parts.scheme} URL of a log ends with its path; take out what follows ? or #")
    if create:
        raise ReadOnlyLog(url)
    return url
