"""Writes a report's files: `index.html`, `report.md`, `summary.json`, `leaderboard.csv`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_tinkex.report.data import differing
from crucible_tinkex.report.markdown import markdown
from crucible_tinkex.report.page import page
from crucible_tinkex.storage import storage_errors, write_atomic


def write_report(sweeps: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Writes the files, each atomically, and returns the page's path. Raises `StorageError`."""
    contents = {
        "summary.json": json.dumps(sweeps[0] if len(sweeps) == 1 else list(sweeps), indent=1),
        "leaderboard.csv": leaderboard_csv(sweeps),
        "report.md": "\n".join(markdown(sweep) for sweep in sweeps),
        "index.html": page(sweeps),
    }
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            write_atomic(folder / name, text.encode())
    return folder / "index.html"


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
