"""Runs of whole configurations beside those of their trials: mean, lowest and highest seed.

They lie in `configurations/` of the log folder and are written anew as a whole. The custom scalars
page draws each as a line with a band. Each has its state as a text.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from crucible_tinkex.telemetry.tensorboard.hparams import band_charts, state_text
from crucible_tinkex.telemetry.tensorboard.records import scalar
from crucible_tinkex.telemetry.tensorboard.run import RunFiles

FOLDER = "configurations"
LOW, HIGH = "_min", "_max"
LONGEST = 120

Points = Mapping[int, Sequence[float]]
"""Step to the values of the seeds that were measured there."""


@dataclass(frozen=True)
class Aggregate:
    """One configuration."""

    name: str
    state: str
    """In words, as a text of the run."""
    metrics: Mapping[str, Points]


def write_configurations(folder: Path, found: Sequence[Aggregate], *, time_s: float) -> None:
    """In the order given, which the runs' names begin with. Raises `OSError`."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    tags = sorted({tag for one in found for tag in one.metrics})
    for place, one in enumerate(found, 1):
        if not one.metrics:
            continue
        run = RunFiles(folder / FOLDER / f"{place:03}-{_safe(one.name)}")
        run.put(1, band_charts({tag: (tag + LOW, tag + HIGH) for tag in tags}))
        run.put(1, state_text(time_s, one.state))
        for tag, points in one.metrics.items():
            for step, values in sorted(points.items()):
                ends = (("", fmean(values)), (LOW, min(values)), (HIGH, max(values)))
                run.put(1, *(scalar(time_s, tag + end, step, value) for end, value in ends))
        run.write()


def _safe(name: str) -> str:
    """As the name of a folder."""
    return re.sub(r"[^\w.=,+-]+", "_", name.replace(" ", ""))[:LONGEST]
