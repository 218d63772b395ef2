"""Runs, checkpoints, sessions and downloads, as paths with identifiers in them.

A checkpoint's identifier is two parts of a path: its kind and its name. No HTTP library here: `app`
has the key, the bodies and the refusals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import crucible_tinkex.protocol.wire as wire
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.protocol.listings import TtlRequest
from crucible_tinkex.server.sessions.lifecycle import Service
from crucible_tinkex.server.web.catalogue import Catalogue
from crucible_tinkex.server.web.exports import ARCHIVE, Exports
from crucible_tinkex.server.web.routing import Asked

Answer: TypeAlias = Mapping[str, Any] | Path
"""A body, or a file to send."""
RestRoute: TypeAlias = Callable[[Asked], Awaitable[Answer]]
_CHECKPOINT = "training_runs/{run}/checkpoints/{kind}/{name}"


class RestRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store
        self._catalogue = Catalogue(service.store, service.records)
        self._exports = Exports(service.store)

    def table(self) -> dict[tuple[str, str], RestRoute]:
        """Every handler by method and template."""
        return {
            ("GET", "downloads/{token}/{file}"): self._download,
            ("HEAD", "downloads/{token}/{file}"): self._download,
            ("GET", "training_runs"): self._runs,
            ("GET", "training_runs/{run}"): self._run,
            ("GET", "training_runs/{run}/checkpoints"): self._checkpoints,
            ("GET", "checkpoints"): self._checkpoints,
            ("DELETE", _CHECKPOINT): self._delete,
            ("PUT", f"{_CHECKPOINT}/ttl"): self._set_ttl,
            ("GET", f"{_CHECKPOINT}/archive"): self._archive,
            ("GET", f"{_CHECKPOINT}/external_weights_urls"): self._urls,
            ("GET", "sessions"): self._sessions,
            ("GET", "sessions/{id}"): self._session,
            ("POST", "sessions/{id}/finish"): self._finish,
            ("GET", "samplers/{id}"): self._sampler,
        }

    # --- runs and checkpoints ------------------------------------------------------------------

    async def _runs(self, asked: Asked) -> Answer:
        return self._catalogue.runs(asked.query)

    async def _run(self, asked: Asked) -> Answer:
        return self._catalogue.run(asked.params["run"])

    async def _checkpoints(self, asked: Asked) -> Answer:
        return self._catalogue.checkpoints(asked.params.get("run"), asked.query)

    async def _delete(self, asked: Asked) -> Answer:
        await asyncio.to_thread(self._store.delete, _path(asked))
        return {}

    async def _set_ttl(self, asked: Asked) -> Answer:
        body = TtlRequest.model_validate_json(asked.body)
        await asyncio.to_thread(self._catalogue.set_ttl, _path(asked), body.ttl_seconds)
        return {}

    # --- downloads -----------------------------------------------------------------------------

    async def _archive(self, asked: Asked) -> Answer:
        urls, expires = await self._export(asked, archive=True)
        return {"url": urls[ARCHIVE], "expires": expires}

    async def _urls(self, asked: Asked) -> Answer:
        urls, expires = await self._export(asked, archive=False)
        return {"urls": urls, "expires": expires}

    async def _export(self, asked: Asked, *, archive: bool) -> tuple[dict[str, str], str]:
        """A URL for every file of the export, or for all of them in one archive."""
        path = _path(asked)
        folder = await asyncio.to_thread(self._exports.prepare, path)
        urls, expires = {}, ""
        for file in sorted(folder.iterdir()):
            if (file.name == ARCHIVE) is archive:
                urls[file.name], expires = self._grant(asked, file, path)
        return urls, expires

    def _grant(self, asked: Asked, file: Path, path: TinkerPath) -> tuple[str, str]:
        token, until = self._exports.grant(path, file)
        return f"{asked.root}{wire.API}/downloads/{token}/{file.name}", until.isoformat()

    async def _download(self, asked: Asked) -> Answer:
        return await asyncio.to_thread(
            self._exports.open, asked.params["token"], asked.params["file"]
        )

    # --- sessions ------------------------------------------------------------------------------

    async def _sessions(self, asked: Asked) -> Answer:
        return self._catalogue.sessions(asked.query)

    async def _session(self, asked: Asked) -> Answer:
        return self._catalogue.session(asked.params["id"])

    async def _finish(self, asked: Asked) -> Answer:
        wire.FinishSessionRequest.model_validate_json(asked.body or b"{}")
        self._service.finish_session(asked.params["id"])
        return {}

    async def _sampler(self, asked: Asked) -> Answer:
        sampler_id = asked.params["id"]
        path = self._service.samplers[sampler_id].source.path
        out = {"sampler_id": sampler_id, "base_model": self._service.engine.base.name}
        return out if path is None else {**out, "model_path": str(path)}


def _path(asked: Asked) -> TinkerPath:
    params = asked.params
    return TinkerPath.parse(f"tinker://{params['run']}/{params['kind']}/{params['name']}")
