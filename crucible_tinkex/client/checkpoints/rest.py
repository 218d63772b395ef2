"""The account's checkpoints: lists, changes, downloads.

Needs no service session. Listings are asked for page by page, and end at an empty page, at the
total that the service tells, or at `MAX_PAGES`. Deleting what is gone succeeds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from crucible_tinkex.client.checkpoints.download import Download, DownloadLimits, Progress
from crucible_tinkex.client.http.encoding import nothing, reads
from crucible_tinkex.client.http.exchange import Reply
from crucible_tinkex.client.http.transport import Call
from crucible_tinkex.client.session.live_session import LiveSession
from crucible_tinkex.errors import RequestRejectedError, ServiceError, SessionLostError
from crucible_tinkex.names import CHECKPOINT_KINDS, TinkerPath
from crucible_tinkex.protocol.listings import (
    ArchiveUrl,
    Checkpoint,
    CheckpointPage,
    FileUrls,
    TtlRequest,
)
from crucible_tinkex.protocol.wire import WeightsInfo, WeightsInfoRequest, Wire

R = TypeVar("R", bound=Wire)
MAX_PAGES = 10_000
_GONE = frozenset({404, 410})
_REDIRECTS = frozenset({302, 303, 307})
_NO_SUCH_ROUTE = frozenset({404, 405})
_ARCHIVE_S = 600.0
"""How long a service may take to build an archive, answering 503 meanwhile."""


class RestClient:
    """Made by `TinkexService.rest`. Raises `ServiceError`, and `ConfigError` for wrong paths."""

    def __init__(self, live: LiveSession) -> None:
        self._live = live

    async def checkpoints(
        self, run_id: str | None = None, *, page: int = 100
    ) -> AsyncIterator[Checkpoint]:
        """Those of one run (which come in one page), or all of the user's."""
        if run_id is not None:
            path = f"training_runs/{quote(run_id, safe=':')}/checkpoints"
            for checkpoint in (await self._get(path, CheckpointPage)).checkpoints:
                yield checkpoint
            return
        offset = 0
        for _ in range(MAX_PAGES):
            path = f"checkpoints?limit={page}&offset={offset}"
            found = await self._get(path, CheckpointPage)
            for checkpoint in found.checkpoints:
                yield checkpoint
            count = len(found.checkpoints)
            offset += count
            total = found.cursor.total_count if found.cursor is not None else None
            if count == 0 or (count < page if total is None else offset >= total):
                return

    async def weights_info(self, path: str) -> WeightsInfo:
        """What a model from this checkpoint must look like."""
        TinkerPath.read(path)
        body = WeightsInfoRequest(tinker_path=path).body()
        return await self._live.call(Call("weights_info", body=body), reads(WeightsInfo))

    async def delete(self, path: str) -> None:
        call = Call("delete_checkpoint", _place(path), method="DELETE", accepts=_GONE)
        await self._live.call(call, nothing)

    async def set_ttl(self, path: str, ttl_s: int | None) -> None:
        """Keep for `ttl_s` seconds from now; None: for ever."""
        body = TtlRequest(ttl_seconds=ttl_s).body()
        call = Call("checkpoint_ttl", f"{_place(path)}/ttl", body, method="PUT")
        await self._live.call(call, nothing)

    # --- downloads ----------------------------------------------------------------------------

    async def download(
        self,
        path: str,
        folder: str | Path,
        *,
        progress: Progress | None = None,
        limits: DownloadLimits | None = None,
    ) -> list[Path]:
        """The checkpoint's files, below `folder`, which must not exist. All of them or none.

        Services offer an archive (older) or one URL per file (newer); both are tried. The URLs
        are signed, may be on another host, and are fetched without the API key.
        """
        download = Download(
            self._live.transport().clock, Path(folder), progress=progress, limits=limits
        )
        try:
            urls = await self._get(f"{_place(path)}/external_weights_urls", FileUrls)
        except (RequestRejectedError, SessionLostError):
            return await download.archive(await self._archive_url(path))
        return await download.files(urls.urls)

    async def _archive_url(self, path: str) -> str:
        try:
            return await self._archive_at(_place(path))
        except (RequestRejectedError, SessionLostError) as refusal:
            if refusal.status not in _NO_SUCH_ROUTE:
                raise
            checkpoint = TinkerPath.read(path)
            try:  # Some services have the bare name here.
                return await self._archive_at(_bare(checkpoint))
            except ServiceError:
                raise refusal from None

    async def _archive_at(self, place: str) -> str:
        path = f"{place}/archive"
        call = Call("checkpoint_archive", path, None, "GET", accepts=_REDIRECTS, total_s=_ARCHIVE_S)
        return await self._live.call(call, _archive_location)

    async def _get(self, path: str, model: type[R]) -> R:
        operation = path.split("?", 1)[0].split("/", 1)[0]
        return await self._live.call(Call(operation, path, method="GET"), reads(model))


def _archive_location(reply: Reply) -> str:
    """The one redirect that is followed: by us, and without the key."""
    if reply.status in _REDIRECTS:
        location = reply.header("location")
        if not location:
            raise ValueError("a redirect without a Location")
        return location
    return ArchiveUrl.model_validate_json(reply.body).url


def _place(path: str) -> str:
    checkpoint = TinkerPath.read(path)
    if checkpoint.kind not in CHECKPOINT_KINDS:
        return _bare(checkpoint)  # As a service with a kind of its own lists them.
    return f"training_runs/{checkpoint.run_id}/checkpoints/{checkpoint.checkpoint_id}"


def _bare(checkpoint: TinkerPath) -> str:
    return f"training_runs/{checkpoint.run_id}/checkpoints/{checkpoint.name}"
