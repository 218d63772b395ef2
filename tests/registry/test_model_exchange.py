"""Models exported and imported: nothing is lost, twice is once, conflicts are named, many write."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from crucible_tinkex.errors import ConfigError, DataError
from crucible_tinkex.registry.models import ModelRegistry

PATH = "tinker://run/sampler_weights/x{}"


def opened(folder: Path) -> ModelRegistry:
    ticks = count(1)
    return ModelRegistry.open(folder, clock=lambda: float(next(ticks)))


@pytest.fixture
def full(tmp_path: Path) -> ModelRegistry:
    """Versions with a gap, stages, aliases, tags, parents, later metrics, and a NaN."""
    models = opened(tmp_path / "there")
    for n in (1, 2, 3):
        models.register_model("base", checkpoint_path=PATH.format(n), metrics={"eval/nll": 1.0 / n})
    models.delete("base", 2)
    models.promote("base:3", "production")
    models.set_alias("base:3", "champion")
    models.register_model(
        "child",
        checkpoint_path=PATH.format(9),
        parents=("base:3",),
        tags=("good",),
        config={"lora.rank": 8},
        metrics={"eval/nll": math.nan},
    )
    models.update_metrics("child", {"eval/accuracy": 0.5})
    return models


def told(models: ModelRegistry) -> list[dict[str, Any]]:
    return [model.summary() for model in models.list_models()]


def logs(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob(".models/*.log"))


@pytest.mark.parametrize("source", ["file", "folder", "storage", "list"])
def test_an_import_is_the_same_models_and_twice_is_once(
    full: ModelRegistry, tmp_path: Path, source: str
) -> None:
    (tmp_path / "out").mkdir()
    full.export_models(tmp_path / "out" / "models.jsonl")
    (tmp_path / "list.json").write_text(json.dumps(told(full)))  # crucible models list --json
    sources = {"file": "out/models.jsonl", "folder": "out", "storage": "there", "list": "list.json"}
    here = opened(tmp_path / "here")
    first = here.import_models(tmp_path / sources[source])
    assert first.added == ("base:1", "base:3", "child:1") and not first.kept
    assert told(here) == told(full)
    assert [m.id for m in here.ancestors("child")] == ["base:3"]
    before = logs(tmp_path / "here")
    again = here.import_models(tmp_path / sources[source])
    assert again.unchanged == first.added and not again.added + again.changed
    assert logs(tmp_path / "here") == before
    assert here.register_model("base", checkpoint_path="elsewhere").id == "base:4"


def test_what_is_new_about_a_model_is_added(full: ModelRegistry, tmp_path: Path) -> None:
    here = opened(tmp_path / "here")
    here.import_models(tmp_path / "there")
    full.tag("child", add=["better"])
    full.update_metrics("child", {"eval/bpb": 0.9})
    full.set_alias("base:1", "first")
    found = here.import_models(tmp_path / "there")
    assert (found.changed, found.unchanged) == (("base:1", "child:1"), ("base:3",))
    assert told(here) == told(full)


def test_every_conflict_is_named_and_nothing_is_changed(
    full: ModelRegistry, tmp_path: Path
) -> None:
    here = opened(tmp_path / "here")
    for n in (7, 8, 3):  # base:1 is another checkpoint, what is base:3 there too
        here.register_model("base", checkpoint_path=PATH.format(n), metrics={"eval/nll": 0.25})
    here.promote("base:2", "production")
    here.set_alias("base:2", "champion")
    before = told(here)
    with pytest.raises(ConfigError) as caught:
        here.import_models(tmp_path / "there")
    message = str(caught.value)
    for conflict in (
        "4 conflicts, and nothing was imported",
        "base:1 is another checkpoint here: tinker://run/sampler_weights/x7",
        "base:3: eval/nll is 0.25 here, 0.333333 in the file",
        "base:3: it is in development here, in production in the file",
        "base@champion is base:3 in the file, base:2 here",
        "(--keep)",
    ):
        assert conflict in message
    assert told(here) == before
    kept = here.import_models(tmp_path / "there", keep=True)
    assert (kept.added, len(kept.kept)) == (("child:1",), 4)
    assert [m for m in told(here) if m["name"] == "base"] == before


def test_a_second_production_and_a_deleted_number_are_conflicts(
    full: ModelRegistry, tmp_path: Path
) -> None:
    here = opened(tmp_path / "here")
    for n in (1, 5):
        here.register_model("base", checkpoint_path=PATH.format(n + 20))
    here.promote("base:2", "production")
    here.delete("base", 1)
    found = here.import_models(tmp_path / "there", keep=True)
    assert "base:1 was deleted here, and its number is not used again" in found.kept
    assert "base:3 is in production in the file, base:2 here" in found.kept
    assert [(m.id, m.stage) for m in here.list_models("base")] == [
        ("base:2", "production"),
        ("base:3", "development"),
    ]


@pytest.mark.parametrize("here_is", ["another", "renumbered", "deleted"])
def test_no_child_is_given_to_a_model_that_is_not_its_parent(tmp_path: Path, here_is: str) -> None:
    rows = [
        {"name": name, "version": 1, "checkpoint_path": PATH.format(name), "parents": parents}
        for name, parents in (("grandchild", ["child:1"]), ("child", ["base:1"]), ("base", []))
    ]
    file = tmp_path / "models.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    here = opened(tmp_path / "here")
    here.register_model("base", checkpoint_path=PATH.format("other"))
    if here_is == "renumbered":
        here.register_model("base", checkpoint_path=PATH.format("base"))
    if here_is == "deleted":
        here.delete("base", 1)
    before = told(here)
    found = here.import_models(file, keep=True)
    assert not found.added and told(here) == before
    assert "child:1: its parent base:1 of the file is not what is here" in found.kept
    assert "grandchild:1: its parent child:1 of the file is not what is here" in found.kept


def test_only_name_and_checkpoint_are_needed(tmp_path: Path) -> None:
    file = tmp_path / "models.jsonl"
    rows = [{"name": "x", "checkpoint_path": PATH.format(n)} for n in (1, 2)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    here = opened(tmp_path / "here")
    assert here.import_models(file).added == ("x:1", "x:2")
    assert here.import_models(file).unchanged == ("x:1", "x:2")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ([], "expected an object for a model, found an empty list"),
        ({"checkpoint_path": "p"}, "'name' must be a string, found null"),
        ({"name": "x"}, "checkpoint_path: Field required"),
        ({"name": "x", "checkpoint_path": "tinker://half"}, "checkpoint_path: "),
        ({"name": "x", "checkpoint_path": "p", "metric": {}}, "no key 'metric'; it has name"),
        ({"name": "x", "checkpoint_path": "p", "metrics": {"a": "b"}}, "metrics.a: Input should"),
        ({"name": "x", "checkpoint_path": "p", "version": 0}, "'version' counts from 1"),
        ({"name": "x", "checkpoint_path": "p", "version": True}, "must be a whole number"),
        ({"name": "x", "checkpoint_path": "p", "stage": "live"}, "unknown stage 'live'; choose"),
        ({"name": "a/b", "checkpoint_path": "p"}, "model name"),
        ({"name": "x", "checkpoint_path": "p", "aliases": [3]}, "must be a list of strings"),
        ({"name": "x", "checkpoint_path": "p", "tags": ["a b"]}, "without spaces or commas"),
    ],
)
def test_a_bad_model_is_named_by_file_line_and_key(tmp_path: Path, row: Any, what: str) -> None:
    file = tmp_path / "models.jsonl"
    file.write_text('{"name": "good", "checkpoint_path": "p"}\n' + json.dumps(row))
    here = opened(tmp_path / "here")
    with pytest.raises(DataError) as caught:
        here.import_models(file)
    assert str(caught.value).startswith(f"{file}, line 2: ") and what in str(caught.value)
    assert here.list_models() == []


def test_bad_sources_are_named(full: ModelRegistry, tmp_path: Path) -> None:
    here = opened(tmp_path / "here")
    with pytest.raises(DataError, match="no such file or folder"):
        here.import_models(tmp_path / "none.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no storage with models, and no \.jsonl"):
        here.import_models(tmp_path / "empty")
    (tmp_path / "rows.csv").write_text("name\nx\n")
    with pytest.raises(DataError, match=r"read from \.jsonl or \.json"):
        here.import_models(tmp_path / "rows.csv")
    orphan = {"name": "y", "checkpoint_path": "p", "parents": ["gone:1"]}
    (tmp_path / "orphan.jsonl").write_text(json.dumps(orphan))
    with pytest.raises(ConfigError, match="its parent gone:1 is neither here nor in the file"):
        here.import_models(tmp_path / "orphan.jsonl")
    with pytest.raises(ConfigError, match="exists; name another file"):
        full.export_models(tmp_path / "orphan.jsonl")


_IMPORTER = """
import sys
from crucible_tinkex.registry.models import ModelRegistry
ModelRegistry.open(sys.argv[1]).import_models(sys.argv[2])
"""


def test_many_processes_import_the_same_at_once(full: ModelRegistry, tmp_path: Path) -> None:
    full.export_models(tmp_path / "models.jsonl")
    command = [sys.executable, "-c", _IMPORTER, str(tmp_path / "here"), "models.jsonl"]
    importers = [subprocess.Popen(command, cwd=tmp_path) for _ in range(3)]
    assert [p.wait(60) for p in importers] == [0, 0, 0]
    assert told(opened(tmp_path / "here")) == told(full)
    assert len(logs(tmp_path / "here")) == 1
