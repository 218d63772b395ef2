"""Where an adapter's session trains: what may be given as a service, and how a session opens it."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from crucible_tinkex.client.http.watch import Observer
from crucible_tinkex.client.interface import TrainingService
from crucible_tinkex.client.resolved import ResolvedService
from crucible_tinkex.config import EMBEDDED
from crucible_tinkex.datasets import Tokenizer, load_tokenizer
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.training.adapter.experiment import AdapterConfig, adopt_key, environment_url


class Connectable(Protocol):
    """What `crucible_tinkex.embedded_server` gives, and `client.ResolvedService` is."""

    def connect(self, observer: Observer | None = None) -> TrainingService: ...


Connect: TypeAlias = Callable[[Observer], TrainingService]
Source: TypeAlias = TrainingService | Connectable | Connect | None
"""A service that is open (one session only), something that connects, a function, or None: what
the experiment's configuration says."""


def connector(source: Any, config: AdapterConfig) -> Connect:
    """A function that opens the service of one session. Raises `ConfigError`."""
    if source is None:
        return _configured(config)
    if callable(getattr(source, "connect", None)):
        return lambda observer: source.connect(observer)
    if callable(getattr(source, "create_training", None)):
        return lambda observer: source
    if callable(source):
        return source  # type: ignore[no-any-return]
    raise ConfigError(f"service = {source!r} is no training service and does not make one")


def _configured(config: AdapterConfig) -> Connect:
    if config.base_url == EMBEDDED:
        raise ConfigError(
            "an adapter starts no server; write `with crucible_tinkex.embedded_server() as server` "
            "and give service=server"
        )
    url = config.base_url or environment_url()
    if adopt_key() or (config.base_url is None and url is not None):
        warnings.warn(
            "TINKEX_API_KEY and TINKEX_BASE_URL are the seed's names; use TINKER_API_KEY and "
            "TINKER_BASE_URL",
            DeprecationWarning,
            stacklevel=2,
        )
    service = ResolvedService.of(
        url,
        api_key_file=config.api_key_file,
        transport=config.transport,
        allow_http=config.allow_http,
    )
    return service.connect


async def tokenizer_of(
    service: TrainingService, config: AdapterConfig, given: Tokenizer | str | None
) -> Tokenizer:
    """The given one, the configuration's, or the service's of this base."""
    if isinstance(given, Tokenizer):
        return given
    name = given or config.tokenizer
    if name is None:
        model = (await service.capabilities()).model(config.base_model)
        name = model.tokenizer_id or config.base_model
    return await asyncio.to_thread(load_tokenizer, name)
