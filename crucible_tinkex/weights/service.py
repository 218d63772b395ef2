"""The service on which a sweep trained, for what is done with its weights afterwards.

The embedded server is started on the sweep's data, or, while the sweep runs, the one that runs is
used: two never work on the same data. That one ends with its run, and then so does what used it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from crucible_tinkex.client.resolved import ResolvedService
from crucible_tinkex.client.service import TinkexService
from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import ConfigError, ServiceError, ServiceUnavailableError
from crucible_tinkex.names import SERVER_LOCK, SweepPaths, TinkerPath
from crucible_tinkex.registry import CheckpointRecord
from crucible_tinkex.runtime.embedded import EmbeddedServer
from crucible_tinkex.storage import is_locked

T = TypeVar("T")
POLL_S = 0.5
MADE_TTL_S = 24 * 3600
"""How long a checkpoint is kept that was made only to sample from an older one."""


class RunEndedError(ServiceUnavailableError):
    """The run whose server was used has ended."""


@contextlib.asynccontextmanager
async def service_of(
    paths: SweepPaths, experiment: Experiment, *, owned: bool = False
) -> AsyncIterator[TinkexService]:
    """A client of the sweep's service; closed, and the server ended, with the context. `owned`: the
    caller holds the sweep's lock, so nobody runs it. Where it is the server of a run that ends, the
    block is left with `RunEndedError`."""
    section = experiment.service
    async with contextlib.AsyncExitStack() as stack:
        if not section.embedded:
            found = ResolvedService.of(
                section.base_url,
                api_key_file=section.api_key_file,
                transport="http",
                allow_http=section.allow_http,
            )
        elif not owned and is_locked(paths.lock):
            found = _running(paths.service)
            await stack.enter_async_context(_while_it_runs(paths))
        else:
            if not paths.service.is_dir():
                raise ConfigError(f"{paths.service} is gone, and with it the sweep's checkpoints")
            server = EmbeddedServer(section, model=experiment.model.base, data_dir=paths.service)
            stack.callback(server.stop)
            endpoint = await server.start()
            found = ResolvedService(endpoint.base_url, endpoint.api_key_file)
        service = found.over_http()
        stack.push_async_exit(service)
        yield service


@contextlib.asynccontextmanager
async def _while_it_runs(paths: SweepPaths) -> AsyncIterator[None]:
    """Ends the block where the run of a sweep ends: its server answers no more. Says so also where
    who held the block open took its cancellation for the end (anyio's portal, of a chat)."""

    async def watch() -> None:
        while is_locked(paths.lock):
            await asyncio.sleep(POLL_S)
        run.reschedule(asyncio.get_running_loop().time())

    run = asyncio.timeout(None)
    try:
        async with run:
            watching = asyncio.create_task(watch())
            try:
                yield
            finally:
                watching.cancel()
    except TimeoutError:
        if not run.expired():
            raise
    if run.expired():
        name = paths.root.name
        raise RunEndedError(
            f"the run of sweep {name!r} has ended, and the server that it had; try again"
        )


def _running(folder: Path) -> ResolvedService:
    """Raises `ConfigError` where no server is up: what an earlier one said still lies there until
    the run starts its own."""
    starting = ConfigError("the sweep is just starting; try again in a moment")
    if not is_locked(folder / SERVER_LOCK):
        raise starting
    try:
        found = json.loads((folder / "ready.json").read_text())
    except (OSError, ValueError):
        raise starting from None
    return ResolvedService(found["base_url"], found["api_key_file"])


async def sampling_path(service: TinkexService, checkpoint: CheckpointRecord) -> str:
    """Where the weights can be sampled from and downloaded; made of a resumable checkpoint where
    there is no other."""
    if checkpoint.kind == "sampler":
        return checkpoint.path
    training = await service.create_training_from_state(checkpoint.path, optimizer=False)
    name = f"{TinkerPath.read(checkpoint.path).name}-for-sampling"
    try:
        return await training.save_for_sampler(name, ttl_s=MADE_TTL_S)
    except ServiceError as e:
        raise e.with_context(checkpoint=checkpoint.path) from None


def blocking(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, also where an event loop runs already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
