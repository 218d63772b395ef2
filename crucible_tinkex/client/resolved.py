"""The one service of a sweep: found out by the driver, carried to every session process.

Holds the place of the key, never the key; picklable. Whoever has it reads no environment for the
address (law of the house: sessions train on the service that the driver checked). It also knows
which implementation of `TrainingService` talks to it: our client, or the official SDK.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, TypeAlias

from crucible_tinkex.client.http.address import Address
from crucible_tinkex.client.http.key import ApiKey
from crucible_tinkex.client.http.settings import ClientSettings
from crucible_tinkex.client.http.transport import hold_back
from crucible_tinkex.client.http.watch import Observer
from crucible_tinkex.client.interface import TrainingService
from crucible_tinkex.client.service import TinkexService
from crucible_tinkex.errors import ConfigError

ServiceTransport: TypeAlias = Literal["http", "sdk"]


@dataclass(frozen=True)
class ResolvedService:
    """Where a sweep trains."""

    base_url: str
    api_key_file: str | None = None
    transport: ServiceTransport = "http"
    allow_http: bool | tuple[str, ...] = False

    @classmethod
    def of(
        cls,
        base_url: str | None,
        *,
        api_key_file: str | None,
        transport: ServiceTransport,
        allow_http: bool | tuple[str, ...] = False,
    ) -> ResolvedService:
        """Without `base_url`: TINKER_BASE_URL of this process, else hosted Tinker."""
        address = Address.parse(base_url, allow_http=allow_http)
        return cls(str(address), api_key_file, transport, allow_http)

    @property
    def _address(self) -> Address:
        return Address.parse(self.base_url, allow_http=self.allow_http)

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return self._address.is_loopback

    def connect(self, observer: Observer | None = None) -> TrainingService:
        """A new session's client, which has not asked anything yet; the caller closes it.

        `observer` hears of our own client only: the SDK keeps its waits to itself and its log.
        Raises `ConfigError` for a wrong URL, and for `sdk` where the SDK is not installed.
        """
        if self.transport == "http":
            return self.over_http(observer)
        if find_spec("tinker") is None:
            raise ConfigError(
                "service.transport 'sdk' needs the official SDK: pip install 'crucible-tinkex[sdk]'"
            )
        sdk = import_module("crucible_tinkex.client.sdk.sdk_service")
        made: TrainingService = sdk.SdkService(
            self.base_url, api_key_file=self.api_key_file, allow_http=self.allow_http
        )
        return made

    def over_http(
        self, observer: Observer | None = None, settings: ClientSettings | None = None
    ) -> TinkexService:
        """The same by our own client, whatever the transport of the training."""
        return TinkexService(
            self.base_url,
            api_key_file=self.api_key_file,
            allow_http=self.allow_http,
            observer=observer,
            settings=settings,
        )

    async def make_room(self) -> None:
        """Another process found the service full: unload what ended sessions of this one left."""
        async with self.over_http() as service:
            await service.make_room()

    def hold_back(self, until: float) -> None:
        """Let all sessions of this process send nothing before `until` (Unix seconds)."""
        hold_back(self._address, ApiKey(self.api_key_file), until)
