"""Experiments on files of a test, and sweeps that look as if they had begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crucible_tinkex.config import Experiment
from crucible_tinkex.sweep.preparing.manifest import write_manifest
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep, prepare

Make = Callable[..., Experiment]


def built(folder: Path, declared: Mapping[str, Any], sections: Mapping[str, Any]) -> Experiment:
    """An experiment on `nano` in `folder`: `declared`, with `sections` merged into its own."""
    merged: dict[str, Any] = {
        "name": "s",
        "service": {"base_url": "embedded"},
        "model": {"base": "nano"},
        "run": {"storage": "runs"},
        **declared,
    }
    for section, values in sections.items():
        merged[section] = {**merged.get(section, {}), **values}
    return Experiment.build(merged, folder=folder)


def begun(experiment: Experiment) -> PreparedSweep:
    """As if its first run had written the folder."""
    prepared = prepare(experiment)
    write_manifest(prepared)
    prepared.paths.journal.mkdir()
    return prepared
