"""Preparing a sweep: what amends it, what contradicts it, what is left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from prepared_sweeps import Make, begun, built

from crucible_tinkex.cli.sweeps.execution import run_prepared
from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import ConfigError, SweepBusyError, SweepExistsError
from crucible_tinkex.registry import Registry
from crucible_tinkex.storage import Lock
from crucible_tinkex.sweep.orders.control import Command
from crucible_tinkex.sweep.orders.steering import steer
from crucible_tinkex.sweep.preparing.manifest import write_manifest
from crucible_tinkex.sweep.preparing.preparation import load_sweep, prepare, reopened
from crucible_tinkex.sweep.results.views.summary import read_state, sweep_state

ASSET = Path(__file__).parent.parent / "assets" / "sweep-0.1.0"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes experiments on files in `tmp_path`; keyword arguments are merged into sections."""
    for name in ("train", "eval"):
        rows = [json.dumps({"prompt": f"{name}{i}", "completion": "x"}) for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))

    def build(**sections: Any) -> Experiment:
        declared = {
            "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
            "search": {"space": {"lora.rank": [2, 4]}},
        }
        return built(tmp_path, declared, sections)

    return build


def test_preparing_changes_nothing_on_disk(make: Make, tmp_path: Path) -> None:
    prepared = prepare(make())
    assert prepared.existing is None
    assert prepared.amendments == []
    assert prepared.policy().planned == 3
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("sections", "amended"),
    [
        ({}, []),
        ({"run": {"max_concurrent": 2}}, []),
        ({"train": {"max_steps": 9}}, ["train.max_steps"]),
        ({"train": {"eval_every": 3}}, ["train.eval_every"]),
        ({"search": {"seeds": [0, 1]}}, ["search.seeds"]),
        ({"search": {"space": {"lora.rank": [2, 4, 8]}}}, ["search.space.lora.rank"]),
        ({"search": {"metric": "eval/accuracy"}}, ["search.metric", "search.direction"]),
    ],
)
def test_asking_for_more_amends_the_sweep(
    make: Make, sections: dict[str, Any], amended: list[str]
) -> None:
    first = begun(make())
    again = prepare(make(**sections))
    assert again.amendments == amended
    meta = write_manifest(again)
    assert meta["sweep_id"] == json.loads(first.paths.resolved.read_text())["sweep_id"]


@pytest.mark.parametrize(
    ("sections", "changed"),
    [
        ({"model": {"base": "smollm2-135m-instruct"}}, "model.base"),
        ({"service": {"dtype": "fp32"}}, "service.dtype"),
        ({"service": {"base_url": "https://tinker.example"}}, "service.base_url"),
        ({"train": {"max_length": 100}}, "train.max_length"),
        ({"evaluation": {"max_rows": 3}}, "evaluation.max_rows"),
    ],
)
def test_what_makes_numbers_incomparable_is_refused(
    make: Make, sections: dict[str, Any], changed: str
) -> None:
    first = begun(make())
    before = first.paths.resolved.read_text()
    with pytest.raises(SweepExistsError, match=changed):
        prepare(make(**sections))
    assert first.paths.resolved.read_text() == before


def test_other_data_is_refused_and_the_same_rows_elsewhere_are_not(
    make: Make, tmp_path: Path
) -> None:
    begun(make())
    moved = tmp_path / "moved.jsonl"
    shutil.copy(tmp_path / "train.jsonl", moved)
    assert prepare(make(data={"train": str(moved)})).amendments == []
    moved.write_text(moved.read_text() + '\n{"prompt": "new", "completion": "y"}')
    with pytest.raises(SweepExistsError, match="content of the data files"):
        prepare(make(data={"train": str(moved)}))


def test_another_service_from_the_environment_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", "https://one.example")
    begun(make(service={"base_url": None}))
    monkeypatch.setenv("TINKER_BASE_URL", "https://two.example")
    with pytest.raises(SweepExistsError, match=r"https://one\.example until now"):
        prepare(make(service={"base_url": None}))


def test_a_sweep_is_loaded_from_any_folder_also_a_moved_one(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(make())
    monkeypatch.chdir("/")
    assert Path(load_sweep(tmp_path / "runs", "s").data.train) == tmp_path / "train.jsonl"
    with pytest.raises(ConfigError, match="no sweep 'none'"):
        load_sweep(tmp_path / "runs", "none")


def test_a_sweep_of_version_0_1_0_is_read_and_not_continued(make: Make, tmp_path: Path) -> None:
    shutil.copytree(ASSET, tmp_path / "runs" / "s")
    with pytest.raises(SweepExistsError, match=r"made by version 0\.1\.0"):
        prepare(make())


def test_a_folder_that_is_no_sweep_is_left_alone(make: Make, tmp_path: Path) -> None:
    thesis = tmp_path / "runs" / "s" / "thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("precious")
    with pytest.raises(SweepExistsError, match="is not a sweep"):
        prepare(make())
    assert thesis.read_text() == "precious"


def test_a_sweep_that_runs_says_how_to_get_at_it_and_nothing_else(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = begun(make())
    lock = Lock(prepared.paths.lock)
    name = f"s --storage {prepared.paths.root.parent}"
    said = rf"in use by process \d+ .*`crucible watch {name}` .*`crucible stop {name}` ends it"
    with pytest.raises(SweepBusyError, match=said):
        run_prepared(prepare(make(search={"seeds": [0, 1]})), address=None, quiet=True)
    lock.close()
    assert capsys.readouterr() == ("", "")


async def test_what_no_run_ever_began_is_not_interrupted(make: Make) -> None:
    """A run that is refused for its base leaves no more than what was asked."""
    paths = begun(make()).paths
    assert sweep_state(read_state(paths), paths) == "pending"
    registry = Registry(paths, "run-1")
    await registry.create({**read_state(paths).meta})
    registry.shut()
    assert sweep_state(read_state(paths), paths) == "interrupted"


async def test_an_amendment_counts_once_the_journal_has_it(make: Make) -> None:
    first = begun(make())
    more = prepare(make(search={"seeds": [0, 1]}))
    meta = write_manifest(more)  # and the run ended before its journal was opened
    registry = Registry(first.paths, "run-1")
    await registry.create({**meta, "experiment": first.experiment.stored(first.paths.root)})
    assert prepare(load_sweep(first.paths.root.parent, "s")).amendments == ["search.seeds"]
    await registry.amend(meta, ["search.seeds"], "op")
    assert prepare(load_sweep(first.paths.root.parent, "s")).amendments == []
    registry.shut()


# --- the rows ----------------------------------------------------------------------------------


def test_the_identity_of_the_data_is_what_it_was_in_older_sweeps(make: Make) -> None:
    # Pinned: a change here would start every sweep that was run anew.
    assert prepare(make()).fingerprint == "20d79e7359aaff5e68cf84b9f4465a91"


@pytest.mark.parametrize(
    ("data", "changed"),
    [
        ({"train_on": "everything"}, "data.train_on"),
        ({"too_long": "drop"}, "data.too_long"),
        ({"train": [{"path": "train.jsonl", "weight": 0.5}]}, "content of the data files"),
        ({"train": ["train.jsonl", "eval.jsonl"]}, "content of the data files"),
        ({"eval": None, "eval_fraction": 0.5}, "data.eval_fraction"),
    ],
)
def test_other_reading_is_refused(make: Make, data: dict[str, Any], changed: str) -> None:
    begun(make())
    with pytest.raises(SweepExistsError, match=changed):
        prepare(make(data=data))


def test_rows_are_held_out_of_the_training_file(make: Make) -> None:
    prepared = prepare(make(data={"eval": None, "eval_rows": 4}))
    assert prepared.eval_rows is not None
    assert (len(prepared.declared.rows), len(prepared.eval_rows)) == (8, 4)
    assert not [w for w in prepared.warnings() if "eval rows" in w]
    assert prepared.planner.has_reference
    seeded = prepare(make(data={"eval": None, "eval_rows": 4, "eval_seed": 1}))
    assert seeded.fingerprint != prepared.fingerprint
    with pytest.raises(ConfigError, match=r"data\.eval names no file; .*data\.eval_fraction"):
        prepare(make(data={"eval": None}))


def test_weights_decide_the_steps_of_an_epoch(make: Make) -> None:
    files = ["train.jsonl", {"path": "eval.jsonl", "weight": 0.5}]
    sections = {"train": {"batch_size": 3, "epochs": 1}}
    prepared = prepare(make(data={"train": files, "eval": None, "eval_rows": 6}, **sections))
    assert prepared.declared.rows.epoch_rows < len(prepared.declared.rows) == 18
    assert prepared.planner.steps == -(-prepared.declared.rows.epoch_rows // 3)


def test_rows_that_are_left_out_are_no_part_of_an_epoch(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tokenizers import Tokenizer as Inner
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    from crucible_tinkex.datasets import Tokenizer

    letters = {letter: i for i, letter in enumerate("?abcdefghijklmnopqrstuvwxyz0123456789")}
    inner = Inner(WordLevel(letters, unk_token="?"))
    inner.pre_tokenizer = Split("", "isolated")
    tokenizer = Tokenizer("letters", inner, 0, None, (), {}, None)
    train = {"batch_size": 2, "max_length": 8}
    prepared = prepare(make(data={"too_long": "drop", "eval": None}, train=train, **TRAIN_METRIC))
    assert prepared.planner.steps == 6
    data = prepared.tokenised(tokenizer, "letters")
    assert (len(data.train), data.train.dropped) == (10, 2)  # train10 and train11
    assert (prepared.planner.steps, prepared.measured(data).planner.steps) == (6, 5)
    assert "of 2 rows over train.max_length = 8, 0 were cut and 2 left out" in caplog.text


def test_rows_that_repeat_others_are_said(make: Make, tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"p{i}", "completion": "x"}) for i in range(100)]

    def said(*more: str) -> list[str]:
        (tmp_path / "rows.jsonl").write_text("\n".join([*rows, *more]))
        found = prepare(make(data={"train": "rows.jsonl"})).warnings()
        return [w for w in found if "repeat" in w]

    assert said(*rows[:2]) == []
    (warning,) = said(*rows, *rows[:50])
    assert "rows.jsonl: 150 of 250 rows repeat others" in warning


TRAIN_METRIC: dict[str, Any] = {"search": {"metric": "train/nll"}}


def test_claims_without_evidence_and_shared_rows_are_said(make: Make, tmp_path: Path) -> None:
    claims = str(ASSET.parent / "data" / "scifact" / "claims_train.jsonl")
    warnings = prepare(make(data={"train": claims})).warnings()
    assert any("1 claims have no evidence and are passed over" in w for w in warnings)
    leak = prepare(make(data={"eval": "train.jsonl"})).warnings()
    assert "12 eval rows also stand in the training file" in leak


def test_a_sweep_finds_its_files_again(make: Make, tmp_path: Path, monkeypatch: Any) -> None:
    files = ["train.jsonl", {"path": "eval.jsonl", "weight": 0.5}, "s3://bucket/rows.jsonl"]
    experiment = make(data={"train": files, "eval": None, "eval_rows": 2})
    folder = tmp_path / "runs" / "s"
    stored = json.loads(json.dumps(experiment.stored(folder)))
    assert stored["data"]["train"] == [
        "../../train.jsonl",
        {"path": "../../eval.jsonl", "weight": 0.5},
        "s3://bucket/rows.jsonl",
    ]
    monkeypatch.chdir("/")
    assert Experiment.loaded(stored, folder).data == experiment.data


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("eval/acuracy", "nothing measures 'eval/acuracy'; did you mean 'eval/accuracy'"),
        ("acuracy", "did you mean 'eval/accuracy'"),
        ("exact_match", "nothing measures 'exact_match'; .*in evaluation.metrics"),
        ("digts", "did you mean 'eval/score/digits'"),
    ],
)
def test_a_target_that_nothing_measures_is_refused(make: Make, target: str, message: str) -> None:
    """It would be neither met nor missed, and the run would end as if it were met."""
    evaluation = {"metrics": [{"regex": "[0-9]", "name": "digits"}]}
    with pytest.raises(ConfigError, match=message):
        prepare(make(evaluation=evaluation, quality={"targets": {target: 0.9}}))
    fine = ("nll", "eval/accuracy", "digits", "eval/score/digits", "loss_reduction", "train/nll")
    prepare(make(evaluation=evaluation, quality={"targets": dict.fromkeys(fine, 0.9)}))


def test_what_an_older_version_took_is_named_with_its_file_and_can_be_corrected(
    make: Make, tmp_path: Path
) -> None:
    paths = begun(make(quality={"targets": {"eval/accuracy": 0.9}})).paths
    stored = paths.resolved.read_text().replace("eval/accuracy", "eval/acuracy")
    paths.resolved.write_text(stored)
    said = rf"{paths.resolved}: quality.targets: .*crucible extend s --storage .* --set KEY=VALUE"
    with pytest.raises(ConfigError, match=said):
        reopened(tmp_path / "runs", "s")
    with pytest.raises(ConfigError, match="nothing measures 'eval/acuracy'"):
        steer(paths, Command("extend", settings={"train.max_steps": 9}))
    targets = {"quality.targets": {"eval/accuracy": 0.9}}
    assert "begins with the next" in steer(paths, Command("extend", settings=targets))
    assert list(reopened(tmp_path / "runs", "s").experiment.quality.targets) == ["eval/accuracy"]
