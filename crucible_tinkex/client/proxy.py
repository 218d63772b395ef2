"""The HTTP proxy between here and a service, as the environment names it.

HTTPS_PROXY or HTTP_PROXY by the service's scheme, else ALL_PROXY, in either case, as the standard
library reads them; NO_PROXY exempts hosts, domains and networks (`10.0.0.0/8`). This machine is
never asked for through a proxy. A proxy's user name and password, from its URL, go into one
header and into no repr, pickle or message.
"""

from __future__ import annotations

import ipaddress
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

from crucible_tinkex.client.address import Address
from crucible_tinkex.errors import ConfigError

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """`secure`: the way to the proxy itself is encrypted. `authorization` is a header's value."""

    secure: bool
    host: str
    port: int
    authorization: bytes | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{_bracketed(self.host)}:{self.port}"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Proxy may hold a password and cannot be pickled")

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """For the proxy only: never inside a tunnel."""
        given = self.authorization
        return [] if given is None else [(b"Proxy-Authorization", given)]

    def connect_request(self, address: Address) -> bytes:
        """Asks for a tunnel to `address`."""
        place = f"{_bracketed(address.host)}:{address.port}".encode()
        lines = [b"CONNECT %s HTTP/1.1" % place, b"Host: " + place]
        lines += [name + b": " + value for name, value in self.headers]
        return b"\r\n".join(lines) + b"\r\n\r\n"


def proxy_for(address: Address) -> Proxy | None:
    """The proxy for `address`, if there is one. Raises `ConfigError` for one that is no use."""
    if address.is_loopback:
        return None
    # Nothing is raised where the URL, and so the password, is in a frame that a traceback shows.
    found = _found(address)
    if isinstance(found, str):
        raise ConfigError(found)
    return found


def _found(address: Address) -> Proxy | str | None:
    """A proxy, or what is wrong with it."""
    # 10 ms of standard library that a client on this machine does not need.
    request: Any = import_module("urllib.request")
    proxies: Mapping[str, str] = request.getproxies()
    scheme = "https" if address.secure else "http"
    url = proxies.get(scheme) or proxies.get("all")
    if not url:
        return None
    if request.proxy_bypass_environment(address.authority, proxies):
        return None
    if _in_networks(address.host, proxies.get("no", "")):
        return None
    return _parsed(url, address)


def _parsed(url: str, address: Address) -> Proxy | str:
    try:
        parts = urlsplit(url.strip() if "://" in url else f"http://{url.strip()}")
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port or _PORTS.get(parts.scheme, 1080)
    except ValueError:
        host = ""
    if not host:
        return f"the proxy that the environment names for {address} is not a URL"
    if parts.scheme not in _PORTS:
        return (
            f"the proxy {parts.scheme}://{_bracketed(host)}:{port} for {address} is not an HTTP "
            f"proxy; only http:// and https:// ones are supported (NO_PROXY={address.host} goes "
            "without)"
        )
    return Proxy(parts.scheme == "https", host, port, _authorization(parts))


def _authorization(parts: SplitResult) -> bytes | None:
    if not parts.username and not parts.password:
        return None
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return b"Basic " + b64encode(f"{user}:{password}".encode())


def _in_networks(host: str, no_proxy: str) -> bool:
    """What the standard library leaves out: networks, and IPv6 addresses without brackets."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in no_proxy.split(","):
        try:
            if address in ipaddress.ip_network(entry.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
