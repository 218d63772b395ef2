"""The report as a Jupyter notebook (nbformat 4.5) that reads the sweep anew when it is run: tables
by DuckDB over the sweep's Parquet files, learning curves, and the verdict."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crucible_tinkex.names import digest

_SETUP = """
import numpy as np

import crucible_tinkex as ct
from crucible_tinkex.bench.plot import svg


class Plots:
    def __init__(self, table):
        self.curves = {}
        for row in table.to_pylist():
            self.curves.setdefault(row["trial"], []).append((row["step"], row["value"]))

    def _repr_html_(self):
        drawn = ((name, np.array(points, float).T) for name, points in self.curves.items())
        return "".join(svg(name, steps, values) for name, (steps, values) in drawn)
"""
_OPEN = """
sweep = ct.open_sweep({name}, storage={storage})
print(sweep.conclusion().verdict)
"""
_LEADERBOARD = """
sweep.leaderboard().to_pylist()
"""
_CURVES = """
METRIC = {metric}
Plots(sweep.query(f'''
    select run_name as trial, events.step, value from events join trials using (trial_id)
    where name = $${{METRIC}}$$ and value is not null order by index, events.step
'''))
"""
_TRIALS = """
sweep.query("select * from trials order by index").to_pylist()
"""


def notebook(sweeps: Sequence[Mapping[str, Any]], storage: str | Path, folder: Path) -> str:
    """Of sweeps (`report_data`) in `storage`, to lie in `folder`."""
    where = os.path.relpath(Path(storage).expanduser().resolve(), folder.resolve())
    cells = [_code(_SETUP)]
    for data in sweeps:
        verdict = "\n\n".join([data["verdict"], *data["conclusion"]["notes"]])
        cells.append(_cell("markdown", f"# {data['name']}\n\n{verdict}"))
        cells.append(_code(_OPEN.format(name=repr(data["name"]), storage=repr(where))))
        cells.append(_code(_LEADERBOARD))
        cells.append(_code(_CURVES.format(metric=repr(data["metric"]["name"]))))
        cells.append(_code(_TRIALS))
    content = {
        "cells": [{**cell, "id": f"{i}-{digest(cell)}"} for i, cell in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1)


def _code(text: str) -> dict[str, Any]:
    return {**_cell("code", text.strip()), "outputs": [], "execution_count": None}


def _cell(kind: str, text: str) -> dict[str, Any]:
    return {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True)}
