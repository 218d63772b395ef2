"""Training data as an axis: what each of its values stands for.

A value of the axis `data.train` is a name in `data.sets`. A path that is written there is its own
name, and a list of files is named by what is in it: so a trial's values are words, which stay the
same wherever the files lie, and only `data.sets` has to be found again when a project is moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crucible_tinkex.config.section import Section
from crucible_tinkex.config.sweep.search import TRAINING_DATA, flat

_CONFIGURATIONS = ("configs", "enqueue")


def named(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A declaration in which every value of the axis is a name in `data.sets`, and `data.train`,
    where it is not given, the first of them. Raises `ValueError` for what names no file."""
    search, data = _table(raw.get("search")), _table(raw.get("data", {}))
    if search is None or data is None or not isinstance(data.get("sets", {}), Mapping):
        return raw
    sets: dict[str, Any] = dict(data.get("sets", {}))
    names: list[str] = []
    if isinstance(search.get("space"), Mapping):
        space = flat(search["space"])
        if TRAINING_DATA in space:
            axis = space[TRAINING_DATA]
            if not isinstance(axis, list | tuple):
                raise ValueError(f"search.space.{TRAINING_DATA}: it must be a list of files")
            if not axis:
                raise ValueError(f"search.space: {TRAINING_DATA!r} has no values")
            names = [_name(value, sets, f"search.space.{TRAINING_DATA}") for value in axis]
            search["space"] = {**space, TRAINING_DATA: names}
    for key in _CONFIGURATIONS:
        if isinstance(search.get(key), list | tuple):
            search[key] = [_configuration(c, sets, f"search.{key}") for c in search[key]]
            tables = [c for c in search[key] if isinstance(c, Mapping)]
            names += [c[TRAINING_DATA] for c in tables if TRAINING_DATA in c]
    if not names:
        return raw
    return {**raw, "search": search, "data": {"train": sets[names[0]], **data, "sets": sets}}


def _table(section: Any) -> dict[str, Any] | None:
    """A section as it was given; None where it is none."""
    if isinstance(section, Section):
        return section.model_dump(exclude_unset=True)
    return dict(section) if isinstance(section, Mapping) else None


def _configuration(given: Any, sets: dict[str, Any], where: str) -> Any:
    found = flat(given) if isinstance(given, Mapping) else {}
    if TRAINING_DATA not in found:
        return given
    name = _name(found[TRAINING_DATA], sets, f"{where}: {TRAINING_DATA}")
    return {**found, TRAINING_DATA: name}


def _name(value: Any, sets: dict[str, Any], where: str) -> str:
    """Of the training data that `value` is, which is put into `sets` if it is new there."""
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    files = value if isinstance(value, list | tuple) else (value,)
    parts = [_file(file) if file is not value else file for file in files]
    if not parts or not all(isinstance(part, str) and part for part in parts):
        raise ValueError(f"{where}: {value!r} names no file; give a path, or a list as data.train")
    name = " + ".join(parts)
    sets.setdefault(name, value)
    return name


def _file(file: Any) -> Any:
    if not isinstance(file, Mapping):
        return file
    path, weight = file.get("path"), file.get("weight", 1)
    return f"{weight} x {path}" if isinstance(path, str) and path else None
