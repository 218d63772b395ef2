"""`ModelRegistry`: the models of one storage, in a framed log that many processes may write.

Guarantees: a call that changes something returns when it is durable; writers wait for each other at
a file lock, read what the others wrote, then check and write, so no change is made on an old state;
what a killed writer left half is dropped; a change that is durable is told to the storage's
handlers (`telemetry.facts`), once; registering the same checkpoint under the same name again
changes nothing but what is new about it. Reading needs no lock. Every call reads what is new.

Each change is a segment of its own (`storage.log`), which makes the order of the segments the order
of all changes. Not for: object stores, which have no lock.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.metrics import Direction
from crucible_tinkex.registry.journal import parsed
from crucible_tinkex.registry.models import exchange
from crucible_tinkex.registry.models.book import Book
from crucible_tinkex.registry.models.ensemble import Distinct, find
from crucible_tinkex.registry.models.exchange import Imported
from crucible_tinkex.registry.models.facts import told
from crucible_tinkex.registry.models.records import (
    ModelEntry,
    ModelVersion,
    Reference,
    checked_name,
    checked_stage,
    checked_tags,
    model_id,
)
from crucible_tinkex.storage import (
    Lock,
    SegmentLog,
    read_segment,
    segments,
    storage_errors,
    write_atomic,
)
from crucible_tinkex.telemetry.facts.fact import Fact, tell

FOLDER = ".models"
VERSION = 1
WAIT_S = 30.0


class ModelRegistry:
    """See the module. Picklable; holds nothing open between calls."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._sizes: dict[str, int] = {}
        self._records: dict[str, list[Mapping[str, Any]]] = {}
        self._book = Book()

    @classmethod
    def open(
        cls, storage: str | Path = "runs", *, clock: Callable[[], float] = time.time
    ) -> ModelRegistry:
        """That of a storage folder; empty where nothing was registered yet."""
        if "://" in str(storage):
            raise ConfigError(f"storage {str(storage)!r} must be a local or shared folder")
        return cls(Path(storage).expanduser().resolve() / FOLDER, clock=clock)

    def __repr__(self) -> str:
        return f"ModelRegistry({str(self._folder.parent)!r})"

    # --- looking ------------------------------------------------------------------------------

    def list_models(
        self,
        name: str | None = None,
        *,
        sweep: str | None = None,
        experiment_id: str | None = None,
        stage: str | None = None,
        tags: Collection[str] = (),
    ) -> list[ModelVersion]:
        """All versions that fit, by name, oldest first. Raises `ConfigError` for a stage that there
        is not."""
        if stage is not None:
            checked_stage(stage)
        return [
            m
            for m in self._read().all()
            if name in (None, m.name)
            and sweep in (None, m.entry.sweep)
            and experiment_id in (None, m.entry.experiment_id)
            and stage in (None, m.stage)
            and set(tags) <= set(m.tags)
        ]

    def get_model(
        self,
        name: str,
        version: int | None = None,
        *,
        stage: str | None = None,
        alias: str | None = None,
    ) -> ModelVersion:
        """One version: as asked, else the newest that is not archived. `name` may be
        `NAME:VERSION` or `NAME@ALIAS`. Raises `ConfigError` that lists what there is."""
        return _chosen(self._read(), _reference(name, version, alias), stage)

    def find_for_ensemble(
        self,
        metric: str | None = None,
        *,
        sort_by: str | None = None,
        direction: Direction | None = None,
        top_n: int = 5,
        tags: Collection[str] = (),
        base: str | None = None,
        thresholds: Mapping[str, float | str] | None = None,
        distinct: Distinct = "trial",
    ) -> list[ModelVersion]:
        """The best `top_n` models by `metric` (or `sort_by`, its other name), the best first.

        `direction`: "min" or "max"; known metrics need none. `tags`: all of them. `base`: only
        adapters of this base model. `thresholds`: by metric, `">=0.8"` or a number that a model may
        not be worse than. `distinct`: at most one model of each trial, checkpoint or name. Archived
        models, and those without a finite value, are left out.
        """
        if (metric is None) == (sort_by is None):
            raise ConfigError("find_for_ensemble takes one of metric and sort_by")
        return find(
            self._read().all(),
            metric=metric or sort_by or "",
            direction=direction,
            top_n=top_n,
            tags=tags,
            base=base,
            thresholds=thresholds,
            distinct=distinct,
        )

    def ancestors(self, name: str) -> list[ModelVersion]:
        """What a model came from, the nearest first."""
        book = self._read()
        known = {m.id: m for m in book.all()}
        found: dict[str, ModelVersion] = {}
        queue = list(_chosen(book, Reference.parse(name)).entry.parents)
        while queue:
            parent = known.get(queue.pop(0))
            if parent is not None and parent.id not in found:
                found[parent.id] = parent
                queue += parent.entry.parents
        return list(found.values())

    def descendants(self, name: str) -> list[ModelVersion]:
        """What came from a model, the nearest first."""
        book = self._read()
        found: dict[str, ModelVersion] = {}
        queue = [_chosen(book, Reference.parse(name)).id]
        while queue:
            parent = queue.pop(0)
            for model in book.all():
                if parent in model.entry.parents and model.id not in found:
                    found[model.id] = model
                    queue.append(model.id)
        return list(found.values())

    # --- changing -----------------------------------------------------------------------------

    def register_model(
        self, name: str, metadata: Mapping[str, Any] | None = None, **more: Any
    ) -> ModelVersion:
        """A new version of `name`; `checkpoint_path` is required, the other keys are those of
        `ModelEntry`. The same checkpoint again is the same version, with metrics and tags added.
        Raises `ConfigError`."""
        checked_name(name)
        entry = ModelEntry.parse(name, {**(metadata or {}), **more})
        with self._changing() as change:
            if model := change.book.of_checkpoint(name, entry.checkpoint_path):
                return self._added(change, model, entry)
            for parent in entry.parents:
                _chosen(change.book, Reference.parse(parent))
            change.write("registered", name=name, entry=_json(name, entry))
            return change.book.versions(name)[-1]

    def _added(self, change: _Change, model: ModelVersion, entry: ModelEntry) -> ModelVersion:
        metrics = {k: v for k, v in entry.metrics.items() if not _same(model.metrics.get(k), v)}
        if metrics:
            change.of(model, "metrics", metrics=metrics)
        if tags := [t for t in entry.tags if t not in model.tags]:
            change.of(model, "tags", add=tags)
        return change.again(model)

    def import_models(self, source: str | Path, *, keep: bool = False) -> Imported:
        """Take over the models of a file (`.jsonl` or `.json`, as `export_models` writes it), of a
        folder of such files, or of another storage, all at once. What is here already and says the
        same is left alone. Raises `ConfigError` that names every conflict, and changes nothing,
        unless what is here is to be kept (`keep`); `DataError` for what is no such file."""
        path = Path(source).expanduser()
        other = path if path.name == FOLDER else path / FOLDER
        if other.is_dir():
            models = exchange.shipped(ModelRegistry(other.resolve()).list_models(), str(path))
        else:
            models = exchange.read(path)
        with self._changing() as change:
            found = exchange.bring(change.book, models, change.write)
            if found.kept and not keep:
                raise ConfigError(
                    f"{path}: {len(found.kept)} conflicts, and nothing was imported: "
                    f"{'; '.join(found.kept)}. Change the file, or keep what is here (--keep)"
                )
            return found

    def export_models(self, file: str | Path, **asked: Any) -> list[ModelVersion]:
        """Write the models that fit (`list_models`) to a new `.jsonl`, one a line."""
        path = Path(file).expanduser()
        if path.exists():
            raise ConfigError(f"{path} exists; name another file, or remove it")
        if path.suffix != ".jsonl":
            raise ConfigError(f"{path}: models are written as .jsonl; name it so")
        models = self.list_models(**asked)
        lines = [json.dumps(model.summary()) + "\n" for model in models]
        write_atomic(path, "".join(lines).encode())
        return models

    def update_metrics(self, name: str, metrics: Mapping[str, float]) -> ModelVersion:
        """Add measurements; one that is known is replaced."""
        ModelEntry.parse(name, {"checkpoint_path": "x", "metrics": dict(metrics)})
        with self._changing() as change:
            model = _chosen(change.book, Reference.parse(name))
            change.of(model, "metrics", metrics={k: float(v) for k, v in metrics.items()})
            return change.again(model)

    def tag(
        self, name: str, *, add: Collection[str] = (), remove: Collection[str] = ()
    ) -> ModelVersion:
        try:
            added = checked_tags(tuple(add))
        except ValueError as e:
            raise ConfigError(str(e)) from None
        with self._changing() as change:
            model = _chosen(change.book, Reference.parse(name))
            change.of(model, "tags", add=list(added), remove=list(remove))
            return change.again(model)

    def promote(self, name: str, stage: str) -> ModelVersion:
        """Set the stage. What was in production before under this name becomes archived."""
        checked_stage(stage)
        with self._changing() as change:
            model = _chosen(change.book, Reference.parse(name))
            if model.stage != stage:
                change.of(model, "stage", stage=stage)
            return change.again(model)

    def set_alias(self, name: str, alias: str) -> ModelVersion:
        """Let `NAME@ALIAS` mean this version, and no other of the name."""
        checked_name(alias)
        with self._changing() as change:
            model = _chosen(change.book, Reference.parse(name))
            change.of(model, "alias", alias=alias)
            return change.again(model)

    def drop_alias(self, name: str, alias: str) -> None:
        with self._changing() as change:
            change.write("alias", name=Reference.parse(name).name, alias=alias, version=None)

    def delete(self, name: str, version: int) -> None:
        """Forget a version; its number is never used again, its weights stay where they are."""
        with self._changing() as change:
            change.of(_chosen(change.book, Reference(name, version)), "deleted")

    # --- the log ------------------------------------------------------------------------------

    def _read(self) -> Book:
        """Segments are written once, so only those that are new, or were still empty, are read."""
        changed = False
        for path in segments(self._folder):
            with storage_errors(path):
                size = path.stat().st_size
            if self._sizes.get(path.name) != size:
                self._records[path.name] = [parsed(r, path) for r in read_segment(path)]
                self._sizes[path.name], changed = size, True
        if changed:
            self._book = Book().fold(chain.from_iterable(self._records.values()))
        return self._book

    @contextmanager
    def _changing(self) -> Iterator[_Change]:
        """All of a change under the lock; its records are written at once, at the end."""
        lock = Lock(self._folder / "lock", wait_s=WAIT_S)
        try:
            self._read()
            records = [r for part in self._records.values() for r in part]
            change = _Change(Book().fold(records), self._clock())
            yield change
            if change.records:
                with SegmentLog(self._folder, mark=True) as log:
                    log.append([json.dumps(r).encode() for r in change.records])
        finally:
            lock.close()
        tell(self._folder.parent, *change.facts)


class _Change:
    """Records to be written, and the book as it will be then."""

    def __init__(self, book: Book, now: float) -> None:
        self.book = book
        self.records: list[dict[str, Any]] = []
        self.facts: list[Fact] = []
        self._now = now

    def write(self, kind: str, **fields: Any) -> None:
        record = {"type": kind, "v": VERSION, "time": self._now, **fields}
        self.records.append(record)
        self.facts += told(self.book, record)

    def of(self, model: ModelVersion, kind: str, **fields: Any) -> None:
        self.write(kind, name=model.name, version=model.version, **fields)

    def again(self, model: ModelVersion) -> ModelVersion:
        return next(m for m in self.book.versions(model.name) if m.version == model.version)


def _json(name: str, entry: ModelEntry) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(json.dumps(entry.model_dump(exclude_defaults=True)))
    except (TypeError, ValueError) as e:
        raise ConfigError(f"model {name!r} cannot be registered: {e}") from None
    return found


def _same(old: float | None, new: float) -> bool:
    return old == new or (old is not None and math.isnan(old) and math.isnan(new))


def _reference(name: str, version: int | None, alias: str | None) -> Reference:
    found = Reference.parse(name)
    given = [x for x in (found.version, found.alias, version, alias) if x is not None]
    if len(given) > 1:
        raise ConfigError(f"model {name!r}: give one of version and alias")
    return Reference(found.name, found.version or version, found.alias or alias)


def _chosen(book: Book, wanted: Reference, stage: str | None = None) -> ModelVersion:
    versions = book.versions(wanted.name)
    if not versions:
        known = ", ".join(sorted(book.models)) or "none yet"
        raise ConfigError(f"no model {wanted.name!r} is registered; there are: {known}")
    fitting = [m for m in versions if stage in (None, m.stage)]
    if wanted.version is not None:
        fitting = [m for m in fitting if m.version == wanted.version]
    elif wanted.alias is not None:
        fitting = [m for m in fitting if wanted.alias in m.aliases]
    elif stage is None:
        fitting = [m for m in fitting if m.stage != "archived"] or fitting
    if not fitting:
        have = ", ".join(_described(m) for m in versions)
        raise ConfigError(f"no such version of model {wanted.name!r}; there are: {have}")
    return fitting[-1]


def _described(model: ModelVersion) -> str:
    marks = ", ".join([model.stage, *(f"@{a}" for a in model.aliases)])
    return f"{model_id(model.name, model.version)} ({marks})"
