"""Models that come from elsewhere: what `crucible models export` wrote, or another storage.

A file has an object for each model, in the keys of `ModelVersion.summary`; only `name` and
`checkpoint_path` are needed. A model is known again by its name and checkpoint, so the same import
again changes nothing. What is new is added, versions keep their numbers. What contradicts what is
here is a conflict: all of them are named, and then nothing is changed, unless what is here is to be
kept. The original overwrote it silently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from crucible_tinkex.datasets.files.containers import type_name, values
from crucible_tinkex.datasets.rows import place
from crucible_tinkex.errors import ConfigError, DataError
from crucible_tinkex.registry.models.book import Book
from crucible_tinkex.registry.models.records import (
    STAGES,
    ModelEntry,
    ModelVersion,
    checked_name,
    checked_stage,
    model_id,
    wrong_keys,
)

_ENTRY = frozenset(ModelEntry.model_fields)
_OWN = ("name", "version", "stage", "aliases", "created")
_DERIVED = ("id", "ancestors", "descendants")
"""Keys that follow from others, and are passed over."""
_ADDED = frozenset({"checkpoint_path", "metrics", "tags"})
SUFFIXES = (".jsonl", ".json")
Write = Callable[..., None]
"""Takes the type of a record and its fields; the book is folded by it at once."""


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    added: tuple[str, ...] = ()
    """Models that were not here."""
    changed: tuple[str, ...] = ()
    """Those that were, and have more metrics, tags or aliases now."""
    unchanged: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    """Conflicts, in words, in which what was here was kept."""

    def to_dict(self) -> dict[str, list[str]]:
        """For JSON: keys are only ever added."""
        names = ("added", "changed", "unchanged", "kept")
        return {name: list(getattr(self, name)) for name in names}


@dataclass(frozen=True)
class Shipped:
    """One model of a file, and where it stands there."""

    where: str
    name: str
    entry: ModelEntry
    version: int | None = None
    stage: str | None = None
    aliases: tuple[str, ...] = ()
    created: float | None = None

    @property
    def id(self) -> str:
        return self.name if self.version is None else model_id(self.name, self.version)

    @classmethod
    def parse(cls, value: Any, where: str) -> Shipped:
        """Raises `DataError` that names the key."""
        if not isinstance(value, Mapping):
            raise DataError(f"{where}: expected an object for a model, found {type_name(value)}")
        other = next((k for k in value if k not in _ENTRY and k not in (*_OWN, *_DERIVED)), None)
        if other is not None:
            legal = ", ".join((*_OWN, *ModelEntry.model_fields))
            raise DataError(f"{where}: a model has no key {other!r}; it has {legal}")
        entry = _entry({k: v for k, v in value.items() if k in _ENTRY}, where)
        try:
            return cls(
                where,
                checked_name(_typed(value, "name", str, where, needed=True)),
                entry,
                _version(value, where),
                _stage(value, where),
                _aliases(value, where),
                _typed(value, "created", float, where),
            )
        except ConfigError as error:
            raise DataError(f"{where}: {error.message}") from None


def read(source: Path) -> list[Shipped]:
    """The models of a file, or of all `.json` and `.jsonl` of a folder. Raises `DataError`."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; `crucible models export` writes one")
    files = [source]
    if source.is_dir():
        files = sorted(file for file in source.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise DataError(f"{source}: no storage with models, and no .jsonl or .json in it")
    if any(file.suffix not in SUFFIXES for file in files):
        raise DataError(f"{source}: models are read from .jsonl or .json")
    return [
        Shipped.parse(value, place(str(file), line))
        for file in files
        for line, value in values(file, str(file))
    ]


def shipped(models: Iterable[ModelVersion], where: str) -> list[Shipped]:
    """The models of another registry, which lies in `where`."""
    return [Shipped.parse(model.summary(), f"{where}, {model.id}") for model in models]


def bring(book: Book, models: list[Shipped], write: Write) -> Imported:
    """Write what is new of `models`; `kept` are the conflicts. `book` knows all that is here."""
    found: dict[str, list[str]] = {"added": [], "changed": [], "unchanged": []}
    conflicts: list[str] = []
    known = {m.id for m in book.all()} | {m.id for m in models}
    others = _others_here(book, models)
    for model in models:
        here = _here(book, model)
        if here is None:
            refused = [*_refusals(book, model, known, others)]
            if refused:
                conflicts += refused
                continue
            here = _register(book, model, write)
            known.add(here.id)
            kind = "added"
        else:
            conflicts += _differences(here, model)
            kind = "changed" if _more(here, model, write) else "unchanged"
        marked, said = _marks(book, here, model, write, new=kind == "added")
        conflicts += said
        found["changed" if marked and kind == "unchanged" else kind].append(here.id)
    return Imported(**{k: tuple(v) for k, v in found.items()}, kept=tuple(conflicts))


def _here(book: Book, model: Shipped) -> ModelVersion | None:
    return book.of_checkpoint(model.name, model.entry.checkpoint_path)


def _others_here(book: Book, models: list[Shipped]) -> set[str]:
    """Ids of the file that mean another model here, or none: nobody can come as a child of these,
    and not as a child of such a child."""
    found, size = set[str](), -1
    while size < len(found):
        size = len(found)
        for model in models:
            here = _here(book, model)
            if here is not None:
                is_other = model.version not in (None, here.version)
            else:
                is_other = any(_taken(book, model)) or not found.isdisjoint(model.entry.parents)
            if is_other:
                found.add(model.id)
    return found


def _taken(book: Book, model: Shipped) -> Iterator[str]:
    """Why a model that is not here cannot have its number."""
    taken = next((m for m in book.versions(model.name) if m.version == model.version), None)
    if taken is not None:
        yield f"{model.id} is another checkpoint here: {taken.checkpoint_path}"
    elif model.version in book.deleted.get(model.name, ()):
        yield f"{model.id} was deleted here, and its number is not used again"


def _refusals(book: Book, model: Shipped, known: set[str], others: set[str]) -> Iterator[str]:
    """Why a model that is not here cannot come; `known`: ids here and in the file."""
    yield from _taken(book, model)
    for parent in model.entry.parents:
        if parent not in known:
            yield f"{model.id}: its parent {parent} is neither here nor in the file"
        elif parent in others:
            yield f"{model.id}: its parent {parent} of the file is not what is here"


def _register(book: Book, model: Shipped, write: Write) -> ModelVersion:
    fields = {} if model.created is None else {"time": model.created}
    number = {} if model.version is None else {"version": model.version}
    entry = model.entry.model_dump(mode="python", exclude_defaults=True)
    write("registered", name=model.name, entry=entry, **number, **fields)
    here = _here(book, model)
    assert here is not None
    return here


def _differences(here: ModelVersion, model: Shipped) -> Iterator[str]:
    """What a file says otherwise of a model that is here; what it leaves out it does not say."""
    if model.version not in (None, here.version):
        yield f"{model.id} is here as {here.id}"
    for key in sorted(model.entry.model_fields_set - _ADDED):
        ours, theirs = getattr(here.entry, key), getattr(model.entry, key)
        if ours != theirs:
            yield f"{here.id}: {key} is {ours!r} here, {theirs!r} in the file"
    for name, value in model.entry.metrics.items():
        if name in here.metrics and not _same(here.metrics[name], value):
            yield f"{here.id}: {name} is {here.metrics[name]:g} here, {value:g} in the file"
    if model.stage not in (None, here.stage):
        yield f"{here.id}: it is in {here.stage} here, in {model.stage} in the file"


def _more(here: ModelVersion, model: Shipped, write: Write) -> bool:
    """Write metrics and tags that are not here."""
    about = {"name": here.name, "version": here.version}
    metrics = {k: v for k, v in model.entry.metrics.items() if k not in here.metrics}
    tags = [tag for tag in model.entry.tags if tag not in here.tags]
    if metrics:
        write("metrics", **about, metrics=metrics)
    if tags:
        write("tags", **about, add=tags)
    return bool(metrics or tags)


def _marks(
    book: Book, here: ModelVersion, model: Shipped, write: Write, *, new: bool
) -> tuple[bool, list[str]]:
    """Stage and aliases: whether any was written, and the conflicts."""
    about = {"name": here.name, "version": here.version}
    written, conflicts = False, []
    others = [m for m in book.versions(here.name) if m.version != here.version]
    if new and model.stage not in (None, STAGES[0]):
        rival = next((m for m in others if m.stage == model.stage == "production"), None)
        if rival is None:
            write("stage", **about, stage=model.stage)
        else:
            conflicts.append(f"{here.id} is in production in the file, {rival.id} here")
    for alias in model.aliases:
        holder = book.aliases.get(here.name, {}).get(alias)
        if holder is None:
            write("alias", **about, alias=alias)
            written = True
        elif holder != here.version:
            other = model_id(here.name, holder)
            conflicts.append(f"{here.name}@{alias} is {here.id} in the file, {other} here")
    return written, conflicts


def _same(ours: float, theirs: float) -> bool:
    # A file has null for whatever is not finite.
    return ours == theirs or not (math.isfinite(ours) or math.isfinite(theirs))


def _entry(fields: dict[str, Any], where: str) -> ModelEntry:
    metrics = fields.get("metrics")
    if isinstance(metrics, Mapping):
        fields["metrics"] = {k: math.nan if v is None else v for k, v in metrics.items()}
    # What a summary has as null or empty is what nobody said.
    said = {k: v for k, v in fields.items() if v not in (None, "", [], {})}
    try:
        return ModelEntry.model_validate(said)
    except ValidationError as error:
        raise DataError(f"{where}: {wrong_keys(error)}") from None


def _typed(
    value: Mapping[str, Any], key: str, kind: type, where: str, *, needed: bool = False
) -> Any:
    found = value.get(key)
    if found is None and not needed:
        return None
    accepted = (int, float) if kind is float else kind
    if not isinstance(found, accepted) or isinstance(found, bool):
        raise DataError(f"{where}: {key!r} must be {_KINDS[kind]}, found {type_name(found)}")
    return found


_KINDS = {str: "a string", int: "a whole number", float: "a number"}


def _version(value: Mapping[str, Any], where: str) -> int | None:
    found: int | None = _typed(value, "version", int, where)
    if found is not None and found < 1:
        raise DataError(f"{where}: 'version' counts from 1, not {found}")
    return found


def _aliases(value: Mapping[str, Any], where: str) -> tuple[str, ...]:
    found = value.get("aliases") or []
    if not isinstance(found, list) or not all(isinstance(alias, str) for alias in found):
        raise DataError(f"{where}: 'aliases' must be a list of strings")
    return tuple(map(checked_name, found))


def _stage(value: Mapping[str, Any], where: str) -> str | None:
    found = _typed(value, "stage", str, where)
    return None if found is None else checked_stage(found)
