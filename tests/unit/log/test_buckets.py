"""S3, Google Cloud Storage and Azure keep the promises of a store, and their failures are told without secrets.

S3 is moto's server, Azure is Azurite (`make azurite` installs it), Google's a double of what a log calls.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer

import pytest

from evergrad.errors import ConfigError, LogNotFound, LogUnavailable
from evergrad.log import ObjectStore, open_log
from evergrad.log.store import QUICK_BYTES
from evergrad.replica import Replica
from evergrad.testing import check_object_store
from tests.builders import Writer, equal_states
from tests.unit.log import places

SCHEMES: dict[str, Callable[[], AbstractContextManager[dict[str, str]]]] = {
    "s3": places.s3,
    "gs": places.gs,
    "az": places.az,
}
SERVICE = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}


@dataclass
class Service:
    scheme: str
    environment: dict[str, str]

    def url(self, prefix: str = "") -> str:
        return f"{self.scheme}://{places.BUCKET}/{prefix}"


@pytest.fixture(scope="module", params=SCHEMES)
def started(request: pytest.FixtureRequest) -> Iterator[Service]:
    if request.param == "az" and not places.AZURITE.exists():
        pytest.skip("Azurite is not installed; `make azurite` does that where there is npm")
    with SCHEMES[request.param]() as environment:
        yield Service(request.param, environment)


@pytest.fixture
def service(started: Service, bare: pytest.MonkeyPatch) -> Service:
    """A service and the environment that leads to it, and to nothing else."""
    for name, value in started.environment.items():
        bare.setenv(name, value)
    return started


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.partition("_")[0] in SERVICE.values()]:
        monkeypatch.delenv(name)
    return monkeypatch


def fresh(service: Service) -> ObjectStore:
    return open_log(service.url(f"fresh/{os.urandom(4).hex()}")).store


def test_bucket_keeps_the_promises(service: Service) -> None:
    check_object_store(lambda: fresh(service))


def test_log_in_a_bucket_is_written_and_followed(service: Service) -> None:
    url = service.url("a model/of ours/")
    assert not open_log(url).begun()
    with pytest.raises(LogNotFound):
        Replica(url).sync()
    writer = Writer(open_log(url, create=True, durable=True)).begin().append(3)
    reader = Replica(url)
    assert reader.sync() == 3
    assert equal_states(reader.state, writer.state)
    assert open_log(url.rstrip("/")).updates() == [1, 2, 3]


def test_bucket_without_a_prefix_and_prefixes_beside_each_other(service: Service) -> None:
    inside, beside, whole = (open_log(service.url(prefix)).store for prefix in ("one", "one2", ""))
    assert inside.create("updates/1.eg", b"1")
    assert beside.create("updates/1.eg", b"2")
    assert (whole.read("one/updates/1.eg"), whole.read("one2/updates/1.eg")) == (b"1", b"2")
    assert inside.names("updates") == ["updates/1.eg"]


def test_objects_beyond_the_quick_ones_are_conditional_too(service: Service) -> None:
    store, data = fresh(service), os.urandom(QUICK_BYTES + 1)
    assert store.create("snapshots/1.safetensors", data)
    assert not store.create("snapshots/1.safetensors", b"other")
    assert not store.create("snapshots/1.safetensors", data[::-1])
    assert b"".join(store.stream("snapshots/1.safetensors") or ()) == data


def test_bucket_that_does_not_exist_is_told_and_is_not_an_empty_log(service: Service) -> None:
    store = open_log(f"{service.scheme}://nowhere/log").store
    attempts: list[Callable[[], object]] = [lambda: store.read("evergrad.json"), lambda: store.stream("evergrad.json")]
    if service.scheme != "gs":  # the double knows one bucket when asked for an object, and all others when told one
        attempts += [lambda: store.names("updates"), lambda: store.create("evergrad.json", b"")]
    for attempt in attempts:
        with pytest.raises(LogUnavailable, match="the bucket or container does not exist"):
            attempt()


SECRETS = {
    "AWS_ACCESS_KEY_ID": "secret-of-ours-1",
    "AWS_SECRET_ACCESS_KEY": "secret-of-ours-2",
    "AWS_SESSION_TOKEN": "secret-of-ours-3",
    "GOOGLE_BEARER_TOKEN": "secret-of-ours-4",
    "AZURE_STORAGE_SAS_TOKEN": "sv=2024&sig=secret-of-ours-5",
    "AZURE_STORAGE_ACCOUNT_NAME": "tests",
}


def elsewhere(url: str) -> dict[str, str]:
    """The environment in which all three services are at `url`."""
    allowed = {f"{service}_ALLOW_HTTP": "true" for service in SERVICE.values()}
    return {**SECRETS, **allowed, "AWS_ENDPOINT_URL": url, "GOOGLE_BASE_URL": url, "AZURE_STORAGE_ENDPOINT": url}


def attempts(store: ObjectStore) -> list[Callable[[], object]]:
    return [
        lambda: store.create("updates/1.eg", b""),
        lambda: store.replace("latest.json", b""),
        lambda: store.read("updates/1.eg"),
        lambda: store.stream("updates/1.eg"),
        lambda: store.delete("updates/1.eg"),
        lambda: store.names("updates"),
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_refusal_is_told_with_its_code_and_no_secret(scheme: str, bare: pytest.MonkeyPatch) -> None:
    with places.running(ThreadingHTTPServer(("127.0.0.1", 0), places.Refusing)) as url:
        for name, value in elsewhere(url).items():
            bare.setenv(name, value)
        for attempt in attempts(open_log(f"{scheme}://bucket/log").store):
            with pytest.raises(LogUnavailable) as caught:
                attempt()
            assert "the server answered 403 Forbidden (Denied)" in caught.value.reason
            shown = "".join(traceback.format_exception(caught.value))
            assert "secret-of-ours" not in shown
            assert "\n" not in caught.value.reason


@pytest.mark.parametrize("scheme", SCHEMES)
def test_place_that_is_gone_is_told_within_seconds(scheme: str, bare: pytest.MonkeyPatch) -> None:
    for name, value in elsewhere("http://127.0.0.1:1").items():
        bare.setenv(name, value)
    for attempt in attempts(open_log(f"{scheme}://bucket/log").store):
        with pytest.raises(LogUnavailable, match="the connection was refused"):
            attempt()


@pytest.mark.parametrize("scheme", ["s3", "az"])  # where Google's is told to be at a plain address, it may be
def test_plain_http_is_refused_unless_it_is_allowed(scheme: str, bare: pytest.MonkeyPatch) -> None:
    for name, value in elsewhere("http://127.0.0.1:1").items():
        if not name.endswith("ALLOW_HTTP"):
            bare.setenv(name, value)
    with pytest.raises(LogUnavailable, match=f"{SERVICE[scheme]}_.*ALLOW_HTTP=true"):
        open_log(f"{scheme}://bucket/log").store.read("evergrad.json")


def test_what_the_environment_lacks_or_says_wrongly_is_told(bare: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        open_log("az://container/log")
    bare.setenv("GOOGLE_SERVICE_ACCOUNT", "/nowhere/secret-of-ours.json")
    with pytest.raises(ConfigError, match=r"check its GOOGLE_\* variables") as caught:
        open_log("gs://bucket/log")
    assert "secret-of-ours" not in str(caught.value)


def test_opening_contacts_nobody(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("AZURE_STORAGE_ACCOUNT_NAME", "tests")
    for scheme in SCHEMES:
        assert open_log(f"{scheme}://bucket.invalid/log", create=True).url == f"{scheme}://bucket.invalid/log"
