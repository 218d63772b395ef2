"""Which implementation of `TrainingService` talks to a service: our client, or the official SDK."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import Literal, TypeAlias

from crucible_tinkex.client.http.address import Address
from crucible_tinkex.client.http.key import ApiKey
from crucible_tinkex.client.http.transport import hold_back as hold_transports
from crucible_tinkex.client.http.watch import Observer
from crucible_tinkex.client.interface import TrainingService
from crucible_tinkex.client.service import TinkexService
from crucible_tinkex.client.session.settings import ClientSettings
from crucible_tinkex.errors import ConfigError

ServiceTransport: TypeAlias = Literal["http", "sdk"]


def open_service(
    base_url: str | None = None,
    *,
    api_key_file: str | None = None,
    allow_http: bool | Collection[str] = False,
    transport: ServiceTransport = "http",
    settings: ClientSettings | None = None,
    observer: Observer | None = None,
) -> TrainingService:
    """A service that has not been asked anything yet; the caller closes it.

    `observer` hears of our own client only: the SDK keeps its waits to itself and its log. Raises
    `ConfigError` for a wrong URL, and for `sdk` where the SDK is not installed.
    """
    if transport == "http":
        return TinkexService(
            base_url,
            api_key_file=api_key_file,
            allow_http=allow_http,
            settings=settings,
            observer=observer,
        )
    try:
        sdk = import_module("crucible_tinkex.client.sdk.sdk_service")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "tinker":
            raise
        raise ConfigError(
            "service.transport 'sdk' needs the official SDK: pip install 'crucible-tinkex[sdk]'"
        ) from None
    made: TrainingService = sdk.SdkService(
        base_url, api_key_file=api_key_file, allow_http=allow_http, settings=settings
    )
    return made


def hold_back(
    base_url: str | None,
    *,
    api_key_file: str | None,
    until: float,
    allow_http: bool | Collection[str] = False,
) -> None:
    """Let all sessions of this process that share the address and key send nothing before `until`
    (seconds of the Unix clock), because the service asked another process to slow down."""
    hold_transports(Address.parse(base_url, allow_http=allow_http), ApiKey(api_key_file), until)
