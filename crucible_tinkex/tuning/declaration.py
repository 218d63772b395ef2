"""The experiment file that `tune` writes, and finds again when it is called again.

It lies beside the sweeps of its storage, says everything that was chosen, and is never overwritten:
whoever edits it is asked for nothing twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from crucible_tinkex.config import Experiment
from crucible_tinkex.config.toml import to_toml
from crucible_tinkex.storage import make_folder, write_atomic

_PATHS = ("train", "eval")


def text_of(experiment: Experiment, folder: Path, reasons: Sequence[str]) -> str:
    """A file in `folder` that declares the experiment; paths near it are relative."""
    asked = experiment.model_dump(mode="json", exclude_unset=True)
    asked["data"] = {
        key: _near(value, folder) if key in _PATHS else value
        for key, value in asked["data"].items()
    }
    asked["run"] = {**asked.get("run", {}), "storage": "."}
    head = ["# Made by `crucible tune`; edit it and run it with `crucible run`."]
    head += [f"# - {reason}" for reason in reasons]
    return "\n".join([*head, to_toml(asked)])


def _near(path: str | None, folder: Path) -> str | None:
    """Relative, if it lies below the folder that holds the storage."""
    if path is None or "://" in path or not Path(path).is_relative_to(folder.parent):
        return path
    return os.path.relpath(path, folder)


def write(path: Path, text: str) -> None:
    make_folder(path.parent)
    write_atomic(path, text.encode())
