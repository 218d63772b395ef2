"""A real sweep whose trials learn from different files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import crucible

import crucible_tinkex as ct
from crucible_tinkex.registry import SweepState
from crucible_tinkex.sweep.launch import Launch
from crucible_tinkex.sweep.orders.control import Command, Inbox
from crucible_tinkex.sweep.preparing.preparation import prepare
from crucible_tinkex.sweep.results.registering import register_trial

EXPERIMENT = """
[service]
base_url = "embedded"
dtype = "fp32"
threads = 1
[model]
base = "nano"
[data]
eval = "eval.jsonl"
[train]
epochs = 1
batch_size = 4
[search]
reference = false
[search.space]
"optimizer.learning_rate" = [1e-3, 3e-3]
"data.train" = ["data/true.jsonl", "data/false.jsonl"]
[run]
executor = "local"
"""
RUN = ("run", "small.toml", "--storage", "runs")
AXIS = 'search.space."data.train"'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `small.toml` and `runs/small`, which has ended."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "data").mkdir()
    prompts = [f"{i:03}>" for i in range(30)]
    answers = [prompt[2::-1] for prompt in prompts]
    for name, rows in {
        "data/true": list(zip(prompts, answers, strict=True))[:24],
        "data/false": [(prompt, "zzz") for prompt in prompts[:16]],
        "eval": list(zip(prompts, answers, strict=True))[24:],
    }.items():
        lines = [json.dumps({"prompt": p, "completion": c}) for p, c in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "small.toml").write_text(EXPERIMENT)
    ended = crucible(*RUN, folder=folder)
    assert ended.returncode == 0, ended.stderr
    return folder


def results(folder: Path, sweep: str) -> dict[tuple[float, str | None], tuple[float, int]]:
    """Loss and steps of every trial."""
    found = ct.open_sweep(sweep, storage=str(folder / "runs"))
    rows = found.query("select * from trials").to_pylist()
    return {(r["learning_rate"], r.get("train")): (r["eval_nll"], r["total_steps"]) for r in rows}


def test_each_trial_learns_from_its_own_file(folder: Path) -> None:
    found = results(folder, "small")
    assert len(found) == 4
    for rate in (1e-3, 3e-3):
        true, false = found[rate, "data/true.jsonl"], found[rate, "data/false.jsonl"]
        assert (true[1], false[1]) == (6, 4)
        assert true[0] < false[0] - 0.1
    alone = crucible(
        *RUN,
        *("--name", "alone", "--set", 'data.train="data/false.jsonl"'),
        *("--set", "search.space={optimizer={learning_rate=[3e-3]}}"),
        folder=folder,
    )
    assert alone.returncode == 0, alone.stderr
    assert results(folder, "alone")[3e-3, None] == found[3e-3, "data/false.jsonl"]


def test_a_registered_model_knows_its_own_rows(folder: Path) -> None:
    sweep = ct.open_sweep("small", storage=str(folder / "runs"))
    state = SweepState.read(sweep.paths)
    trials = {str(trial.values["data.train"]): trial for trial in state.trials.values()}
    entries = [
        register_trial(state, sweep.paths, trials[name], "digits").entry
        for name in ("data/true.jsonl", "data/false.jsonl")
    ]
    assert [e.data_fingerprint for e in entries] == list(state.meta["fingerprints"].values())


def test_plan_shows_the_rows_of_each_file(folder: Path) -> None:
    shown = crucible("plan", "small.toml", "--storage", "runs", "--json", folder=folder)
    found = json.loads(shown.stdout)
    assert found["train_sets"] == {"data/true.jsonl": 24, "data/false.jsonl": 16}
    assert found["train_tokens"] == 2 * (6 + 4) * 4 * 7, "rows of 7 targets"
    names = [example["id"].partition(":")[0] for example in found["examples"]]
    assert names == list(found["train_sets"])


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        (f'{AXIS}=["data/true.jsonl", "data/none.jsonl"]', "data.train = 'data/none.jsonl': "),
        (f"{AXIS}=[]", "no values"),
        ('search.space."data.eval"=["eval.jsonl"]', "'data.eval' cannot vary"),
        ("data={eval_fraction=0.2}", "name a file in data.eval instead"),
    ],
)
def test_it_is_refused_and_nothing_is_changed(folder: Path, assignment: str, said: str) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    refused = crucible(*RUN, "--set", assignment, folder=folder)
    assert refused.returncode == 2, (refused.stdout, refused.stderr)
    assert refused.stderr.startswith("error: ") and said in refused.stderr
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_running_sweep_reads_a_file_that_is_new(folder: Path) -> None:
    experiment = ct.Experiment.from_toml(folder / "small.toml", overrides={"train.max_steps": 1})
    prepared = prepare(experiment, storage=str(folder / "runs"), name="asked")
    added = str(folder / "eval.jsonl")
    new = {"search.space.data.train": ["data/true.jsonl", added]}
    Inbox(prepared.paths).put(Command("extend", settings=new))
    result = Launch(prepared).run()
    (answer,) = result.state.commands.values()
    assert (result.exit_code, answer) == (0, "extend: search.space.data.train")
    done = [t for t in result.state.trials.values() if t.state == "done"]
    assert [t.values.get("data.train") for t in done].count(added) == 2
    kept = json.loads(prepared.paths.resolved.read_text())["experiment"]
    assert added in kept["data"]["sets"]


def test_a_file_is_added_to_a_sweep_that_has_ended(folder: Path) -> None:
    before = results(folder, "small")
    mixed = '["data/false.jsonl", { path = "data/true.jsonl", weight = 0.5 }]'
    more = crucible(*RUN, "--set", f'{AXIS}=["data/true.jsonl", {mixed}]', folder=folder)
    assert more.returncode == 0, more.stderr
    found = results(folder, "small")
    assert before.items() <= found.items(), "those of the file that was left out stay"
    assert [steps for key, (_, steps) in found.items() if key not in before] == [7, 7]
    (folder / "data/false.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    changed = crucible("resume", "small", "--storage", "runs", folder=folder)
    assert changed.returncode == 2
    assert "the content of data.train = 'data/false.jsonl'" in changed.stderr
