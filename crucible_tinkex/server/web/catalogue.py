"""Training runs, checkpoints and sessions as clients list them: records and manifests to JSON.

Guarantees: lists are newest first and paged by `limit` and `offset`; what an earlier process left
on the same data folder is listed too. No HTTP here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server.operations import refused
from crucible_tinkex.server.sessions import checks
from crucible_tinkex.server.sessions.session_records import Records, Run
from crucible_tinkex.server.store.store import Manifest, Store, expiry

MAX_LIMIT = 1000
OWNER = "local"
"""Whoever has the key."""
_KINDS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
_Item = TypeVar("_Item")


class Catalogue:
    def __init__(self, store: Store, records: Records) -> None:
        self._store = store
        self._records = records

    # --- checkpoints ---------------------------------------------------------------------------

    def checkpoints(self, run_id: str | None, query: Mapping[str, str]) -> dict[str, Any]:
        found = self._store.list(run_id)[::-1]
        if run_id is not None and not found:
            self._run(run_id)  # 404 for a run that never was
        page, cursor = _page(found, query, limit=100 if run_id is None else MAX_LIMIT)
        return {"checkpoints": [_checkpoint(m) for m in page], "cursor": cursor}

    def set_ttl(self, path: TinkerPath, ttl_seconds: int | None) -> None:
        self._store.update(path, expires=expiry(checks.ttl(ttl_seconds)))

    # --- runs ----------------------------------------------------------------------------------

    def runs(self, query: Mapping[str, str]) -> dict[str, Any]:
        known = self._records.runs()
        manifests = self._by_run()
        for run_id, own in manifests.items():
            known.setdefault(run_id, _run_of(own))
        newest = sorted(known.values(), key=lambda r: r.last_request, reverse=True)
        page, cursor = _page(newest, query, limit=20)
        runs = [_training_run(r, manifests.get(r.run_id, ())) for r in page]
        return {"training_runs": runs, "cursor": cursor}

    def run(self, run_id: str) -> dict[str, Any]:
        return _training_run(self._run(run_id), self._store.list(run_id))

    def _run(self, run_id: str) -> Run:
        run = self._records.run(run_id)
        if run is not None:
            return run
        manifests = self._store.list(run_id)
        if not manifests:
            raise refused(f"there is no training run {run_id}", 404)
        return _run_of(manifests)

    def _by_run(self) -> dict[str, list[Manifest]]:
        out: dict[str, list[Manifest]] = {}
        for manifest in self._store.list():
            out.setdefault(manifest.path.run_id, []).append(manifest)
        return out

    # --- sessions ------------------------------------------------------------------------------

    def sessions(self, query: Mapping[str, str]) -> dict[str, Any]:
        page, _ = _page(list(reversed(self._records.sessions)), query, limit=20)
        return {"sessions": page}

    def session(self, session_id: str) -> dict[str, Any]:
        record = self._records.sessions.get(session_id)
        if record is None:
            raise refused(f"there is no session {session_id}", 404)
        found = {
            "training_run_ids": list(record.runs),
            "sampler_ids": record.sampler_ids,
            "user_metadata": record.user_metadata,
            "display_name": record.display_name,
        }
        return {k: v for k, v in found.items() if v is not None}


def _run_of(manifests: Sequence[Manifest]) -> Run:
    """A run of which only checkpoints are left."""
    last = manifests[-1]
    return Run(last.path.run_id, last.base_model, last.spec.rank, None, last.created)


def _training_run(run: Run, manifests: Sequence[Manifest]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "training_run_id": run.run_id,
        "base_model": run.base_model,
        "model_owner": OWNER,
        "is_lora": True,
        "corrupted": False,
        "lora_rank": run.rank,
        "last_request_time": run.last_request,
        "last_checkpoint": _last(manifests, "weights"),
        "last_sampler_checkpoint": _last(manifests, "sampler_weights"),
        "user_metadata": run.user_metadata,
    }
    return {k: v for k, v in found.items() if v is not None}


def _last(manifests: Sequence[Manifest], kind: str) -> dict[str, Any] | None:
    own = [m for m in manifests if m.path.kind == kind]
    return _checkpoint(own[-1]) if own else None


def _checkpoint(manifest: Manifest) -> dict[str, Any]:
    path = manifest.path
    found: dict[str, Any] = {
        "checkpoint_id": path.checkpoint_id,
        "checkpoint_type": _KINDS[path.kind],
        "time": manifest.created,
        "tinker_path": str(path),
        "size_bytes": manifest.size_bytes,
        "public": False,
        "user_metadata": manifest.user_metadata,
        "expires_at": manifest.expires,
    }
    return {k: v for k, v in found.items() if v is not None}


def _page(
    items: Sequence[_Item], query: Mapping[str, str], *, limit: int
) -> tuple[list[_Item], dict[str, int]]:
    """The asked page, and where it lies."""
    offset = _number(query, "offset", 0)
    limit = _number(query, "limit", limit)
    if limit > MAX_LIMIT:
        raise refused(f"limit must be at most {MAX_LIMIT}, not {limit}")
    page = list(items[offset : offset + limit])
    return page, {"offset": offset, "limit": limit, "total_count": len(items)}


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise refused(f"{name} must be a whole number, not {text!r}")
    return int(text)
