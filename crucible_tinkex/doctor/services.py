"""Whether what a run works with answers: the embedded server and Ray, really started, or a service
and a cluster elsewhere."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from crucible_tinkex.client.http.address import BASE_URL_VARIABLE
from crucible_tinkex.client.http.key import KEY_FILE_VARIABLE, KEY_VARIABLE
from crucible_tinkex.client.http.settings import ClientSettings
from crucible_tinkex.client.resolved import ResolvedService
from crucible_tinkex.config import ServiceSection
from crucible_tinkex.doctor.finding import Note
from crucible_tinkex.runtime.cluster import Runtime
from crucible_tinkex.runtime.embedded import EmbeddedServer
from crucible_tinkex.sweep.connection import resolved

CONTACT_S = 5.0
SHOWN = 6
VARIABLES = (KEY_VARIABLE, KEY_FILE_VARIABLE, BASE_URL_VARIABLE)


def embedded(section: ServiceSection, base: str) -> str:
    """Start a server of `base`, in a folder that goes away, and ask it what it has. Raises what
    keeps it from starting."""
    with TemporaryDirectory(prefix="crucible-doctor-", ignore_cleanup_errors=True) as folder:
        return asyncio.run(_started(section, base, Path(folder)))


async def _started(section: ServiceSection, base: str, folder: Path) -> str:
    server = EmbeddedServer(section, model=base, data_dir=folder)
    try:
        endpoint = await server.start()
        await _bases(ResolvedService(endpoint.base_url, endpoint.api_key_file), base)
        return f"starts and answers, with {base}"
    finally:
        server.stop()


def elsewhere(section: ServiceSection, base: str | None) -> str:
    """Ask the service of `section`, or of the environment, for its bases; this costs nothing."""
    if section == ServiceSection() and not any(os.environ.get(name) for name in VARIABLES):
        return Note(
            f"none asked for: {', '.join(VARIABLES)} are not set; the embedded server needs none"
        )
    service = resolved(section)
    return f"{service.base_url} answers; bases: {asyncio.run(_bases(service, base))}"


async def _bases(service: ResolvedService, base: str | None) -> str:
    """The first that the service names. Raises `ConfigError` if `base` is none of them."""
    async with service.over_http(settings=ClientSettings(contact_s=CONTACT_S)) as client:
        capabilities = await client.capabilities()
    if base is not None:
        capabilities.model(base)
    names = [model.model_name for model in capabilities.supported_models]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "it names none"


def cluster(address: str | None) -> str:
    """Start Ray and the actors that every sweep needs, or join the cluster at `address` (else
    `RAY_ADDRESS`), and leave again. Raises what keeps it from working."""
    return asyncio.run(_joined(address))


async def _joined(address: str | None) -> str:
    with await Runtime.start(address) as runtime:
        await runtime.ready()
        nodes, cores = runtime.size()
        return f"{nodes} node{'s' if nodes > 1 else ''}, {cores} cores; actors answer"
