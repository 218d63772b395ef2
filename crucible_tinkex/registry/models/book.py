"""What the log of a model registry folds to: a pure fold, tolerant of newer records.

The fold numbers the versions, so that two registrations can never share a number whatever wrote
them; an imported model keeps its number if that is free. Unknown types and fields, and changes of
models that are not there, are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crucible_tinkex.registry.models.records import STAGES, ModelEntry, ModelVersion

Record = Mapping[str, Any]


@dataclass
class _Model:
    """What is known of one version; `aliases` are the name's."""

    name: str
    version: int
    entry: ModelEntry
    created: float
    metrics: dict[str, float]
    tags: dict[str, None]
    stage: str = STAGES[0]


@dataclass
class Book:
    """All models of a storage."""

    models: dict[str, dict[int, _Model]] = field(default_factory=dict)
    """By name and version; those deleted are gone."""
    deleted: dict[str, set[int]] = field(default_factory=dict)
    """Their versions."""
    numbers: dict[str, int] = field(default_factory=dict)
    """The last version of each name, deleted ones included."""
    aliases: dict[str, dict[str, int]] = field(default_factory=dict)

    def fold(self, records: Iterable[Record]) -> Book:
        for record in records:
            handler = _HANDLERS.get(record.get("type", ""))
            if handler:
                handler(self, record)
        return self

    def versions(self, name: str) -> list[ModelVersion]:
        """Oldest first; none for an unknown name."""
        return [self._frozen(m) for _, m in sorted(self.models.get(name, {}).items())]

    def of_checkpoint(self, name: str, path: str) -> ModelVersion | None:
        """That version of a name, if there is one: a checkpoint is registered once."""
        found = (m for m in self.models.get(name, {}).values() if m.entry.checkpoint_path == path)
        model = next(found, None)
        return None if model is None else self._frozen(model)

    def all(self) -> list[ModelVersion]:
        return [v for name in sorted(self.models) for v in self.versions(name)]

    def number(self, record: Record) -> int | None:
        """The version that a record is about. Of a new one the next, or that which an imported
        model had, if nobody had it."""
        asked: int | None = record.get("version")
        if record.get("type") != "registered":
            return asked
        name = record["name"]
        used = {*self.models.get(name, {}), *self.deleted.get(name, ())}
        return self.numbers.get(name, 0) + 1 if asked is None or asked in used else asked

    def _frozen(self, model: _Model) -> ModelVersion:
        aliases = self.aliases.get(model.name, {})
        return ModelVersion(
            name=model.name,
            version=model.version,
            entry=model.entry,
            metrics=dict(model.metrics),
            tags=tuple(model.tags),
            stage=model.stage,
            aliases=tuple(sorted(a for a, v in aliases.items() if v == model.version)),
            created=model.created,
        )

    def _find(self, record: Record) -> _Model | None:
        return self.models.get(record["name"], {}).get(record["version"])

    # --- records ------------------------------------------------------------------------------

    def _registered(self, record: Record) -> None:
        fields = {k: v for k, v in record["entry"].items() if k in ModelEntry.model_fields}
        entry = ModelEntry.model_validate(fields)
        name = record["name"]
        version = self.number(record)
        assert version is not None
        self.numbers[name] = max(version, self.numbers.get(name, 0))
        self.models.setdefault(name, {})[version] = _Model(
            name,
            version,
            entry,
            record["time"],
            dict(entry.metrics),
            dict.fromkeys(entry.tags),
        )

    def _metrics(self, record: Record) -> None:
        if model := self._find(record):
            model.metrics |= record["metrics"]

    def _tags(self, record: Record) -> None:
        if model := self._find(record):
            model.tags |= dict.fromkeys(record.get("add", ()))
            for tag in record.get("remove", ()):
                model.tags.pop(tag, None)

    def _stage(self, record: Record) -> None:
        model = self._find(record)
        if model is None:
            return
        if record["stage"] == "production":  # there is one of each name
            for other in self.models[model.name].values():
                if other.stage == "production":
                    other.stage = "archived"
        model.stage = record["stage"]

    def _alias(self, record: Record) -> None:
        aliases = self.aliases.setdefault(record["name"], {})
        if record.get("version") is None:
            aliases.pop(record["alias"], None)
        elif self._find(record):
            aliases[record["alias"]] = record["version"]

    def _deleted(self, record: Record) -> None:
        name, version = record["name"], record["version"]
        if self.models.get(name, {}).pop(version, None):
            self.deleted.setdefault(name, set()).add(version)
        if not self.models.get(name):
            self.models.pop(name, None)
        aliases = self.aliases.get(name, {})
        self.aliases[name] = {a: v for a, v in aliases.items() if v != version}


_HANDLERS: dict[str, Callable[[Book, Record], None]] = {
    "registered": Book._registered,
    "metrics": Book._metrics,
    "tags": Book._tags,
    "stage": Book._stage,
    "alias": Book._alias,
    "deleted": Book._deleted,
}
