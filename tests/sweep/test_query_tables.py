"""Tables for SQL: every hyperparameter has a column of its own."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from local_sweeps import Bench

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.registry import SweepState, TrialRecord
from crucible_tinkex.sweep.results.views.tables import joined, query_tables
from crucible_tinkex.weights.evaluations import query_sweeps


def trial(number: int, **values: float) -> TrialRecord:
    keys = {k.replace("__", "."): v for k, v in values.items()}
    return TrialRecord(f"t{number}", number, f"run-{number}", keys, seed=7, total_steps=4)


def test_a_column_is_named_by_the_last_part_of_its_key_where_no_other_is() -> None:
    state = SweepState()
    state.trials["t1"] = trial(1, optimizer__learning_rate=1e-3, lora__seed=3, data__train=1)
    state.trials["t2"] = trial(2, evaluation__train=2)
    table = query_tables(state)["trials"]
    first, second = table.to_pylist()
    assert (first["learning_rate"], second["learning_rate"]) == (1e-3, None)
    assert (first["seed"], first["lora_seed"]) == (7, 3)
    assert (first["data_train"], second["evaluation_train"]) == (1, 2)
    assert len(set(table.column_names)) == len(table.column_names)


def test_a_sweep_without_trials_has_empty_tables() -> None:
    tables = query_tables(SweepState())
    assert [t.num_rows for t in tables.values()] == [0, 0]


def test_sweeps_with_other_settings_are_one_table(tmp_path: Path) -> None:
    spaces = [{"lora.rank": [2, 8]}, {"optimizer.schedule": ["constant"]}]
    sweeps = []
    for number, space in enumerate(spaces):
        bench = Bench(tmp_path / str(number), search={"space": space})
        bench.run()
        sweeps.append(bench.paths)
    rows = query_sweeps(sweeps, "select rank, schedule from trials where not reference").to_pylist()
    assert [tuple(row.values()) for row in rows] == [(2, None), (8, None), (None, "constant")]
    with pytest.raises(ConfigError, match="nothing"):
        query_sweeps(sweeps, "select nothing from trials")


def test_kinds_that_do_not_go_together_are_named() -> None:
    tables = [{"trials": pa.table({"mine": [value]})} for value in (1.5, "text")]
    with pytest.raises(ConfigError, match=r"trials of these sweeps.*mine"):
        joined(["a", "b"], tables)
