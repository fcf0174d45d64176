"""Update logs: what trainer and replicas share, and all that they share.

`open_log` turns a URL into an `UpdateLog`. A new kind of place is one more file beside `store`, and passes
`evergrad.testing.check_object_store`.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from evergrad.errors import ConfigError
from evergrad.log.base import ObjectStore
from evergrad.log.layout import UpdateLog
from evergrad.log.store import local_store, memory_store

__all__ = ["ObjectStore", "UpdateLog", "open_log"]


def open_log(url: str, *, create: bool = False) -> UpdateLog:
    """Opens the log at a URL.

    Args:
        url: `file:path`, `file:///path` or a plain path: a local directory. `memory:name`: this process's memory.
        create: make the place where it does not exist (for a publisher). Nothing is written into it yet.

    Raises:
        ConfigError: a kind of URL that Evergrad does not know, or one that names no place on this machine.
        LogUnavailable: the place exists and cannot be used.

    >>> open_log("memory:doctest", create=True).begun()
    False
    """
    scheme, colon, rest = url.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        scheme, rest = "file", url
    elif scheme == "file" and rest.startswith("//"):
        parts = urlsplit(url)
        if parts.netloc not in {"", "localhost"}:
            raise ConfigError("log", f"{url!r} names the machine {parts.netloc!r}; write file:path or file:///path")
        rest = unquote(parts.path)
    if not rest:
        raise ConfigError("log", f"{url!r} names no place; write for example file:updates")
    if scheme == "file":
        return UpdateLog(local_store(Path(rest), url, create=create), url)
    if scheme == "memory":
        return UpdateLog(memory_store(rest, url, create=create), url)
    raise ConfigError("log", f"{scheme!r} is not a kind of log that this release knows; use file: or memory:")
