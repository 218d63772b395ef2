"""Runs, checkpoints, sessions, downloads and the account, as paths with identifiers in them.

A checkpoint's identifier is two parts of a path: its kind and its name. No HTTP library here: `app`
has the key, the bodies and the refusals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import crucible_tinkex.client.wire as wire
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server import account, bodies
from crucible_tinkex.server.catalogue import Catalogue
from crucible_tinkex.server.checks import refused
from crucible_tinkex.server.exports import ARCHIVE, Exports
from crucible_tinkex.server.identity import Identity
from crucible_tinkex.server.routing import Asked
from crucible_tinkex.server.service import Service
from crucible_tinkex.server.timeline import perfetto

Answer: TypeAlias = Mapping[str, Any] | Path
"""A body, or a file to send."""
Resource: TypeAlias = Callable[[Asked], Awaitable[Answer]]
_CHECKPOINT = "training_runs/{run}/checkpoints/{kind}/{name}"


class Resources:
    def __init__(self, service: Service, identity: Identity) -> None:
        self._service = service
        self._store = service.store
        self._records = service.records
        self._catalogue = Catalogue(service.store, service.records)
        self._exports = Exports(service.store)
        self._identity = identity

    def table(self) -> dict[tuple[str, str], Resource]:
        """Every handler by method and template."""
        return {
            ("GET", "downloads/{token}/{file}"): self._download,
            ("HEAD", "downloads/{token}/{file}"): self._download,
            ("GET", "training_runs"): self._runs,
            ("GET", "training_runs/{run}"): self._run,
            ("GET", "training_runs/{run}/checkpoints"): self._checkpoints,
            ("GET", "checkpoints"): self._checkpoints,
            ("DELETE", _CHECKPOINT): self._delete,
            ("POST", f"{_CHECKPOINT}/publish"): self._publish,
            ("DELETE", f"{_CHECKPOINT}/publish"): self._unpublish,
            ("PUT", f"{_CHECKPOINT}/ttl"): self._set_ttl,
            ("GET", f"{_CHECKPOINT}/archive"): self._archive,
            ("GET", f"{_CHECKPOINT}/external_weights_urls"): self._urls,
            ("POST", "copy_weights"): self._copy,
            ("GET", "sessions"): self._sessions,
            ("POST", "sessions/search"): self._search,
            ("GET", "sessions/{id}"): self._session,
            ("PUT", "sessions/{id}/project"): self._assign,
            ("POST", "sessions/{id}/finish"): self._finish,
            ("GET", "sessions/{id}/trace_export"): self._trace,
            ("GET", "samplers/{id}"): self._sampler,
            ("POST", "auth/token"): self._token,
            ("GET", "auth/apikey/me"): self._key,
            ("DELETE", "auth/apikey/me"): self._delete_key,
            ("GET", "audit"): self._audit,
            ("GET", "billing/usage/events"): self._usage,
            ("GET", "billing/usage/checkpoints/current"): self._storage,
        }

    # --- runs and checkpoints ------------------------------------------------------------------

    async def _runs(self, asked: Asked) -> Answer:
        return self._catalogue.runs(asked.query)

    async def _run(self, asked: Asked) -> Answer:
        return self._catalogue.run(asked.params["run"])

    async def _checkpoints(self, asked: Asked) -> Answer:
        return self._catalogue.checkpoints(asked.params.get("run"), asked.query)

    async def _delete(self, asked: Asked) -> Answer:
        self._store.delete(_path(asked))
        return {}

    async def _publish(self, asked: Asked) -> Answer:
        self._catalogue.publish(_path(asked), public=True)
        return {}

    async def _unpublish(self, asked: Asked) -> Answer:
        self._catalogue.publish(_path(asked), public=False)
        return {}

    async def _set_ttl(self, asked: Asked) -> Answer:
        body = bodies.TtlRequest.model_validate_json(asked.body)
        self._catalogue.set_ttl(_path(asked), body.ttl_seconds)
        return {}

    async def _copy(self, asked: Asked) -> Answer:
        body = bodies.CopyWeightsRequest.model_validate_json(asked.body)
        return self._catalogue.copy(body, asked.headers.get("x-idempotency-key", ""))

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

    def _grant(self, asked: Asked, file: Path, path: TinkerPath | None) -> tuple[str, str]:
        token, until = self._exports.grant(path, file)
        return f"{asked.root}{wire.API}/downloads/{token}/{file.name}", until.isoformat()

    async def _download(self, asked: Asked) -> Answer:
        return self._exports.open(asked.params["token"], asked.params["file"])

    # --- sessions ------------------------------------------------------------------------------

    async def _sessions(self, asked: Asked) -> Answer:
        return self._catalogue.sessions(asked.query)

    async def _session(self, asked: Asked) -> Answer:
        return self._catalogue.session(asked.params["id"])

    async def _search(self, asked: Asked) -> Answer:
        body = account.SearchRequest.model_validate_json(asked.body)
        return account.search(self._records, self._store, body)

    async def _assign(self, asked: Asked) -> Answer:
        body = bodies.ProjectRequest.model_validate_json(asked.body)
        self._catalogue.assign(asked.params["id"], body.project_id)
        return {}

    async def _finish(self, asked: Asked) -> Answer:
        body = wire.FinishSessionRequest.model_validate_json(asked.body or b"{}")
        self._service.finish_session(asked.params["id"], body)
        return {}

    async def _sampler(self, asked: Asked) -> Answer:
        sampler_id = asked.params["id"]
        path = self._service.samplers[sampler_id].source.path
        out = {"sampler_id": sampler_id, "base_model": self._service.engine.base.name}
        return out if path is None else {**out, "model_path": str(path)}

    async def _trace(self, asked: Asked) -> Answer:
        """The trace is small: it is ready at the first question."""
        session_id = asked.params["id"]
        self._catalogue.session(session_id)
        slices = self._service.dispatch.timeline.of(session_id)
        if not slices:
            error = "no requests of this session were answered since the server's start"
            return {"status": "failed", "error": error}
        trace = perfetto(f"session {session_id}", slices)
        file = await asyncio.to_thread(self._exports.keep, f"{session_id}.pftrace", trace)
        return {"status": "ready", "url": self._grant(asked, file, None)[0]}

    # --- the account ---------------------------------------------------------------------------

    async def _token(self, asked: Asked) -> Answer:
        return {"jwt": self._identity.token()}

    async def _key(self, asked: Asked) -> Answer:
        return self._identity.describe()

    async def _delete_key(self, asked: Asked) -> Answer:
        raise refused("the key of this server is a file; change it there and restart", 403)

    async def _audit(self, asked: Asked) -> Answer:
        raise refused("this server keeps no audit log")

    async def _usage(self, asked: Asked) -> Answer:
        return account.usage(asked.query)

    async def _storage(self, asked: Asked) -> Answer:
        return account.storage(self._records, self._store, asked.query)


def _path(asked: Asked) -> TinkerPath:
    params = asked.params
    return TinkerPath.parse(f"tinker://{params['run']}/{params['kind']}/{params['name']}")
