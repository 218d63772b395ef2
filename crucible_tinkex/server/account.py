"""What clients ask about the account: who they are, what is stored, what it costs, which sessions.

Whoever has the key is the one user of this server, who owns everything and pays nothing: usage is
billed to nobody, so that there are no billing events, and storage costs 0. No audit log is kept,
and an empty one would say that nothing happened: that question is refused. No HTTP here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from crucible_tinkex.client.wire import Wire
from crucible_tinkex.names import session_of
from crucible_tinkex.server.checks import refused
from crucible_tinkex.server.identity import OWNER, USER_URN
from crucible_tinkex.server.records import Records, SessionRecord
from crucible_tinkex.server.store import Manifest, Store

MAX_USAGE = timedelta(days=14)
GIGABYTE = 1_000_000_000
MAX_PAGE = 200


# --- billing ---------------------------------------------------------------------------------


class UsageQuery(Wire):
    starting_on: datetime
    ending_before: datetime


def usage(query: Mapping[str, str]) -> dict[str, Any]:
    """No events, ever; the window is checked as the real service does."""
    asked = UsageQuery.model_validate(dict(query))
    start, end = asked.starting_on, asked.ending_before
    if (start.tzinfo is None) != (end.tzinfo is None):
        raise refused("starting_on and ending_before must both have a time zone, or neither")
    if not timedelta(0) < end - start <= MAX_USAGE:
        raise refused(f"ending_before must be up to {MAX_USAGE.days} days after starting_on")
    return {"data": [], "sessions": {}}


def storage(records: Records, store: Store, query: Mapping[str, str]) -> dict[str, Any]:
    """Checkpoints and their bytes by project."""
    by_project: dict[str, list[Manifest]] = {}
    for manifest in store.list():
        by_project.setdefault(records.project_of(manifest.path.run_id), []).append(manifest)
    wanted = query.get("project_id")
    data = [
        {
            "project_id": project_id,
            "org_user_urn": USER_URN,
            "user_name": OWNER,
            "checkpoint_count": len(own),
            "size_bytes": sum(m.size_bytes for m in own),
            "size_gigabytes": sum(m.size_bytes for m in own) / GIGABYTE,
            "estimated_monthly_cost_usd": 0.0,
        }
        for project_id, own in sorted(by_project.items())
        if wanted in (None, project_id)
    ]
    return {"effective_rate_usd_per_gigabyte_month": 0.0, "data": data}


# --- searching for sessions --------------------------------------------------------------------


class Owner(Wire):
    type: Literal["own", "accessible", "user"] = "own"
    owner_urns: list[str] = Field(default_factory=list)


class StatusQuery(Wire):
    type: Literal["active", "cancelled", "failed", "client_finished"]
    reasons: list[str] | None = None


class Cursor(Wire):
    last_created_at: AwareDatetime
    last_session_id: str


class SearchRequest(Wire):
    session_id: str | None = None
    project_ids: list[str] | None = None
    user_metadata: dict[str, str] = Field(default_factory=dict)
    display_name: str | None = None
    owner: Owner = Field(default_factory=Owner)
    statuses: list[StatusQuery] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 50
    cursor: Cursor | None = None


def search(records: Records, store: Store, asked: SearchRequest) -> dict[str, Any]:
    """Newest first, and where the next page begins."""
    found = sorted(
        (s for s in records.sessions.values() if _matches(asked, s, records)),
        key=_place,
        reverse=True,
    )
    if asked.cursor is not None:
        last = (asked.cursor.last_created_at, asked.cursor.last_session_id)
        found = [s for s in found if _place(s) < last]
    page = found[: asked.limit]
    sizes: dict[str, list[int]] = {}
    for manifest in store.list():
        session_id = session_of(manifest.path.run_id)
        sizes.setdefault(session_id, []).append(manifest.size_bytes)
    out: dict[str, Any] = {
        "sessions": [_summary(s, records, sizes.get(s.session_id, [])) for s in page]
    }
    if len(found) > len(page):
        cursor = {"last_created_at": page[-1].created, "last_session_id": page[-1].session_id}
        out["next_cursor"] = cursor
    return out


def _place(session: SessionRecord) -> tuple[datetime, str]:
    return datetime.fromisoformat(session.created), session.session_id


def _matches(asked: SearchRequest, session: SessionRecord, records: Records) -> bool:
    own = session.user_metadata or {}
    if asked.owner.type == "user" and USER_URN not in asked.owner.owner_urns:
        return False
    if asked.project_ids is not None and records.project(session) not in asked.project_ids:
        return False
    if any(own.get(name) != value for name, value in asked.user_metadata.items()):
        return False
    if asked.statuses is not None and not any(_has(session, q) for q in asked.statuses):
        return False
    return _named(asked, session)


def _named(asked: SearchRequest, session: SessionRecord) -> bool:
    """The identifier or the name; without either, every session."""
    if asked.session_id is None and asked.display_name is None:
        return True
    if asked.session_id == session.session_id:
        return True
    name = (session.display_name or "").lower()
    words = (asked.display_name or "").lower().split()
    return bool(words) and all(word in name for word in words)


def _has(session: SessionRecord, asked: StatusQuery) -> bool:
    if session.status["type"] != asked.type:
        return False
    return asked.reasons is None or session.status["reason"]["type"] in asked.reasons


def _summary(session: SessionRecord, records: Records, sizes: list[int]) -> dict[str, Any]:
    found = {
        "session_id": session.session_id,
        "created_at": session.created,
        "owner": USER_URN,
        "project_id": records.project(session),
        "status": session.status,
        "checkpoints_count": len(sizes),
        "display_name": session.display_name,
        "user_metadata": session.user_metadata,
        "checkpoint_storage_bytes": sum(sizes),
    }
    return {k: v for k, v in found.items() if v is not None}
