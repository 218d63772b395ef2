"""The experiment file that `tune` writes, and finds again when it is called again.

It lies beside the sweeps of its storage, and says everything that was chosen. Whoever edits it is
asked for nothing twice: of a file that is there, only what was said anew is changed, line by line,
and everything else stays as it is.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.config.section import get_dotted
from crucible_tinkex.config.toml import to_toml
from crucible_tinkex.errors import ConfigError
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


def changed(text: str, settings: Mapping[str, Any]) -> str:
    """The text of a file with `section.key` set, or taken out where the value is None. Raises
    `ConfigError` where the file has a form in which that cannot be done by lines."""
    for dotted, value in settings.items():
        section, _, key = dotted.partition(".")
        lines = text.splitlines()
        start, end = _extent(lines, section)
        found = [i for i in range(start, end) if re.match(rf"\s*{re.escape(key)}\s*=", lines[i])]
        said = [] if value is None else to_toml({key: value}).splitlines()
        if found:
            lines[found[0] : found[0] + 1] = said
        elif said and start == end == len(lines):
            lines += ["", f"[{section}]", *said]
        else:
            lines[start:start] = said
        text = "\n".join([*lines, ""])
    for dotted, value in settings.items():
        if get_dotted(_parsed(text), dotted) != value:
            raise ConfigError(f"set {dotted} = {value} in the experiment file yourself")
    return text


def _extent(lines: Sequence[str], section: str) -> tuple[int, int]:
    """The lines below a section's heading; the end of the file where it has none."""
    headings = [i for i, line in enumerate(lines) if line.lstrip().startswith("[")]
    for i in headings:
        if re.match(rf"\s*\[\s*{section}\s*\]", lines[i]):
            return i + 1, next((j for j in headings if j > i), len(lines))
    return len(lines), len(lines)


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def write(path: Path, text: str) -> None:
    make_folder(path.parent)
    write_atomic(path, text.encode())
