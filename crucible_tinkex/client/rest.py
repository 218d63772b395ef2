"""The account's sessions, training runs and checkpoints: lists, changes, downloads.

Needs no service session. Listings are asked for page by page, and end at an empty page, at the
total that the service tells, or at `MAX_PAGES`. Deleting what is gone succeeds.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Set
from pathlib import Path
from secrets import token_hex
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import quote, urlencode

from crucible_tinkex.client.capabilities import ServerCapabilities
from crucible_tinkex.client.download import Download, DownloadLimits, Progress
from crucible_tinkex.client.exchange import Headers, Reply
from crucible_tinkex.client.key import header_secret
from crucible_tinkex.client.pace import Lane
from crucible_tinkex.client.records import (
    ArchiveUrl,
    Checkpoint,
    CheckpointPage,
    CopyWeightsRequest,
    CopyWeightsResponse,
    Cursor,
    FileUrls,
    ProjectRequest,
    SamplerRecord,
    SessionList,
    SessionQuery,
    SessionRecord,
    SessionSearchPage,
    SessionSearchRequest,
    SessionSummary,
    TraceExport,
    TrainingRun,
    TrainingRunPage,
    TtlRequest,
)
from crucible_tinkex.client.transport import IDEMPOTENCY_KEY, NONE, Transport
from crucible_tinkex.client.watch import UNWATCHED, Watch
from crucible_tinkex.client.wire import (
    WeightsInfo,
    WeightsInfoRequest,
    Wire,
)
from crucible_tinkex.errors import (
    OperationFailedError,
    RequestRejectedError,
    ServiceError,
    ServiceUnavailableError,
    SessionLostError,
)
from crucible_tinkex.names import CHECKPOINT_KINDS, TinkerPath

R = TypeVar("R", bound=Wire)
T = TypeVar("T")
MAX_PAGES = 10_000
_GONE = frozenset({404, 410})
_ALREADY = frozenset({409})
"""What hosted Tinker says to a change that was made before, perhaps by a lost attempt of ours."""
_REDIRECTS = frozenset({302, 303, 307})
_NO_SUCH_ROUTE = frozenset({404, 405})
_ARCHIVE_S = 600.0
"""How long a service may take to build an archive, answering 503 meanwhile, or a trace."""
_TRACE_PAUSE_S = 5.0
PROJECT_VARIABLE = "TINKER_PROJECT_ID"


class RestClient:
    """Made by `TinkexService.rest`. Raises `ServiceError`, and `ConfigError` for wrong paths."""

    def __init__(self, transport: Transport, watch: Watch = UNWATCHED) -> None:
        self._transport = transport
        self._watch = watch

    # --- sessions and runs --------------------------------------------------------------------

    async def capabilities(self) -> ServerCapabilities:
        return await self._get("get_server_capabilities", ServerCapabilities)

    async def sessions(self, *, page: int = 100, accessible: bool = False) -> AsyncIterator[str]:
        """Session ids, newest first as the service has it. `accessible`: not only one's own."""
        offset = 0
        for _ in range(MAX_PAGES):
            path = _paged("sessions", page, offset, _scope(accessible))
            found = (await self._get(path, SessionList)).sessions
            for session_id in found:
                yield session_id
            offset += len(found)
            if len(found) < page:
                return

    async def search_sessions(
        self, query: SessionQuery | None = None, *, page: int = 50
    ) -> AsyncIterator[SessionSummary]:
        """Newest first; without a query, all of the user's own."""
        wanted = query or SessionQuery()
        request = SessionSearchRequest(
            **wanted.model_dump(exclude={"owner", "statuses"}),
            owner={"type": wanted.owner},
            statuses=[{"type": s} for s in wanted.statuses] if wanted.statuses else None,
            limit=page,
        )
        for _ in range(MAX_PAGES):
            found = await self._post(
                "search_sessions", "sessions/search", request, SessionSearchPage
            )
            for summary in found.sessions:
                yield summary
            if found.next_cursor is None or not found.sessions:
                return
            request.cursor = found.next_cursor

    async def session(self, session_id: str) -> SessionRecord:
        return await self._get(f"sessions/{_segment(session_id)}", SessionRecord)

    async def assign_project(self, session_id: str, project_id: str) -> None:
        """Move a session, and all that belongs to it, into a project."""
        body = ProjectRequest(project_id=project_id).body()
        path = f"sessions/{_segment(session_id)}/project"
        await self._change("assign_project", "PUT", path, body=body)

    async def session_trace(self, session_id: str) -> str:
        """A signed URL of the session's timeline (Perfetto); waits until the service built it."""
        path = f"sessions/{_segment(session_id)}/trace_export"
        clock, asked = self._transport.clock, 0
        while (found := await self._get(path, TraceExport)).status == "pending":
            if (asked := asked + 1) * _TRACE_PAUSE_S > _ARCHIVE_S:
                raise ServiceUnavailableError(f"no trace of {session_id} in {_ARCHIVE_S:g} s")
            await clock.sleep(_TRACE_PAUSE_S)
        if found.url is None:
            text = self._transport.scrub(found.error or "without a reason")
            raise OperationFailedError(f"the trace of {session_id} failed: {text}")
        return found.url

    async def sampler(self, sampler_id: str) -> SamplerRecord:
        return await self._get(f"samplers/{_segment(sampler_id)}", SamplerRecord)

    async def training_runs(
        self, *, page: int = 100, project_id: str | None = None, accessible: bool = False
    ) -> AsyncIterator[TrainingRun]:
        """Of one project, or all. `accessible`: not only one's own."""
        more = _scope(accessible) | ({} if project_id is None else {"project_id": project_id})
        offset = 0
        for _ in range(MAX_PAGES):
            path = _paged("training_runs", page, offset, more)
            found = await self._get(path, TrainingRunPage)
            for run in found.training_runs:
                yield run
            offset += len(found.training_runs)
            if _is_last(len(found.training_runs), page, offset, found.cursor):
                return

    async def training_run(self, run_id: str) -> TrainingRun:
        return await self._get(f"training_runs/{_segment(run_id)}", TrainingRun)

    # --- checkpoints --------------------------------------------------------------------------

    async def checkpoints(
        self, run_id: str | None = None, *, page: int = 100
    ) -> AsyncIterator[Checkpoint]:
        """Those of one run (which come in one page), or all of the user's."""
        if run_id is not None:
            path = f"training_runs/{_segment(run_id)}/checkpoints"
            for checkpoint in (await self._get(path, CheckpointPage)).checkpoints:
                yield checkpoint
            return
        offset = 0
        for _ in range(MAX_PAGES):
            found = await self._get(_paged("checkpoints", page, offset), CheckpointPage)
            for checkpoint in found.checkpoints:
                yield checkpoint
            offset += len(found.checkpoints)
            if _is_last(len(found.checkpoints), page, offset, found.cursor):
                return

    async def weights_info(self, path: str) -> WeightsInfo:
        """What a model from this checkpoint must look like."""
        TinkerPath.read(path)
        request = WeightsInfoRequest(tinker_path=path)
        return await self._post("weights_info", "weights_info", request, WeightsInfo)

    async def copy_weights(
        self,
        path: str,
        *,
        project_id: str | None = None,
        ttl_s: int | None = None,
        access_token: str | None = None,
    ) -> str:
        """The path of a copy in a project of the user's (absent: TINKER_PROJECT_ID).

        `access_token` lets another account's checkpoint be read. The copy cannot be trained on,
        only loaded; it expires after `ttl_s`, whatever the original does.
        """
        TinkerPath.read(path)
        request = CopyWeightsRequest(
            source_path=path,
            destination_project_id=project_id or os.environ.get(PROJECT_VARIABLE) or None,
            ttl_seconds=ttl_s,
        )
        headers = [(IDEMPOTENCY_KEY, token_hex(16).encode())]
        if access_token is not None:
            headers.append(
                (
                    b"X-Tinker-Weights-Access-Token",
                    header_secret(access_token, what="the access token"),
                )
            )
        answer = await self._post(
            "copy_weights", "copy_weights", request, CopyWeightsResponse, headers=headers
        )
        return answer.tinker_path

    async def delete(self, path: str) -> None:
        await self._change("delete_checkpoint", "DELETE", _place(path), accepts=_GONE)

    async def publish(self, path: str) -> None:
        """Let everybody who knows the path load it. What is public stays public."""
        place = f"{_place(path)}/publish"
        await self._change("publish_checkpoint", "POST", place, body=b"{}", accepts=_ALREADY)

    async def unpublish(self, path: str) -> None:
        place = f"{_place(path)}/publish"
        await self._change("unpublish_checkpoint", "DELETE", place, accepts=_ALREADY)

    async def set_ttl(self, path: str, ttl_s: int | None) -> None:
        """Keep for `ttl_s` seconds from now; None: for ever."""
        body = TtlRequest(ttl_seconds=ttl_s).body()
        await self._change("checkpoint_ttl", "PUT", f"{_place(path)}/ttl", body=body)

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
        download = Download(self._transport, Path(folder), progress=progress, limits=limits)
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
        return await self._call(
            "checkpoint_archive",
            f"{place}/archive",
            _archive_location,
            method="GET",
            accepts=_REDIRECTS,
            total_s=_ARCHIVE_S,
        )

    # --- calls --------------------------------------------------------------------------------

    async def _get(self, path: str, model: type[R]) -> R:
        return await self._call(
            path.split("?", 1)[0].split("/", 1)[0],
            path,
            lambda reply: model.model_validate_json(reply.body),
            method="GET",
        )

    async def _post(
        self, operation: str, path: str, request: Wire, model: type[R], *, headers: Headers = ()
    ) -> R:
        return await self._call(
            operation,
            path,
            lambda reply: model.model_validate_json(reply.body),
            body=request.body(),
            headers=headers,
        )

    async def _change(
        self,
        operation: str,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        accepts: Set[int] = NONE,
    ) -> None:
        await self._call(
            operation, path, lambda reply: None, body=body, method=method, accepts=accepts
        )

    async def _call(
        self,
        operation: str,
        path: str,
        parse: Callable[[Reply], T],
        *,
        body: bytes | None = None,
        method: str = "POST",
        headers: Headers = (),
        accepts: Set[int] = NONE,
        total_s: float | None = None,
    ) -> T:
        """Being refused here slows no training."""
        return await self._transport.call(
            operation,
            path,
            parse,
            body=body,
            method=method,
            headers=headers,
            accepts=accepts,
            lane=Lane.ADMISSION,
            total_s=total_s,
            watch=self._watch,
        )


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


def _segment(value: str) -> str:
    return quote(value, safe=":")


def _paged(
    path: str, limit: int, offset: int, more: Mapping[str, str] = MappingProxyType({})
) -> str:
    return f"{path}?{urlencode({'limit': limit, 'offset': offset, **more})}"


def _scope(accessible: bool) -> dict[str, str]:
    return {"access_scope": "accessible"} if accessible else {}


def _is_last(found: int, page: int, offset: int, cursor: Cursor | None) -> bool:
    if cursor is not None and cursor.total_count is not None:
        return found == 0 or offset >= cursor.total_count
    return found < page
