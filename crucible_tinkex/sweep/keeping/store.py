"""The checkpoints of a service, as the keeper needs them, and the models that they became."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crucible_tinkex.client.resolved import ResolvedService
from crucible_tinkex.client.service import TinkexService
from crucible_tinkex.registry.models import ModelRegistry


class ServiceCheckpoints:
    """A `CheckpointStore` on the sweep's service; connects when it is first needed."""

    def __init__(self, service: ResolvedService) -> None:
        self._service = service
        self._client: TinkexService | None = None

    async def delete(self, path: str) -> None:
        await self._connected().rest.delete(path)

    async def set_ttl(self, path: str, ttl_s: int | None) -> None:
        await self._connected().rest.set_ttl(path, ttl_s)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def _connected(self) -> TinkexService:
        if self._client is None:
            self._client = self._service.over_http()
        return self._client


def registered(storage: Path) -> dict[str, Sequence[str]]:
    """Ids of the storage's models, by checkpoint path."""
    found: dict[str, list[str]] = {}
    for model in ModelRegistry.open(storage).list_models():
        found.setdefault(model.checkpoint_path, []).append(model.id)
    return {**found}
