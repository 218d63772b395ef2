"""Paths of an experiment: where they start, and that a sweep is found again from anywhere."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from crucible_tinkex.config import DataSection, Experiment

FILE = """
[service]
api_key_file = "key"
[model]
base = "{base}"
tokenizer = "{tokenizer}"
[data]
train = "data/x.jsonl"
eval = "/elsewhere/y.jsonl"
"""


def written(
    folder: Path, *, base: str = "nano", tokenizer: str = "org/name", more: str = ""
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "exp.toml"
    file.write_text(FILE.format(base=base, tokenizer=tokenizer) + more)
    return file


def test_a_files_paths_start_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "project", more='[run]\nstorage = "out"\n')
    monkeypatch.chdir(tmp_path)
    for given in (file, Path("project/exp.toml")):
        found = Experiment.from_toml(given, overrides={"optimizer.learning_rate": 0.5})
        assert found.name == "exp"
        assert found.data.train == str(tmp_path / "project/data/x.jsonl")
        assert found.data.eval == "/elsewhere/y.jsonl"
        assert found.service.api_key_file == str(tmp_path / "project/key")
        assert found.run.storage == str(tmp_path / "project/out")
        assert found.optimizer.learning_rate == 0.5


def test_an_override_edits_the_file_so_its_paths_start_there_too(tmp_path: Path) -> None:
    file = written(tmp_path)
    found = Experiment.from_toml(file, overrides={"data.train": "z", "run.storage": "~/r"})
    assert found.data.train == str(tmp_path / "z")
    assert found.run.storage == str(Path.home() / "r")


def test_the_default_storage_and_pythons_paths_start_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    assert Experiment.from_toml(file).run.storage == str(tmp_path / "runs")
    raw = {"name": "e", "model": {"base": "nano"}, "data": {"train": "x.jsonl"}}
    assert Experiment.build(raw).data.train == str(tmp_path / "x.jsonl")
    assert DataSection(train="x.jsonl").train == str(tmp_path / "x.jsonl")


def test_a_uri_is_left_alone(tmp_path: Path) -> None:
    overrides = {"run.storage": "s3://bucket/runs"}
    assert Experiment.from_toml(written(tmp_path), overrides=overrides).run.storage == (
        "s3://bucket/runs"
    )


def test_a_model_or_tokenizer_is_a_folder_beside_the_file_or_a_name(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").touch()
    (tmp_path / "org").mkdir()
    file = written(tmp_path, base="mine", tokenizer="mine")
    mine = Experiment.from_toml(file, overrides={"service.base_url": "embedded"}).model
    assert mine.base == mine.tokenizer == str(tmp_path / "mine")
    assert Experiment.from_toml(file).model.base == "mine"  # of another service: a name
    names = Experiment.from_toml(written(tmp_path, base="org", tokenizer="a/b")).model
    assert (names.base, names.tokenizer) == ("org", "a/b")
    file = written(tmp_path, base="n" * 5000)
    long = Experiment.from_toml(file, overrides={"service.base_url": "embedded"}).model
    assert long.base == "n" * 5000


# --- what a sweep's folder keeps --------------------------------------------------------------


def kept(file: Path, sweep: Path, **overrides: Any) -> dict[str, Any]:
    stored = Experiment.from_toml(file, overrides=overrides).stored(sweep)
    return dict(json.loads(json.dumps(stored)))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with an experiment, its data, a tokenizer and a sweep."""
    folder = tmp_path / "work" / "project"
    written(folder, tokenizer="tok")
    for path in ("tok", "data", "runs/s"):
        (folder / path).mkdir(parents=True)
    (folder / "data/x.jsonl").touch()
    return folder


def test_a_sweep_is_loaded_from_any_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Experiment.from_toml(project / "exp.toml", overrides={"run.storage": "runs"})
    raw = kept(project / "exp.toml", project / "runs/s")
    monkeypatch.chdir("/")
    assert Experiment.loaded(raw, project / "runs/s") == asked
    monkeypatch.chdir(project / "runs")
    assert Experiment.loaded(raw, Path("s")) == asked


def test_a_project_may_be_moved(project: Path, tmp_path: Path) -> None:
    raw = kept(project / "exp.toml", project / "runs/s")
    moved = tmp_path / "moved"
    shutil.move(project, moved)
    found = Experiment.loaded(raw, moved / "runs/s")
    assert found.data.train == str(moved / "data/x.jsonl")
    assert found.data.eval == "/elsewhere/y.jsonl"
    assert found.model.tokenizer == str(moved / "tok")
    assert found.run.storage == str(moved / "runs")


@pytest.mark.parametrize("train", ["data/what?.jsonl", "data/x.jsonl?limit=2"])
def test_a_question_mark_in_a_path_is_found_again(
    project: Path, tmp_path: Path, train: str
) -> None:
    (project / "data/what?.jsonl").touch()
    raw = kept(project / "exp.toml", project / "runs/s", **{"data.train": train})
    shutil.move(project / "runs", tmp_path / "elsewhere")
    found = Experiment.loaded(raw, tmp_path / "elsewhere/s")
    assert found.data.train == str(project / train)


def test_the_storage_may_be_moved_alone(project: Path, tmp_path: Path) -> None:
    raw = kept(project / "exp.toml", project / "runs/s")
    shutil.move(project / "runs", tmp_path / "elsewhere")
    found = Experiment.loaded(raw, tmp_path / "elsewhere/s")
    assert found.data.train == str(project / "data/x.jsonl")
    assert found.run.storage == str(tmp_path / "elsewhere")


def test_data_far_from_the_storage_is_kept_absolute(project: Path, tmp_path: Path) -> None:
    raw = kept(project / "exp.toml", tmp_path / "far/runs/s")
    assert raw["data"]["train"] == str(project / "data/x.jsonl")
    assert kept(project / "exp.toml", Path("/runs/s"))["data"]["train"] == raw["data"]["train"]


def test_a_hub_name_is_no_path(project: Path) -> None:
    raw = kept(project / "exp.toml", project / "runs/s", **{"model.tokenizer": "org/name"})
    assert Experiment.loaded(raw, project / "runs/s").model.tokenizer == "org/name"


def test_what_version_0_1_0_kept_is_read() -> None:
    sweep = Path(__file__).parent / "assets/sweep-0.1.0"
    raw = json.loads((sweep / "resolved.json").read_text())["experiment"]
    found = Experiment.loaded(raw, sweep)
    assert found.train.steps(10**6) == 12
    assert found.search.objective_direction == "min"
    assert found.data.train == os.path.abspath(raw["data"]["train"])
