"""What a run of a sweep does to datasets and checkpoints of its storage, for whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry.facts import JournalFacts
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep
from crucible_tinkex.telemetry.facts.fact import Fact, tell
from crucible_tinkex.telemetry.facts.ledger import known_subjects, record

REGISTERED, LOADED = "dataset_registered", "dataset_loaded"


def kept(paths: SweepPaths) -> Callable[[Mapping[str, Any]], None]:
    """Tells of the records of a run's keeper, each when it is in the journal."""
    facts = JournalFacts(paths.root.name)

    def told(record: Mapping[str, Any]) -> None:
        tell(paths.root.parent, *facts.of([{**record, "time": time.time()}]))

    return told


def loaded(prepared: PreparedSweep) -> None:
    """The training data of a run, with fingerprints; registered is one that the storage has never
    seen."""
    storage = prepared.paths.root.parent
    record(storage, [*_datasets(prepared, known_subjects(storage, REGISTERED))])


def _datasets(prepared: PreparedSweep, known: set[str]) -> Iterator[Fact]:
    held_out = prepared.eval_rows
    for files, data in prepared.training.items():
        about = {
            "files": [str(file.path) for file in files],
            "eval_rows": None if held_out is None else len(held_out),
        }
        names = (LOADED,) if data.fingerprint in known else (REGISTERED, LOADED)
        for name in names:
            yield Fact(
                name,
                time.time(),
                data.fingerprint,
                sweep=prepared.name,
                numbers={"rows": len(data.rows)},
                about=about,
            )
