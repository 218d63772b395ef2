"""The embedded service for a script or a notebook that trains without a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from crucible_tinkex.client.resolved import ResolvedService
from crucible_tinkex.config import EMBEDDED, ServiceSection
from crucible_tinkex.runtime.embedded import EmbeddedServer
from crucible_tinkex.training.adapter.blocking import LoopThread


@contextmanager
def embedded_server(
    base: str = "nano",
    *,
    data_dir: str | Path | None = None,
    dtype: Literal["auto", "fp32", "bf16"] = "auto",
    device: Literal["cpu", "cuda", "auto"] = "cpu",
    threads: int | None = None,
) -> Iterator[ResolvedService]:
    """A server of one base that lives until the block ends; give what it yields to an adapter.

    Checkpoints lie in `data_dir`, and by default nowhere that outlives the block. Raises what keeps
    it from starting (an unknown base, no room, no torch).
    """
    section = ServiceSection(base_url=EMBEDDED, dtype=dtype, device=device, threads=threads)
    loop = LoopThread("embedded server")
    try:
        with ExitStack() as stack:
            if data_dir is None:
                folder = TemporaryDirectory(prefix="tinkex-", ignore_cleanup_errors=True)
                data_dir = stack.enter_context(folder)
            yield stack.enter_context(_served(loop, section, base, Path(data_dir)))
    finally:
        loop.close()


@contextmanager
def _served(
    loop: LoopThread, section: ServiceSection, base: str, folder: Path
) -> Iterator[ResolvedService]:
    server = EmbeddedServer(section, model=base, data_dir=folder)

    async def stop() -> None:
        server.stop()

    try:
        endpoint = loop.run(server.start())
        yield ResolvedService(endpoint.base_url, endpoint.api_key_file)
    finally:
        loop.run(stop())
