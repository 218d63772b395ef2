"""Which implementation of `TrainingService` talks to a service: our client, or the official SDK."""

from __future__ import annotations

from importlib import import_module
from typing import Literal, TypeAlias

from crucible_tinkex.client.interface import TrainingService
from crucible_tinkex.client.service import TinkexService
from crucible_tinkex.client.settings import ClientSettings
from crucible_tinkex.errors import ConfigError

ServiceTransport: TypeAlias = Literal["http", "sdk"]


def open_service(
    base_url: str | None = None,
    *,
    api_key_file: str | None = None,
    transport: ServiceTransport = "http",
    settings: ClientSettings | None = None,
) -> TrainingService:
    """A service that has not been asked anything yet; the caller closes it.

    Raises `ConfigError` for a wrong URL, and for `sdk` where the SDK is not installed.
    """
    if transport == "http":
        return TinkexService(base_url, api_key_file=api_key_file, settings=settings)
    try:
        sdk = import_module("crucible_tinkex.client.sdk")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "tinker":
            raise
        raise ConfigError(
            "service.transport 'sdk' needs the official SDK: pip install 'crucible-tinkex[sdk]'"
        ) from None
    made: TrainingService = sdk.SdkService(base_url, api_key_file=api_key_file, settings=settings)
    return made
