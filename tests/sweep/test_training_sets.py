"""Training files as an axis: which rows a trial has, what it is called, what it refuses."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from prepared_sweeps import Make, begun, built

from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import load_tokenizer
from crucible_tinkex.errors import ConfigError, DataError, SweepExistsError
from crucible_tinkex.server.bases.nano import write_tokenizer
from crucible_tinkex.sweep.preparing.estimate import row_tokens
from crucible_tinkex.sweep.preparing.manifest import write_manifest
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep, load_sweep, prepare
from crucible_tinkex.training.data import SweepData

FILES = {"a": 12, "b": 6, "c": 3, "eval": 4}
AXIS = ["data/a.jsonl", "data/b.jsonl"]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes experiments on files in `tmp_path`; keyword arguments are merged into sections."""
    (tmp_path / "data").mkdir()
    for name, count in FILES.items():
        rows = [json.dumps({"prompt": f"{name}{i}", "completion": "x"}) for i in range(count)]
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(rows) + "\n")

    def build(axis: Any = AXIS, **sections: Any) -> Experiment:
        space = {} if axis is None else {"data.train": axis}
        declared = {
            "data": {"eval": "data/eval.jsonl"},
            "train": {"batch_size": 2, "epochs": 1},
            "search": {"space": space},
        }
        return built(tmp_path, declared, sections)

    return build


def ids(prepared: PreparedSweep) -> list[str]:
    return [prepared.planner.plan(values, 0).trial_id for values in prepared.configurations]


def tokenised(prepared: PreparedSweep, folder: Path) -> SweepData:
    write_tokenizer(folder / "tokenizer")
    return prepared.tokenised(load_tokenizer(folder / "tokenizer"), str(folder / "tokenizer"))


# --- a trial has its own rows ---------------------------------------------------------------------


def test_a_trial_is_as_long_as_its_rows(make: Make, tmp_path: Path) -> None:
    prepared = prepare(make())
    assert [dict(values) for values in prepared.configurations] == [
        {"data.train": "data/a.jsonl"},
        {"data.train": "data/b.jsonl"},
    ]
    plans = [prepared.planner.plan(values, 0) for values in prepared.configurations]
    assert [plan.total_steps for plan in plans] == [6, 3]
    assert plans[1].experiment.data.train == str(tmp_path / "data/b.jsonl")
    assert prepared.planner.steps == 6, "as declared: the first of the axis"


def test_a_session_is_given_the_rows_of_its_trial(make: Make, tmp_path: Path) -> None:
    prepared = prepare(make([*AXIS, ["data/b.jsonl", "data/c.jsonl"]]))
    data = tokenised(prepared, tmp_path)
    plans = [prepared.planner.plan(values, 0) for values in prepared.configurations]
    own = [copy.deepcopy(data).of(plan.experiment.data) for plan in plans]
    assert [len(found.train) for found in own] == [12, 6, 9]
    assert {len(found.eval) for found in own if found.eval} == {4}
    steps = [6, 3, 5]
    row = sum(
        found.train.epoch_positions / len(found.train) * count
        for found, count in zip(own, steps, strict=True)
    )
    assert row_tokens(data, plans) == pytest.approx(row / sum(steps))
    assert not own[0].sets, "a session holds no other trial's rows"


@pytest.mark.parametrize("file", ["a", "b"])
def test_it_is_the_trial_that_a_sweep_of_its_file_has(make: Make, file: str) -> None:
    alone = prepare(make(None, data={"train": f"data/{file}.jsonl"}))
    (own,) = ids(alone)
    assert ids(prepare(make()))[AXIS.index(f"data/{file}.jsonl")] == own
    assert alone.fingerprints == {}


def test_trials_of_sweeps_that_there_are_keep_their_identities(make: Make) -> None:
    """As they were before the training files could vary."""
    prepared = prepare(make(None, data={"train": "data/a.jsonl"}))
    assert prepared.fingerprint == "0c05634f345472326b4103de0b99f8d9"
    assert prepared.planner.plan({}, 0).trial_id == "85eaf21a390b"
    assert prepared.planner.plan({}, 0, reference=True).trial_id == "09837b4e1c95"


def test_lists_weights_and_names_are_values(make: Make, tmp_path: Path) -> None:
    mixed = ["data/b.jsonl", {"path": "data/a.jsonl", "weight": 0.5}]
    sets = {"small": "data/c.jsonl"}
    prepared = prepare(make([mixed, "small", ["data/c.jsonl"]], data={"sets": sets}))
    names = [values["data.train"] for values in prepared.configurations]
    assert names == ["data/b.jsonl + 0.5 x data/a.jsonl", "small"], "a list of one is that file"
    plans = [prepared.planner.plan(values, 0) for values in prepared.configurations]
    assert [plan.total_steps for plan in plans] == [6, 2]


def test_conditions_and_configurations_name_them(make: Make) -> None:
    search = {"where": ["data.train != 'data/a.jsonl'"]}
    space = {"space": {"data.train": AXIS, "lora.rank": [2, 4]}}
    found = prepare(make(search={**space, **search})).configurations
    assert [values["lora.rank"] for values in found] == [2, 4]
    listed = {"strategy": "list", "configs": [{"data.train": ["data/c.jsonl"]}, {"lora.rank": 2}]}
    prepared = prepare(make(None, search=listed))
    plans = [prepared.planner.plan(values, 0) for values in prepared.configurations]
    assert [plan.total_steps for plan in plans] == [2, 2]
    assert prepared.experiment.search.training_data == ["data/c.jsonl"]


def test_declared_rows_are_read_too_for_those_that_do_not_vary(make: Make) -> None:
    prepared = prepare(make(data={"train": "data/c.jsonl"}))
    assert [len(found.rows) for found in prepared.training.values()] == [3, 12, 6]
    assert prepared.planner.plan({}, 0).total_steps == 2


# --- what a sweep keeps ---------------------------------------------------------------------------


def test_its_names_stay_when_a_project_is_moved(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begun(make())
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("data", "runs"):
        shutil.move(tmp_path / name, moved / name)
    monkeypatch.chdir("/")
    again = prepare(load_sweep(moved / "runs", "s"), storage=str(moved / "runs"))
    assert (again.amendments, ids(again)) == ([], ids(first))
    assert again.experiment.data.sets["data/b.jsonl"] == str(moved / "data/b.jsonl")


def test_another_value_amends_the_sweep_and_keeps_what_was_declared(make: Make) -> None:
    first = begun(make())
    again = prepare(make(["data/c.jsonl", *AXIS]))
    assert again.amendments == ["search.space.data.train"]
    assert ids(again)[1:] == ids(first)
    assert again.fingerprint == first.fingerprint, "also of the base, which is evaluated once"
    assert write_manifest(again)["fingerprints"].keys() == {"data/c.jsonl", *AXIS}


def test_an_axis_amends_a_sweep_that_had_none(make: Make) -> None:
    first = begun(make(None, data={"train": "data/a.jsonl"}))
    again = prepare(make())
    assert "search.space.data.train" in again.amendments
    assert ids(again)[0] == ids(first)[0]


def test_a_running_sweep_reads_a_new_file(make: Make, tmp_path: Path) -> None:
    data = tokenised(prepare(make()), tmp_path)
    assert prepare(make(AXIS[::-1])).is_read(data)
    more = prepare(make([*AXIS, "data/c.jsonl"]))
    assert not more.is_read(data)
    again = more.tokenised_as(data)
    assert more.is_read(again)
    assert more.measured(again).fingerprints.keys() == {"data/c.jsonl", *AXIS}


def test_a_changed_file_is_refused_by_its_name(make: Make, tmp_path: Path) -> None:
    first = begun(make())
    before = first.paths.resolved.read_text()
    file = tmp_path / "data/b.jsonl"
    file.write_text(file.read_text() + '{"prompt": "new", "completion": "y"}\n')
    with pytest.raises(SweepExistsError, match=r"changed: the content of data\.train = 'data/b"):
        prepare(make())
    assert first.paths.resolved.read_text() == before


# --- warnings -------------------------------------------------------------------------------------


def test_warnings_name_the_file_they_are_about(make: Make, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "data/eval.jsonl", tmp_path / "data/b.jsonl")
    found = prepare(make(train={"batch_size": 4})).warnings()
    assert f"4 eval rows also stand in the training file {tmp_path / 'data/b.jsonl'}" in found
    assert any(w.startswith("data.train = 'data/b.jsonl': train.batch_size = 4") for w in found)
    own = prepare(make(search={"space": {"data.train": AXIS}, "metric": "train/nll"})).warnings()
    assert any("train/nll is measured on each trial's own rows" in w for w in own)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "sections", "words"),
    [
        (["data/a.jsonl", ""], {}, r"search\.space\.data\.train: '' names no file"),
        (["data/a.jsonl", []], {}, r"search\.space\.data\.train: \[\] names no file"),
        (["data/a.jsonl", 3], {}, r"search\.space\.data\.train: 3 names no file"),
        ([[{"weight": 2}]], {}, r"names no file"),
        ([[{"path": "x", "wieght": 2}]], {}, r"did you mean 'weight'. legal here: path, weight$"),
        ([], {}, r"'data\.train' has no values"),
        ({"low": 1, "high": 2}, {}, r"search\.space\.data\.train: it must be a list of files"),
        (AXIS, {"data": {"eval": None, "eval_fraction": 0.5}}, "name a file in data.eval instead"),
        (AXIS, {"data": {"eval": None, "eval_rows": 2}}, "name a file in data.eval instead"),
        (None, {"data": {"train": "data/a.jsonl", "sets": {"x": []}}}, "'x' must name at least"),
        (None, {"data": {"sets": {"x": "data/a.jsonl"}}}, r"missing key 'data\.train'"),
    ],
)
def test_values_that_are_no_files_are_refused(
    make: Make, axis: Any, sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make(axis, **sections)


@pytest.mark.parametrize("position", [0, 1])
def test_a_file_that_cannot_be_read_is_named_with_its_key(
    make: Make, tmp_path: Path, position: int
) -> None:
    (tmp_path / "data/empty.jsonl").write_text("")
    for name, words in (("none", "no such file"), ("empty", "the file has no rows")):
        axis = ["data/a.jsonl"]
        axis.insert(position, f"data/{name}.jsonl")
        with pytest.raises(DataError, match=rf"data\.train = 'data/{name}\.jsonl': .*{words}"):
            prepare(make(axis))
    assert not (tmp_path / "runs").exists()


def test_a_misspelt_short_name_is_told_the_nearest(make: Make) -> None:
    sets = {"mixed": ["data/a.jsonl", "data/a.jsonl"]}
    with pytest.raises(DataError, match=r"'mixd': .*did you mean 'mixed' of data\.sets"):
        prepare(make(["mixed", "mixd"], data={"sets": sets}))


def test_a_name_that_the_search_does_not_know_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"no training data 'data/x\.jsonl' \(it has 'data/a"):
        make().configured({"data.train": "data/x.jsonl"})
