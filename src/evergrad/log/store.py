"""Object stores over obstore: a local directory, and this process's memory."""

from __future__ import annotations

import os
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore

from evergrad.errors import LogUnavailable


class ObstoreStore:
    """An `ObjectStore` over one of obstore's stores.

    obstore writes a local object beside its place and links it there when it is whole, so a crash leaves a stray
    temporary file at worst, never half an object.
    """

    def __init__(self, store: LocalStore | MemoryStore, url: str) -> None:
        self._store, self._url = store, url

    def create(self, name: str, data: bytes) -> bool:
        try:
            obstore.put(self._store, name, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise self._unavailable(error) from error
        return True

    def read(self, name: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise self._unavailable(error) from error

    def names(self, prefix: str) -> list[str]:
        try:
            return sorted(item["path"] for page in obstore.list(self._store, prefix) for item in page)
        except (BaseError, OSError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> LogUnavailable:
        return LogUnavailable(self._url, str(error).partition("\n")[0])


def local_store(path: Path, url: str, *, create: bool) -> ObstoreStore | None:
    """The store in a local directory; None where that does not exist and `create` is false.

    Raises:
        LogUnavailable: the path is no directory, or may not be entered, or not be written where `create` is true.
    """
    try:
        if create:
            path.mkdir(parents=True, exist_ok=True)
        elif not path.exists():
            return None
        os.listdir(path)
        if create and not os.access(path, os.W_OK):
            raise PermissionError(f"{path} is not writable")
        return ObstoreStore(LocalStore(path), url)
    except (OSError, BaseError) as error:
        raise LogUnavailable(url, str(error)) from error


_memory: dict[str, ObstoreStore] = {}


def memory_store(name: str, url: str, *, create: bool) -> ObstoreStore | None:
    """The store of that name in this process's memory; None where it does not exist and `create` is false."""
    if create and name not in _memory:
        _memory[name] = ObstoreStore(MemoryStore(), url)
    return _memory.get(name)
