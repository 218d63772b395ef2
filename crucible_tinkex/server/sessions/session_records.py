"""What is remembered of sessions and their training runs, also after a restart.

    <data_dir>/sessions/<session>.json

Guarantees: a session that has a run is found again by a new `Records` on the same folder; a file is
there whole or not at all; one that cannot be read is set aside (`damaged`). Not here: checkpoints
(`store`) and what sessions hold in memory (`service`); a run of an earlier process can be listed,
not trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crucible_tinkex.names import session_of
from crucible_tinkex.server.store.damaged import set_aside
from crucible_tinkex.storage import storage_errors, write_atomic


def now_text() -> str:
    return datetime.now(UTC).isoformat()


@dataclass(slots=True)
class Run:
    """One model. `last_request` is written down with the next change of its session."""

    run_id: str
    base_model: str
    rank: int
    user_metadata: Mapping[str, str] | None = None
    last_request: str = field(default_factory=now_text)


@dataclass(slots=True)
class SessionRecord:
    session_id: str
    created: str = field(default_factory=now_text)
    tags: list[str] = field(default_factory=list)
    user_metadata: Mapping[str, str] | None = None
    display_name: str | None = None
    runs: dict[str, Run] = field(default_factory=dict)
    sampler_ids: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> SessionRecord:
        """Fields of other versions are passed over."""
        given = json.loads(text)
        known = {f.name: given[f.name] for f in fields(cls) if f.name in given}
        runs = {name: Run(**run) for name, run in given["runs"].items()}
        return cls(**{**known, "runs": runs})


class Records:
    """All sessions, oldest first."""

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "sessions"
        self.sessions: dict[str, SessionRecord] = {}
        with storage_errors(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
            found = list(self._read(data_dir))
        for record in sorted(found, key=lambda r: r.created):
            self.sessions[record.session_id] = record

    def _read(self, data_dir: Path) -> Iterator[SessionRecord]:
        for file in list(self._root.glob("*.json")):
            try:
                yield SessionRecord.parse(file.read_text())
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
                set_aside(file, data_dir, e)

    def runs(self) -> dict[str, Run]:
        return {r.run_id: r for s in self.sessions.values() for r in s.runs.values()}

    def run(self, run_id: str) -> Run | None:
        session = self.sessions.get(session_of(run_id))
        return session.runs.get(run_id) if session is not None else None

    def add(self, record: SessionRecord) -> None:
        """Kept in memory until it is saved."""
        self.sessions[record.session_id] = record

    def save(self, record: SessionRecord) -> None:
        """Write down a session that has a run."""
        path = self._root / f"{record.session_id}.json"
        write_atomic(path, json.dumps(asdict(record), indent=1).encode())

    def finish(self, record: SessionRecord) -> None:
        """Write a session down for the last time; forget it if it has no run."""
        if record.runs:
            self.save(record)
        else:
            self.sessions.pop(record.session_id, None)

    def touch(self, run_id: str) -> None:
        run = self.run(run_id)
        if run is not None:
            run.last_request = now_text()


def texts(metadata: Mapping[str, Any] | None) -> Mapping[str, str] | None:
    """User metadata as clients read it back: text by name."""
    if metadata is None:
        return None
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
