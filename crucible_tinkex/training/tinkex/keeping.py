"""The checkpoints of one session under the names of the seed's manager: listed, chosen, pruned.

Those of a sweep are `weights.checkpoints`' business. The newest one is never deleted, for the
session goes on from it after a loss. What is to be deleted leaves the list first; where the service
does not do it, the next prune goes on. The original's prune always kept the smallest values, kept
checkpoints without the metric for ever, and deleted nothing on the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from crucible_tinkex.client.interface import SamplingClient
from crucible_tinkex.errors import ConfigError, ServiceError
from crucible_tinkex.metrics import Direction
from crucible_tinkex.telemetry.bridge import Bridge
from crucible_tinkex.training.tinkex.results import Checkpoint, best_first
from crucible_tinkex.training.tinkex.service.live import LiveModel


class SessionCheckpoints:
    """See the module. Works while the session trains, too."""

    def __init__(
        self,
        saved: list[Checkpoint],
        live: LiveModel,
        bridge: Bridge,
        check_open: Callable[[], None],
    ) -> None:
        """`saved`: the list that the session appends to."""
        self._saved = saved
        self._live = live
        self._bridge = bridge
        self._check_open = check_open
        self._deleting = asyncio.Lock()
        self._buried: list[tuple[Checkpoint, str]] = []
        """Left the list, and are still on the service, with the event that will say so."""

    def list_checkpoints(self) -> list[Checkpoint]:
        """Oldest first."""
        return list(self._saved)

    def get_best_checkpoint(self, metric: str, direction: Direction | None = None) -> Checkpoint:
        """By default in the metric's own direction. Raises `ConfigError` if none has a finite
        value."""
        if found := best_first(self._saved, metric, direction):
            return found[0]
        names = sorted({name for c in self._saved for name in c.metrics})
        raise ConfigError(
            f"no checkpoint has a finite {metric!r}; measured: {', '.join(names) or 'nothing'}"
        )

    async def load_for_sampling(self, checkpoint: str | Checkpoint) -> SamplingClient:
        """By name or path. Raises `ConfigError` for one that there is not."""
        self._check_open()
        return await self._live.sampler_of(self._live.find(checkpoint, None))

    async def prune_checkpoints(
        self,
        keep_count: int,
        metric: str,
        direction: Direction | None = None,
        *,
        dry_run: bool = False,
    ) -> list[Checkpoint]:
        """Keep the `keep_count` best and the newest, delete the others on the service, and give
        them. Raises `ConfigError` where no checkpoint has the metric, `ServiceError`."""
        if keep_count < 0:
            raise ConfigError(f"keep_count = {keep_count} must be at least 0")
        self._check_open()
        if not self._saved:
            return []
        self.get_best_checkpoint(metric, direction)
        best = best_first(self._saved, metric, direction)[:keep_count]
        gone = [c for c in self._saved[:-1] if c not in best]
        if not dry_run:
            await self._delete(gone, "checkpoint_pruned")
        return gone

    async def delete(self, checkpoint: str | Checkpoint) -> None:
        """One of this session, but not the newest. Raises `ConfigError`, `ServiceError`."""
        self._check_open()
        found = self._live.find(checkpoint, None)
        if found not in self._saved:
            raise ConfigError(f"{found.name!r} is no checkpoint of this session")
        if found == self._saved[-1]:
            raise ConfigError(f"{found.name!r} is the newest: the session goes on from it")
        await self._delete([found], "checkpoint_deleted")

    async def _delete(self, gone: Sequence[Checkpoint], event: str) -> None:
        self._saved[:] = [c for c in self._saved if c not in gone]
        self._buried += [(c, event) for c in gone]
        async with self._deleting:
            while self._buried:
                checkpoint, told = self._buried[0]
                await self._bury(checkpoint)
                self._buried.pop(0)
                self._bridge.execute(told, {"step": checkpoint.step}, checkpoint=checkpoint.name)

    async def _bury(self, checkpoint: Checkpoint) -> None:
        for path in filter(None, (checkpoint.path, checkpoint.sampler_path)):
            try:
                await self._live.service.delete_checkpoint(path)
            except ServiceError as error:
                raise error.with_context(checkpoint=path, again="prune goes on") from None
