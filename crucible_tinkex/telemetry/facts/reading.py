"""The facts of a storage as rows of the event log: `kind` is the fact's name, `name` its subject.

`extra` has what it is about and what was measured; `value` is the measurement where there is one.
Read afresh from their records; of the journals, only that of the sweep that is asked for, and only
while one of their facts is.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa

from crucible_tinkex.events import Event
from crucible_tinkex.registry.facts import CHECKPOINT_FACTS, MODEL_FACTS, JournalFacts
from crucible_tinkex.registry.journal import read_records
from crucible_tinkex.registry.models.facts import model_facts
from crucible_tinkex.registry.models.registry import FOLDER as MODELS
from crucible_tinkex.telemetry.facts.fact import Fact
from crucible_tinkex.telemetry.facts.ledger import FOLDER, recorded
from crucible_tinkex.telemetry.log.schema import events_to_table


def fact_rows(storage: Path, names: Collection[str], sweep: str | None = None) -> pa.Table:
    """Those of these names, in `EVENT_SCHEMA`; of another sweep than this there may be some."""
    found = [
        _event(fact, writer, seq)
        for writer, facts in _sources(storage, names, sweep)
        for seq, fact in enumerate(facts, 1)
        if fact.name in names
    ]
    return events_to_table(found)


def _sources(
    storage: Path, names: Collection[str], sweep: str | None
) -> Iterator[tuple[str, Iterator[Fact]]]:
    """Every record of facts, under a name that stays the same."""
    yield FOLDER, recorded(storage)
    if not MODEL_FACTS.isdisjoint(names) and (storage / MODELS).is_dir():
        yield MODELS, model_facts(read_records(storage / MODELS))
    if not CHECKPOINT_FACTS.isdisjoint(names):
        for journal in sorted(storage.glob("*/journal")):
            name = journal.parent.name
            if sweep in (None, name):
                yield f"{name}/journal", JournalFacts(name).of(read_records(journal))


def _event(fact: Fact, writer: str, seq: int) -> Event:
    numbers = list(fact.numbers.values())
    return Event(
        kind=fact.name,
        sweep_id="",
        experiment_id=fact.sweep,
        writer=writer,
        seq=seq,
        time_us=round(fact.time * 1e6),
        trial_id=fact.trial_id,
        name=fact.subject,
        value=float(numbers[0]) if len(numbers) == 1 else None,
        extra=json.dumps({**fact.numbers, **fact.about}, sort_keys=True, default=str),
    )
