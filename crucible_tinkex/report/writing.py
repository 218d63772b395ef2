"""Writes a report's files: `index.html` with `report.md`, `summary.json` and `leaderboard.csv`; or
`report.tex`; or `report.ipynb`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_tinkex.report.data import differing
from crucible_tinkex.report.formats.latex import latex
from crucible_tinkex.report.formats.notebook import notebook
from crucible_tinkex.report.markdown import markdown
from crucible_tinkex.report.page import page
from crucible_tinkex.storage import storage_errors, write_atomic

FORMATS = ("html", "latex", "notebook")


def write_report(
    sweeps: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    storage: str | Path = "runs",
    format: str = "html",
) -> Path:
    """Writes the files, each atomically, and returns the path of the one to open. `storage`: where
    a notebook finds the sweeps. Raises `StorageError`."""
    contents = _contents(sweeps, folder, storage, format)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            write_atomic(folder / name, text.encode())
    return folder / next(iter(contents))


def _contents(
    sweeps: Sequence[Mapping[str, Any]], folder: Path, storage: str | Path, format: str
) -> dict[str, str]:
    """Texts by file name, the one to open first."""
    if format == "latex":
        return {"report.tex": latex(sweeps)}
    if format == "notebook":
        return {"report.ipynb": notebook(sweeps, storage, folder)}
    return {
        "index.html": page(sweeps),
        "summary.json": json.dumps(sweeps[0] if len(sweeps) == 1 else list(sweeps), indent=1),
        "leaderboard.csv": leaderboard_csv(sweeps),
        "report.md": "\n".join(markdown(sweep) for sweep in sweeps),
    }


def leaderboard_csv(sweeps: Sequence[Mapping[str, Any]]) -> str:
    """One row per configuration, the best of each sweep first."""
    keys = differing(sweeps)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fixed = ("mean", "sd", "half_width", "n", "complete", "state", "train_tokens", "seconds")
    judged = ("standing", "low", "high")
    writer.writerow(["sweep", "metric", "place", "reference", *keys, *fixed, *judged])
    for sweep in sweeps:
        for found in sweep["configurations"]:
            settings = [found["values"].get(key) for key in keys]
            head = [sweep["name"], sweep["metric"]["name"], found["place"], found["reference"]]
            numbers = [found[name] for name in fixed] + [found.get(name) for name in judged]
            writer.writerow([*head, *settings, *numbers])
    return out.getvalue()
