"""`crucible plan`: what would run, checked against data and service, with nothing trained."""

from __future__ import annotations

import asyncio
import json as json_module
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crucible_tinkex.cli.running import read_experiment
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.preparation import PreparedSweep, prepare
from crucible_tinkex.session import SweepData
from crucible_tinkex.sweep import connected


def plan_file(
    file: Path,
    assignments: Sequence[str],
    *,
    name: str | None,
    storage: str | None,
    json: bool,
) -> None:
    experiment, source = read_experiment(file, assignments)
    prepared = prepare(experiment, storage=storage, name=name, source=source)
    data = asyncio.run(_tokenised(prepared))
    found = describe(prepared, data)
    if json:
        print(json_module.dumps(found))
        return
    for key, value in found.items():
        if key not in ("configurations", "warnings"):
            print(f"{key.replace('_', ' '):<16}{value}")
    for values in found["configurations"]:
        print("  " + (", ".join(f"{k} = {v}" for k, v in values.items()) or "as declared"))
    for warning in found["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)


async def _tokenised(prepared: PreparedSweep) -> SweepData:
    """Ask the service for its model and tokenise, leaving the sweep's folder alone."""
    with tempfile.TemporaryDirectory() as scratch:
        elsewhere = SweepPaths(Path(scratch))
        async with connected(prepared, data_dir=elsewhere.service) as connection:
            data: SweepData = connection.data
            return data


def describe(prepared: PreparedSweep, data: SweepData) -> dict[str, Any]:
    """Trials, steps and tokens of the sweep."""
    experiment = prepared.experiment
    trained = [t for t in prepared.trials if not t.reference]
    steps = sum(t.total_steps for t in trained)
    row_tokens = data.train.positions / len(data.train)
    batch_rows = sum(t.total_steps * t.experiment.train.batch_size for t in trained)
    return {
        "sweep": prepared.name,
        "folder": str(prepared.paths.root),
        "state": "exists; would continue" if prepared.started else "new",
        "base_model": experiment.model.base,
        "train_rows": len(data.train),
        "eval_rows": len(data.eval) if data.eval else 0,
        "trials": len(prepared.trials),
        "steps": steps,
        "train_tokens": round(batch_rows * row_tokens),
        "configurations": [
            dict(v) for v in {tuple(t.values.items()): t.values for t in trained}.values()
        ],
        "warnings": prepared.warnings(),
    }
