"""What records of the model registry, and of a sweep's journal, say happened: as `Fact`s."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from crucible_tinkex.telemetry.facts.fact import Fact

Record = Mapping[str, Any]
_MODELS = {
    "registered": "model_registered",
    "metrics": "model_metrics_updated",
    "tags": "model_tagged",
    "stage": "model_promoted",
    "alias": "model_aliased",
    "deleted": "model_deleted",
}
_CHECKPOINTS = {
    "pinned": "checkpoint_pinned",
    "deleted": "checkpoint_pruned",
    "expiry_set": "checkpoint_expiry_set",
}
MODEL_FACTS = frozenset(_MODELS.values())
UNPINNED = "checkpoint_unpinned"
CHECKPOINT_FACTS = frozenset((*_CHECKPOINTS.values(), UNPINNED))
_ENTRY = ("checkpoint_path", "base_model", "tags", "data_fingerprint", "parents")
_PLACE = ("type", "v", "time", "epoch", "name", "version", "entry", "metrics", "trial_id", "op")


def model_fact(record: Record, version: int | None) -> Fact | None:
    """Of one record of the model registry; `version`: the one that it is about."""
    name = _MODELS.get(record.get("type", ""))
    if name is None:
        return None
    entry: Record = record.get("entry", {})
    about = {k: entry[k] for k in _ENTRY if k in entry}
    return Fact(
        name,
        record["time"],
        record["name"] if version is None else f"{record['name']}:{version}",
        sweep=entry.get("sweep") or "",
        trial_id=entry.get("trial_id") or "",
        numbers=record.get("metrics") or entry.get("metrics") or {},
        about={**about, **_rest(record), "model": record["name"], "version": version},
    )


def model_facts(records: Iterable[Record]) -> Iterator[Fact]:
    """Of the whole log, which alone knows the number of each registered version: that which it had
    elsewhere, if nobody here has had it, else the next (`models.book`)."""
    used: defaultdict[str, set[int]] = defaultdict(set)
    for record in records:
        version = record.get("version")
        if record.get("type") == "registered":
            numbers = used[record["name"]]
            if version is None or version in numbers:
                version = max(numbers, default=0) + 1
            numbers.add(version)
        if (fact := model_fact(record, version)) is not None:
            yield fact


class JournalFacts:
    """Of the records of one sweep's journal, in their order; most are no facts but the training
    itself. Pruned is what the service has deleted, not what is to be. What says again how a
    checkpoint is already, as a deletion that was repeated, is no fact."""

    def __init__(self, sweep: str) -> None:
        self._sweep = sweep
        self._last: dict[str, tuple[str, Any]] = {}

    def of(self, records: Iterable[Record]) -> Iterator[Fact]:
        for record in records:
            name = _CHECKPOINTS.get(record.get("type", ""))
            if name is None:
                continue
            if record.get("pinned") is False:
                name = UNPINNED
            path, trial_id = record["path"], record.get("trial_id", "")
            said = (name, record.get("at"))
            if self._last.get(path) != said:
                self._last[path] = said
                about = _rest(record)
                yield Fact(name, record["time"], path, self._sweep, trial_id, about=about)


def _rest(record: Record) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in _PLACE}
