"""The seam between an update log and the place that keeps its objects.

A place keeps objects under names like `updates/000000000012.eg`. A replica needs only a `StoreReader`, a publisher an
`ObjectStore`. These promises carry the whole protocol; `evergrad.testing.check_object_store` and `check_store_reader`
check them:

1. `create` either stores all the bytes under a name that nothing had, or stores nothing. Of two that race for one name,
   exactly one succeeds: this is the only lock there is.
2. `read` and `stream` give all the bytes or None, never a part as if it were the whole. What they gave once, they give
   until the name is deleted: objects never change. The exceptions are those that `replace` writes.
3. `replace` puts new bytes in the place of whatever was there: a reader sees the old or the new ones, never a mix.
4. `names` lists what was stored and not deleted, in ascending order: the objects directly in one folder.
5. A `watch` may wake too often, never too late: after it was made, whatever appears in its folder ends the wait that is
   going on, or the next one. So make the watch first, then look, then wait.

A failure of the place itself is `LogUnavailable`, and leaves the name as it was or fully stored; so is a name that no
place would keep (see `require_name`). A place that cannot be written to at all says so with `ReadOnlyLog`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from evergrad.errors import LogUnavailable

CHUNK_BYTES = 1 << 20  # what `stream` gives at a time
TEMPORARY = ".tmp-"  # how the name of a file begins that is not an object yet, and may never become one


class Watch(Protocol):
    """Tells one waiting thread that something appeared in a folder."""

    def wait(self, timeout_s: float) -> None:
        """Returns when something appeared since the last wait, when woken, or after `timeout_s`."""
        ...

    def wake(self) -> None:
        """Ends the wait that is going on, or else the next one; from any thread, also after `close`."""
        ...

    def close(self) -> None:
        """Gives back what it holds; a wait that is going on ends."""
        ...


class StoreReader(Protocol):
    """What a replica needs of a place; see the module for what an implementation promises."""

    def read(self, name: str) -> bytes | None:
        """The bytes under `name`, or None where there are none.

        Raises:
            LogUnavailable: the place refused or failed.
        """
        ...

    def stream(self, name: str) -> Iterator[bytes] | None:
        """The bytes under `name` in order, about a mebibyte at a time; None where there is no such object.

        For objects that are too large to hold twice, such as snapshots. Where the object is deleted meanwhile, the
        iterator gives the rest or raises.

        Raises:
            LogUnavailable: the place refused or failed, now or, from the iterator, later.
        """
        ...

    def watch(self, folder: str) -> Watch | None:
        """What tells that something appeared in `folder`; None where this place cannot: poll by the next name.

        The folder need not exist yet. Close the watch when done.
        """
        ...


class ObjectStore(StoreReader, Protocol):
    """Where a log keeps its objects; see the module for what an implementation promises."""

    def create(self, name: str, data: bytes) -> bool:
        """Stores `data` under `name`; False where that name exists already.

        Raises:
            LogUnavailable: the place refused or failed.
        """
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Stores `data` under `name`, whatever was there. Only for `latest.json` and `evergrad.json`.

        Raises:
            LogUnavailable: the place refused or failed.
        """
        ...

    def delete(self, name: str) -> None:
        """Removes `name`; no error where it is not there.

        Raises:
            LogUnavailable: the place refused or failed.
        """
        ...

    def names(self, prefix: str) -> list[str]:
        """The names of all objects directly in the folder `prefix` (no slash at its end), whole and ascending.

        Raises:
            LogUnavailable: the place refused or failed.
        """
        ...


def require_name(name: str, url: str) -> str:
    """Gives `name` back, if a place may keep it.

    Parts between slashes that are empty, `.` or `..`, or begin like a temporary file are refused: a name, which may
    come from what somebody wrote into a log, never leads out of its place, and never meets half an object.

    Raises:
        LogUnavailable: it may not.
    """
    if "\0" in name or any(part in {"", ".", ".."} or part.startswith(TEMPORARY) for part in name.split("/")):
        raise LogUnavailable(url, f"no object can have the name {name!r}")
    return name
