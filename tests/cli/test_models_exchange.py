"""`crucible models export`, `import` and `delete`: what they print, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

from in_process import crucible

from crucible_tinkex.registry.models import ModelRegistry


def test_models_travel_between_storages(tmp_path: Path) -> None:
    models = ModelRegistry.open(tmp_path / "runs")
    for n in (1, 2):
        models.register_model("x", checkpoint_path=f"tinker://run/sampler_weights/{n}")
    models.promote("x:2", "production")

    def run(*arguments: str) -> str:
        found = crucible("models", *arguments, folder=tmp_path)
        assert found.returncode == 0, found.stderr
        return found.stdout

    assert run("export", "models.jsonl") == "models.jsonl: 2 models\n"
    assert [json.loads(line)["id"] for line in run("export").splitlines()] == ["x:1", "x:2"]
    assert len(run("export", "--stage", "production").splitlines()) == 1
    there = ("import", "models.jsonl", "--storage", "there")
    assert run(*there) == "2 added, 0 changed, 0 unchanged\n"
    assert json.loads(run(*there, "--json"))["unchanged"] == ["x:1", "x:2"]
    assert run("list", "--storage", "there", "--json") == run("list", "--json")

    models.promote("x:1", "production")
    refused = crucible("models", "import", "runs", "--storage", "there", folder=tmp_path)
    assert refused.returncode == 2 and "2 conflicts, and nothing was imported" in refused.stderr
    kept = run("import", "runs", "--storage", "there", "--keep").splitlines()
    assert kept[0] == "0 added, 0 changed, 2 unchanged"
    assert kept[1] == (
        "kept what is here: x:1: it is in development here, in production in the file"
    )
    again = crucible("models", "export", "models.jsonl", folder=tmp_path)
    assert again.returncode == 2 and "exists; name another file" in again.stderr


def test_a_version_is_forgotten_when_that_is_meant(tmp_path: Path) -> None:
    models = ModelRegistry.open(tmp_path / "runs")
    for n in (1, 2):
        models.register_model("x", checkpoint_path=f"tinker://run/sampler_weights/{n}")
    models.register_model("y", checkpoint_path="tinker://run/sampler_weights/3", parents=["x:2"])
    models.set_alias("x:2", "champion")

    def delete(*arguments: str) -> str:
        found = crucible("models", "delete", *arguments, folder=tmp_path)
        assert found.returncode == 0, found.stderr
        return found.stdout

    said = "x:2 (development, @champion): tinker://run/sampler_weights/2, from which y:1 came"
    assert delete("x@champion") == f"would delete {said}; do it: --yes\n"
    assert json.loads(delete("x:2", "--json"))["done"] is False
    assert [m.id for m in models.list_models("x")] == ["x:1", "x:2"]
    assert delete("x@champion", "--yes") == f"deleted {said}\n"
    assert [m.id for m in models.list_models()] == ["x:1", "y:1"]
    again = crucible("models", "delete", "x@champion", "--yes", folder=tmp_path)
    newest = crucible("models", "delete", "x", "--yes", folder=tmp_path)
    assert (again.returncode, newest.returncode) == (2, 2)
    assert "name the version to delete, such as x:1" in newest.stderr
    told = json.loads(delete("x:1", "--yes", "--json"))
    assert (told["done"], told["deleted"]["id"], told["children"]) == (True, "x:1", [])
