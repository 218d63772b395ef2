"""A service that answers, and the data in its model's tokens: found out once, handed to everybody.

The driver resolves address, place of the key and transport; sessions use what it resolved and never
read an environment of their own. The key itself stays in its file or variable.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from crucible_tinkex.client.resolved import ResolvedService
from crucible_tinkex.config import ServiceSection
from crucible_tinkex.datasets import load_tokenizer
from crucible_tinkex.protocol.capabilities import SupportedModel
from crucible_tinkex.runtime.embedded import EmbeddedServer
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep
from crucible_tinkex.training.data import SweepData


@dataclass(frozen=True)
class Connection:
    """What a run trains on."""

    service: ResolvedService
    model: SupportedModel
    data: SweepData


def is_reachable(section: ServiceSection) -> bool:
    """Whether other machines than this one reach the service. Raises `ConfigError`."""
    return not section.embedded and not resolved(section).is_local


def resolved(section: ServiceSection) -> ResolvedService:
    """Where a service is that is not embedded. Raises `ConfigError`."""
    return ResolvedService.of(
        section.base_url,
        api_key_file=section.api_key_file,
        transport=section.transport,
        allow_http=section.allow_http,
    )


@contextlib.asynccontextmanager
async def connected(
    prepared: PreparedSweep,
    *,
    data_dir: Path | None = None,
    service: ResolvedService | None = None,
) -> AsyncIterator[Connection]:
    """Yield a `Connection`; start the embedded server if the experiment asks for it. `service`: the
    one that it asks for, which runs already."""
    section = prepared.experiment.service
    server = None
    try:
        if section.embedded and service is None:
            base = prepared.experiment.model.base
            server = EmbeddedServer(
                section,
                model=base,
                data_dir=data_dir or prepared.paths.service,
                otlp_endpoint=prepared.experiment.run.otlp_endpoint,
            )
            endpoint = await server.start()
            service = ResolvedService(endpoint.base_url, endpoint.api_key_file, section.transport)
        yield await _check(prepared, service or resolved(section))
    finally:
        if server:
            server.stop()


async def _check(prepared: PreparedSweep, service: ResolvedService) -> Connection:
    """Ask what the service has, and tokenise for it."""
    experiment = prepared.experiment
    client = service.over_http()
    try:
        model = (await client.capabilities()).model(experiment.model.base)
    finally:
        await client.close()
    tokenizer = experiment.model.tokenizer or model.tokenizer_id or model.model_name
    return Connection(service, model, prepared.tokenised(load_tokenizer(tokenizer), tokenizer))
