"""The form in which a sweep's folder keeps its experiment, so that it is found again from anywhere.

Guarantees: what lies beside the storage (below the folder that holds it) is kept relative to the
sweep's folder, so that both may be moved together; everything else is kept absolute. If only the
sweep was moved, a relative path is looked up where the sweep once lay. The storage is not kept: it
is where the sweep is found.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crucible_tinkex.config.section import get_dotted, set_dotted

if TYPE_CHECKING:
    from crucible_tinkex.config.experiment import Experiment

STORED_IN = "stored_in"
_PATHS = ("data.train", "data.eval", "model.tokenizer", "service.api_key_file")


def stored(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """The experiment as JSON values, to lie in the sweep's `folder`."""
    raw = experiment.model_dump(mode="json")
    folder = folder.resolve()
    home = folder.parent.parent
    for key in _PATHS:
        value = get_dotted(raw, key)
        if isinstance(value, str) and os.path.isabs(value) and home != Path(home.anchor):
            path = Path(value).resolve()
            if path.is_relative_to(home):
                set_dotted(raw, key, os.path.relpath(path, folder))
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
        value = get_dotted(raw, key)
        if isinstance(value, str) and not os.path.isabs(value):
            # Normalised, because the sweep's former folder may be gone.
            places = [os.path.abspath(Path(start, value)) for start in (folder, former)]
            found = next((p for p in places if os.path.exists(p)), None)
            if found is not None or key != "model.tokenizer":
                section, name = key.split(".")
                raw[section] = {**raw[section], name: found or places[0]}
    return raw
