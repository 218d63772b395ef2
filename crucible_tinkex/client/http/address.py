"""The service's address: the rules that a base URL must obey before the key is sent to it.

https, unless the host is this machine, or http was allowed for it (a service on the user's own
network: the key then crosses it in clear text). No user name in the URL, no query, no link-local
host: 169.254.169.254 and its kin hand out cloud credentials and are never a training service.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from crucible_tinkex.errors import ConfigError

BASE_URL_VARIABLE = "TINKER_BASE_URL"
PUBLIC_BASE_URL = "https://tinker.thinkingmachines.dev/services/tinker-prod"


@dataclass(frozen=True, slots=True)
class Address:
    """A checked base URL. `prefix` is its path, without a trailing slash."""

    secure: bool
    host: str
    port: int
    prefix: str
    is_loopback: bool

    @classmethod
    def parse(
        cls,
        base_url: str | None,
        *,
        allow_http: bool | Collection[str] = False,
        environ: Mapping[str, str] | None = None,
    ) -> Address:
        """Absent `base_url`: TINKER_BASE_URL, else hosted Tinker. `allow_http`: for every host, or
        for those named. Raises `ConfigError`."""
        env = os.environ if environ is None else environ
        text = base_url or env.get(BASE_URL_VARIABLE) or PUBLIC_BASE_URL
        try:
            url = urlsplit(text.strip())
            port = url.port
            host = (url.hostname or "").encode("idna").decode()
        except ValueError as error:
            raise ConfigError(f"the service's base_url is not a URL: {error}") from None
        if "@" in url.netloc:
            raise ConfigError("the service's base_url must not hold a user name or password")
        if url.scheme not in ("http", "https") or not host:
            raise ConfigError(f"the service's base_url {text!r} must be https://HOST[:PORT][/PATH]")
        if url.query or url.fragment or not url.path.isascii() or " " in url.path:
            raise ConfigError(f"the service's base_url {text!r} must end with a plain path")
        secure = url.scheme == "https"
        loopback = _is_loopback(host)
        if not (secure or loopback or _is_allowed(host, allow_http)):
            raise ConfigError(
                f"the service's base_url {text!r} must use https: over http the API key crosses "
                "the network in clear text. On a network you trust, set service.allow_http = "
                f"[{host!r}] (or true, for any host)"
            )
        return cls(secure, host, port or (443 if secure else 80), url.path.rstrip("/"), loopback)

    @property
    def authority(self) -> str:
        """The Host header's value."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.prefix}"


def _is_allowed(host: str, allowed: bool | Collection[str]) -> bool:
    if isinstance(allowed, bool):
        return allowed
    return host in {name.strip("[]").casefold() for name in allowed}


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.split("%", 1)[0])
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None) or address
    if mapped.is_link_local or str(mapped) == "fd00:ec2::254":
        raise ConfigError(f"the service's base_url must not point at the link-local host {host}")
    return bool(mapped.is_loopback)
