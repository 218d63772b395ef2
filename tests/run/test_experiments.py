"""The files in experiments/: all are ready to run, their data are as said, the micro one runs."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest

import crucible_tinkex as ct
from crucible_tinkex.datasets import load_tokenizer, open_rows
from crucible_tinkex.server.bases import ensure_base
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep, prepare
from crucible_tinkex.training.losses.schemes import has_invalid_citation

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
DATA = EXPERIMENTS / "data"
FILES = sorted(EXPERIMENTS.glob("*.toml"))


def prepared(name: str, folder: Path) -> PreparedSweep:
    experiment = ct.Experiment.from_toml(EXPERIMENTS / f"{name}.toml")
    return prepare(experiment, storage=str(folder / "runs"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_is_ready_to_run(file: Path, tmp_path: Path) -> None:
    found = prepared(file.stem, tmp_path)
    assert not [w for w in found.warnings() if "not applied" not in w]
    if found.experiment.model.base == "nano":  # the other is fetched
        tokenizer = load_tokenizer(ensure_base("nano").tokenizer_folder)
        data = found.tokenised(tokenizer, "nano")
        assert data.train.truncated == data.train.dropped == 0 or found.experiment.data.too_long


def test_the_main_one_has_the_shape_of_the_original(tmp_path: Path) -> None:
    found = prepared("scifact_main", tmp_path)
    rows, steps = found.declared.epoch_rows, found.experiment.train.steps(505)
    assert (rows, rows % 8, len(found.eval_rows or ())) == (505, 1, 50)
    assert (steps, 5 * rows - (steps - 1) * 8) == (316, 5)  # no step of one row
    assert found.warnings() == [
        "lora.alpha is not applied by the Tinker API",
        "lora.dropout is not applied by the Tinker API",
    ]


def test_the_weight_multiplies_nothing_on_valid_rows_and_fifty_on_the_others(
    tmp_path: Path,
) -> None:
    found = prepared("citation_weight_aa", tmp_path)

    def invalid(name: str) -> int:
        rows = found.training[found.data_of[name].files].rows
        return sum(has_invalid_citation(row.notes, row.completion_text) for row in rows)

    assert {name: invalid(name) for name in found.data_of} == {"valid": 0, "with_negatives": 50}
    assert {t.epoch_rows for t in found.training.values()} == {505}


def test_the_sweep_has_three_seeds_of_nine(tmp_path: Path) -> None:
    found = prepared("scifact_rank_lr_sweep", tmp_path)
    assert len(found.configurations) == 9 and len(found.experiment.search.seeds) == 3


def test_the_data_are_what_the_script_makes(tmp_path: Path) -> None:
    script = runpy.run_path(str(DATA / "make_claims.py"))
    for name in ("scifact", "fever"):
        for part, rows in script[name]().items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            assert (DATA / f"{name}_{part}.jsonl").read_text(encoding="utf-8") == text
    fever = open_rows([DATA / "fever_train.jsonl"])
    assert (
        fever.formats == ["fever"]
        and fever.shared_with(open_rows([DATA / "fever_eval.jsonl"])) == 0
    )


def test_the_micro_one_runs(tmp_path: Path) -> None:
    folder = tmp_path / "experiments"
    shutil.copytree(EXPERIMENTS, folder)
    experiment = ct.Experiment.from_toml(folder / "scifact_micro.toml")
    sweep = ct.run(experiment, storage=tmp_path / "runs")
    best: Any = sweep.best()
    losses = sweep.events(name="train/nll").sort_by("step")["value"].to_pylist()
    assert (sweep.exit_code, best["step"], len(losses)) == (0, 9, 9)
    assert losses[-1] < 0.6 * losses[0]
    assert set(best["metrics"]) >= {"eval/score/schema_compliance", "eval/score/citation_accuracy"}
