"""Tables for SQL: every hyperparameter has a column of its own."""

from __future__ import annotations

from crucible_tinkex.registry import SweepState, TrialRecord
from crucible_tinkex.sweep.results.views.tables import query_tables


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
