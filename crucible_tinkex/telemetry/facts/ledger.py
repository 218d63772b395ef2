"""Facts that no journal has: exports, downloads, verifications, datasets. One log per storage.

Many processes may write: each takes a lock for as long, and goes on where the last one ended. A
ledger that cannot be written costs a warning and never the work that it would tell of.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.storage import Lock, SegmentLog, read_log
from crucible_tinkex.telemetry.facts.fact import Fact, tell

FOLDER = ".facts"
VERSION = 1
WAIT_S = 5.0
_KNOWN = frozenset(f.name for f in fields(Fact))
log = logging.getLogger(__name__)


def record(storage: str | Path, facts: Sequence[Fact]) -> None:
    """Store facts, then tell the handlers of the storage."""
    if not facts:
        return
    folder = Path(storage) / FOLDER
    try:
        lock = Lock(folder / "lock", wait_s=WAIT_S)
        try:
            with SegmentLog(folder, mark=True, goes_on=True) as entries:
                entries.append([json.dumps({**asdict(f), "v": VERSION}).encode() for f in facts])
        finally:
            lock.close()
    except CrucibleError as e:
        log.warning("%s could not be recorded: %s", facts[0].name, e)
    tell(storage, *facts)


def record_of(
    paths: SweepPaths,
    name: str,
    subject: str,
    trial_id: str,
    numbers: Mapping[str, float],
    about: Mapping[str, Any],
) -> None:
    """`record` one fact about a trial of a sweep, which has just happened."""
    root = paths.root
    record(root.parent, [Fact(name, time.time(), subject, root.name, trial_id, numbers, about)])


def recorded(storage: str | Path) -> Iterator[Fact]:
    """Oldest first; what newer versions add is passed over. Raises `CorruptLogError`."""
    folder = Path(storage) / FOLDER
    if folder.is_dir():
        for raw in read_log(folder):
            found: dict[str, Any] = json.loads(raw)
            yield Fact(**{k: v for k, v in found.items() if k in _KNOWN})


def known_subjects(storage: str | Path, name: str) -> set[str]:
    """What facts of this name were about; none, and a warning, where that cannot be read."""
    try:
        return {fact.subject for fact in recorded(storage) if fact.name == name}
    except CrucibleError as e:
        log.warning("what %s has recorded cannot be read: %s", FOLDER, e)
        return set()
