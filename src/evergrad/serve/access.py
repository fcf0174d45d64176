"""Who may ask: an optional bearer token, TLS, and what is for this machine alone."""

from __future__ import annotations

import hmac
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from evergrad.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """A certificate chain and its key, both PEM.

    Raises:
        ConfigError: they cannot be used.
    """

    cert: Path
    key: Path

    def __post_init__(self) -> None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError("tls", f"{self.cert} with {self.key} cannot be used: {error}") from error


@dataclass(frozen=True, slots=True)
class Token:
    """A secret that requests carry as `Authorization: Bearer ...`; compared in a time that tells nothing.

    Raises:
        ConfigError: too short to be a secret.
    """

    secret: str

    def __post_init__(self) -> None:
        if len(self.secret) < 16 or not self.secret.isascii() or not self.secret.isprintable():
            raise ConfigError("token", "must be 16 or more printable ASCII characters")

    def __repr__(self) -> str:
        return "Token(...)"

    def opens(self, header: str | None) -> bool:
        """Whether the value of an Authorization header carries it."""
        kind, _, found = (header or "").partition(" ")
        mine, other = self.secret.encode(), found.strip().encode(errors="replace")
        return kind.lower() == "bearer" and hmac.compare_digest(mine, other)


def is_loopback(host: str | None) -> bool:
    """Whether an address is this machine's own.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("192.0.2.1"), is_loopback(None)
    (True, True, False, False)
    """
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
