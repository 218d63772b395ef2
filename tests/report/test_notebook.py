"""The notebook's cells on names that have quotes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from states import folded

from crucible_tinkex.report.data import report_data
from crucible_tinkex.report.formats.notebook import notebook

TABLES = """
create table trials as select 't' as trial_id, 'run' as run_name, 0 as index;
create table events as select 't' as trial_id, 4 as step, 0.5 as value, ? as name;
"""


class Sweep:
    """Of one trial with one value of a metric."""

    def __init__(self, metric: str) -> None:
        self._tables = duckdb.connect()
        trials, events, _ = TABLES.split(";")
        self._tables.execute(trials)
        self._tables.execute(events, [metric])

    def query(self, sql: str) -> list[Any]:
        return self._tables.execute(sql).fetchall()


@pytest.mark.parametrize("metric", ["eval/nll", "eval/f1/don't", "eval/f1/a'", "eval/f1/{b}\\n"])
def test_curves_of_any_metric_are_found(tmp_path: Path, metric: str) -> None:
    data = report_data(*folded(tmp_path / "runs"))
    data = {**data, "metric": {**data["metric"], "name": metric}}
    cells = json.loads(notebook([data], tmp_path / "runs", tmp_path))["cells"]
    (curves,) = (cell for cell in cells if "select run_name" in "".join(cell["source"]))
    shown: list[Any] = []
    exec("".join(curves["source"]), {"sweep": Sweep(metric), "Plots": shown.extend})
    assert shown == [("run", 4, 0.5)]
