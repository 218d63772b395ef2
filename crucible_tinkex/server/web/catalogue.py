"""Training runs and checkpoints as clients list them: models and manifests to JSON.

A run is a model that there is, or one of which checkpoints are left, also of an earlier process.
Guarantee: lists are newest first and paged by `limit` and `offset`. No HTTP here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from crucible_tinkex.server.operations import refused
from crucible_tinkex.server.sessions.models import Model
from crucible_tinkex.server.sessions.sessions import Service
from crucible_tinkex.server.store.store import Manifest

MAX_LIMIT = 1000
_KINDS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
_Item = TypeVar("_Item")


def checkpoints(service: Service, run_id: str | None, query: Mapping[str, str]) -> dict[str, Any]:
    found = service.store.list(run_id)[::-1]
    if run_id is not None and not found:
        run(service, run_id)  # 404 for a run that never was
    page, cursor = _page(found, query, limit=100 if run_id is None else MAX_LIMIT)
    return {"checkpoints": [_checkpoint(m) for m in page], "cursor": cursor}


def runs(service: Service, query: Mapping[str, str]) -> dict[str, Any]:
    models = service.models.all()
    found: dict[str, list[Manifest]] = {model_id: [] for model_id in models}
    for manifest in service.store.list():
        found.setdefault(manifest.path.run_id, []).append(manifest)
    known = [_run(service, run_id, models.get(run_id), own) for run_id, own in found.items()]
    known.sort(key=lambda r: r["last_request_time"], reverse=True)
    page, cursor = _page(known, query, limit=20)
    return {"training_runs": page, "cursor": cursor}


def run(service: Service, run_id: str) -> dict[str, Any]:
    """Raises `RequestRejectedError` (404) if there is none."""
    model, manifests = service.models.all().get(run_id), service.store.list(run_id)
    if model is None and not manifests:
        raise refused(f"there is no training run {run_id}", 404)
    return _run(service, run_id, model, manifests)


def _run(
    service: Service, run_id: str, model: Model | None, manifests: Sequence[Manifest]
) -> dict[str, Any]:
    if model is None:
        rank, used = manifests[-1].spec.rank, manifests[-1].created
    else:
        rank, used = model.spec.rank, datetime.fromtimestamp(model.used_s, UTC).isoformat()
    return _present(
        training_run_id=run_id,
        base_model=service.engine.base.name if model else manifests[-1].base_model,
        model_owner="local",
        is_lora=True,
        corrupted=False,
        lora_rank=rank,
        last_request_time=used,
        last_checkpoint=_last(manifests, "weights"),
        last_sampler_checkpoint=_last(manifests, "sampler_weights"),
        user_metadata=model and model.user_metadata,
    )


def _last(manifests: Sequence[Manifest], kind: str) -> dict[str, Any] | None:
    own = [m for m in manifests if m.path.kind == kind]
    return _checkpoint(own[-1]) if own else None


def _checkpoint(manifest: Manifest) -> dict[str, Any]:
    path = manifest.path
    return _present(
        checkpoint_id=path.checkpoint_id,
        checkpoint_type=_KINDS[path.kind],
        time=manifest.created,
        tinker_path=str(path),
        size_bytes=manifest.size_bytes,
        public=False,
        user_metadata=manifest.user_metadata,
        expires_at=manifest.expires,
    )


def _present(**fields: Any) -> dict[str, Any]:
    return {k: v for k, v in fields.items() if v is not None}


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
