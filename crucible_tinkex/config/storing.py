"""The form in which a sweep's folder keeps its experiment, so that it is found again from anywhere.

Guarantees: what lies beside the storage (below the folder that holds it) is kept relative to the
sweep's folder, so that both may be moved together; everything else is kept absolute. If only the
sweep was moved, a relative path is looked up where the sweep once lay. The storage is not kept: it
is where the sweep is found.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from crucible_tinkex.config.section import get_dotted, set_dotted
from crucible_tinkex.datasets.files.address import is_short_name

if TYPE_CHECKING:
    from crucible_tinkex.config.experiment import Experiment

STORED_IN = "stored_in"
_PATHS = ("data.train", "data.eval", "data.corpus", "model.tokenizer", "service.api_key_file")


def stored(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """The experiment as JSON values, to lie in the sweep's `folder`."""
    raw = experiment.model_dump(mode="json")
    folder = folder.resolve()
    home = folder.parent.parent
    if home != Path(home.anchor):
        for key in _PATHS:
            set_dotted(raw, key, _each(get_dotted(raw, key), lambda p: _kept(p, folder, home)))
        sets = raw["data"]["sets"]
        sets |= {name: _each(v, lambda p: _kept(p, folder, home)) for name, v in sets.items()}
    del raw["run"]["storage"]
    return {**raw, STORED_IN: str(folder)}


def unstored(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What `stored` made, with the paths as they are now. Of version 0.1.0, whose relative paths
    start from the folder of its first run, only the storage is set."""
    raw = {**raw, "run": {**raw.get("run", {}), "storage": str(folder.resolve().parent)}}
    former = raw.pop(STORED_IN, None)
    if former is None:
        return raw
    for key in _PATHS:
        section, name = key.split(".")
        value = get_dotted(raw, key)
        if value is not None:
            places = _Places((folder, former), optional=key == "model.tokenizer")
            found = _each(value, places.find)
            raw[section] = {**raw[section], name: found}
    if sets := raw["data"].get("sets"):
        find = _Places((folder, former), optional=False).find
        raw["data"] = {**raw["data"], "sets": {n: _each(v, find) for n, v in sets.items()}}
    return raw


def _each(value: Any, change: Callable[[str], str]) -> Any:
    """A path, or every path in a list of paths and of tables with a `path`, changed."""
    if isinstance(value, list):
        return [_each(item, change) for item in value]
    if isinstance(value, dict):
        return {**value, "path": change(value["path"])}
    return change(value) if isinstance(value, str) else value


def _kept(value: str, folder: Path, home: Path) -> str:
    if not os.path.isabs(value):
        return value
    path = Path(value).resolve()
    return os.path.relpath(path, folder) if path.is_relative_to(home) else value


class _Places(NamedTuple):
    """Where a relative path may start; `optional`: it may be the name of something elsewhere."""

    starts: tuple[str | Path, ...]
    optional: bool

    def find(self, value: str) -> str:
        if os.path.isabs(value) or "://" in value or is_short_name(value):
            return value
        # Normalised, because the sweep's former folder may be gone.
        places = [os.path.abspath(Path(start, value)) for start in self.starts]
        found = next((p for p in places if _exists(p)), None)
        return found or (value if self.optional else places[0])


def _exists(path: str) -> bool:
    """Also of a file that some rows are asked of; a name may have a `?` of its own."""
    return os.path.exists(path) or os.path.exists(path.rpartition("?")[0])
