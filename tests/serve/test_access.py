"""Who may ask: the bearer token over both protocols, TLS, and what is for this machine alone."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import ssl
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from evergrad.errors import ConfigError, ServerError
from evergrad.serve.access import Tls, Token, is_loopback
from evergrad.serve.client import InferenceClient
from evergrad.serve.sdk import messages, services
from evergrad.serve.server import Server, Settings
from tests.serve.support import BATCH, Training, ask, request_of, serving, until

SECRET = "a-secret-of-enough-letters"  # noqa: S105


@pytest.mark.parametrize("header", [None, "", "Bearer", f"Bearer {SECRET}x", f"Basic {SECRET}", SECRET, "Bearer \xff"])
def test_without_the_token_nothing_but_health_is_told(tmp_path: Path, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    with serving(Training(tmp_path).servable(), token=Token(SECRET)) as (server, client):
        until(client.ready)
        body = json.dumps(request_of(BATCH)).encode()
        for method, path in (
            ("POST", "/v2/models/model/infer"),
            ("GET", "/v2"),
            ("GET", "/metrics"),
            ("GET", "/openapi.json"),
            ("POST", "/v2/models/model/candidate/promote"),
            ("GET", "/nothing"),
        ):
            status, found, answer = ask(server.url, method, path, body, headers)
            assert (status, found["WWW-Authenticate"], list(json.loads(answer))) == (401, "Bearer", ["error"])
        assert ask(server.url, "GET", "/v2/health/live", headers=headers)[0] == 200
        assert client.infer(BATCH).version == 0
        assert b'"bearer"' in ask(server.url, "GET", "/openapi.json", headers={"Authorization": f"bearer {SECRET}"})[2]


def test_the_token_over_grpc(tmp_path: Path) -> None:
    with serving(Training(tmp_path).servable(), token=Token(SECRET), grpc_port=0) as (server, client):
        until(client.ready)
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stub = services.GRPCInferenceServiceStub(channel)
            assert stub.ServerLive(messages.ServerLiveRequest()).live
            request = messages.ModelReadyRequest(name="model")
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelReady(request, metadata=(("authorization", "Bearer wrong"),))
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert stub.ModelReady(request, metadata=(("authorization", f"Bearer {SECRET}"),)).ready


@pytest.mark.parametrize("secret", ["", "short", "with a line\nbreak and more", "\u00fcmlauts-are-not-ascii"])
def test_what_is_no_token(secret: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        Token(secret)


def test_a_token_is_not_shown() -> None:
    assert SECRET not in repr(Settings(token=Token(SECRET)))


def _certificate(folder: Path) -> Tls:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return Tls(cert=folder / "cert.pem", key=folder / "key.pem")


def test_tls_for_both_protocols(tmp_path: Path) -> None:
    tls = _certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(tls.cert))
    settings = Settings(port=0, grpc_port=0, tls=tls)
    with Server(Training(tmp_path / "log").servable(), settings) as server:
        assert server.url.startswith("https://127.0.0.1:")
        with InferenceClient(server.url, tls=trust, timeout_s=60) as client:
            until(client.ready)
            assert client.infer(BATCH).version == 0
        with InferenceClient(server.url) as stranger, pytest.raises(ServerError, match="certificate"):
            stranger.infer(BATCH)
        credentials = grpc.ssl_channel_credentials(tls.cert.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", credentials) as channel:
            stub = services.GRPCInferenceServiceStub(channel)
            assert stub.ServerReady(messages.ServerReadyRequest()).ready


def test_a_certificate_that_cannot_be_used(tmp_path: Path) -> None:
    tls = _certificate(tmp_path)
    for cert, key in ((tls.cert, tls.cert), (tmp_path / "none.pem", tls.key)):
        with pytest.raises(ConfigError, match="cannot be used"):
            Tls(cert=cert, key=key)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "::2", "::ffff:10.0.0.1", "localhost", "", None])
def test_not_this_machine(host: str | None) -> None:
    assert not is_loopback(host)
