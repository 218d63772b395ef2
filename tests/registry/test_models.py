"""The registry of models: versions, stages, choice for an ensemble, many writers, crashes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from crucible_tinkex.errors import ConfigError, CorruptLogError
from crucible_tinkex.registry.models import ModelRegistry
from crucible_tinkex.storage import SegmentLog

PATH = "tinker://run/sampler_weights/x{}"


@pytest.fixture
def models(tmp_path: Path) -> ModelRegistry:
    ticks = count()
    return ModelRegistry.open(tmp_path / "runs", clock=lambda: float(next(ticks)))


def add(models: ModelRegistry, name: str, number: int, **more: object) -> str:
    return models.register_model(name, {"checkpoint_path": PATH.format(number), **more}).id


def test_versions_count_up_and_survive_a_restart(models: ModelRegistry, tmp_path: Path) -> None:
    assert models.list_models() == []
    assert add(models, "scifact", 1, metrics={"eval/nll": 0.5}, tags=["a", "a"]) == "scifact:1"
    assert add(models, "scifact", 2) == "scifact:2"
    assert add(models, "other", 1) == "other:1"
    again = ModelRegistry.open(str(tmp_path / "runs"))
    assert again.list_models() == models.list_models()
    assert [m.id for m in again.list_models()] == ["other:1", "scifact:1", "scifact:2"]
    assert again.get_model("scifact").version == 2
    first = again.get_model("scifact:1")
    assert (first.metrics, first.tags, first.stage) == ({"eval/nll": 0.5}, ("a",), "development")
    models.delete("scifact", 2)
    assert add(models, "scifact", 3) == "scifact:3"  # a number is never reused


def test_the_same_checkpoint_again_is_the_same_version(
    models: ModelRegistry, tmp_path: Path
) -> None:
    given = {"metrics": {"m": math.nan}, "tags": ["a"]}
    assert add(models, "x", 1, **given) == add(models, "x", 1, **given) == "x:1"
    assert len(list(tmp_path.glob("runs/.models/*.log"))) == 1  # nothing was new
    add(models, "x", 1, metrics={"m": 2.0}, tags=["b"])
    model = models.get_model("x")
    assert (model.id, model.metrics, model.tags) == ("x:1", {"m": 2.0}, ("a", "b"))


def test_the_seeds_keys_of_a_model_are_kept_and_looked_for(models: ModelRegistry) -> None:
    seeds = {"experiment_id": "abc123", "checkpoint_name": "abc123_step_00000009", "lora_rank": 16}
    add(models, "scifact-v2", 1, **seeds)
    add(models, "scifact-v2", 2, experiment_id="other")
    (found,) = models.list_models(experiment_id="abc123")
    assert found.id == "scifact-v2:1"
    assert seeds.items() <= found.summary().items()


def test_stages_aliases_tags_and_metrics(models: ModelRegistry) -> None:
    for number in (1, 2, 3):
        add(models, "x", number)
    assert models.promote("x:1", "production").stage == "production"
    assert models.get_model("x", stage="production").version == 1
    models.promote("x:2", "production")
    assert [m.stage for m in models.list_models("x")] == ["archived", "production", "development"]
    models.set_alias("x:1", "champion")
    models.set_alias("x:2", "champion")
    assert models.get_model("x@champion").version == 2
    assert models.get_model("x", alias="champion").aliases == ("champion",)
    models.drop_alias("x", "champion")
    with pytest.raises(ConfigError, match=r"no such version.*x:2 \(production\)"):
        models.get_model("x@champion")
    models.tag("x:3", add=["good"], remove=["absent"])
    assert [m.id for m in models.list_models(tags=["good"])] == ["x:3"]
    assert models.update_metrics("x:3", {"n": 1}).metrics == {"n": 1.0}
    models.promote("x:3", "archived")
    assert models.get_model("x").version == 2


def test_lineage(models: ModelRegistry) -> None:
    base = add(models, "base", 1)
    tuned = add(models, "tuned", 2, parents=[base])
    merged = add(models, "merged", 3, parents=[tuned, base])
    assert [m.id for m in models.ancestors(merged)] == [tuned, base]
    assert [m.id for m in models.descendants("base")] == [merged, tuned]
    with pytest.raises(ConfigError, match="no model 'nobody'"):
        add(models, "x", 4, parents=["nobody:1"])


# --- an ensemble --------------------------------------------------------------------------------


def test_the_best_come_first_and_what_was_not_measured_never(models: ModelRegistry) -> None:
    for number, value in enumerate([0.3, math.nan, 0.1, None, 0.2, math.inf, 0.1]):
        metrics = {} if value is None else {"eval/nll": value, "score": value}
        add(models, f"m{number}", number, metrics=metrics)
    found = models.find_for_ensemble("eval/nll", top_n=3)
    assert [m.name for m in found] == ["m2", "m6", "m4"]  # a tie goes to the older one
    highest = models.find_for_ensemble(sort_by="score", direction="max")
    assert [m.name for m in highest] == ["m0", "m4", "m2", "m6"]
    with pytest.raises(ConfigError, match="which way 'score' is better"):
        models.find_for_ensemble("score")
    for wrong in ({}, {"metric": "a", "sort_by": "b"}):
        with pytest.raises(ConfigError, match="one of metric and sort_by"):
            models.find_for_ensemble(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="top_n is 0"):
        models.find_for_ensemble("eval/nll", top_n=0)


def test_only_models_that_fit_vote_and_no_trial_twice(models: ModelRegistry) -> None:
    def trained(number: int, nll: float, accuracy: float, **more: object) -> None:
        metrics = {"eval/nll": nll, "eval/accuracy": accuracy}
        given = {"base_model": "smollm2-135m", "tags": ["scifact"], "sweep_id": "s", **more}
        add(models, f"m{number}", number, metrics=metrics, **given)

    trained(0, 0.1, 0.5, trial_id="t0")
    trained(1, 0.2, 0.9, trial_id="t1")
    trained(2, 0.25, 0.9, trial_id="t1")
    trained(3, 0.3, 0.9, trial_id="t3", base_model="nano")
    trained(4, 0.4, 0.8, trial_id="t4", tags=["other"])
    trained(5, 0.5, 0.8, trial_id="t5")

    def names(**asked: object) -> list[str]:
        found = models.find_for_ensemble("eval/nll", **asked)  # type: ignore[arg-type]
        return [m.name for m in found]

    base = "smollm2-135m-instruct"  # the alias means the same
    assert names(tags=["scifact"], base=base) == ["m0", "m1", "m5"]
    assert names(distinct="checkpoint", base=base) == ["m0", "m1", "m2", "m4", "m5"]
    assert names(thresholds={"eval/accuracy": 0.8}, tags=["scifact"]) == ["m1", "m3", "m5"]
    assert names(thresholds={"eval/accuracy": ">0.8", "eval/nll": "<=0.25"}) == ["m1"]
    models.promote("m0", "archived")
    assert names(top_n=1) == ["m1"]
    with pytest.raises(ConfigError, match=r"like '>=0.8'"):
        names(thresholds={"eval/nll": "about 1"})


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("x", {}, "checkpoint_path: Field required"),
        ("x", {"checkpoint_path": ""}, "checkpoint_path"),
        ("x", {"checkpoint_path": "tinker://odd"}, "is not a checkpoint path"),
        ("x", {"checkpoint_path": "a", "metric": {}}, "metric: Extra inputs.*keys: checkpoint"),
        ("x", {"checkpoint_path": "a", "metrics": {"m": "low"}}, "metrics.m"),
        ("x", {"checkpoint_path": "a", "tags": ["two words"]}, "tag 'two words'"),
        ("x", {"checkpoint_path": "a", "metadata": {"k": object()}}, "not JSON serializable"),
        ("../x", {"checkpoint_path": "a"}, "model name"),
        ("x:1", {"checkpoint_path": "a"}, "model name"),
    ],
)
def test_wrong_entries_are_refused(
    models: ModelRegistry, name: str, given: dict[str, object], told: str
) -> None:
    add(models, "kept", 1)
    with pytest.raises(ConfigError, match=told):
        models.register_model(name, given)
    assert [m.id for m in models.list_models()] == ["kept:1"]


def test_wrong_questions_are_refused(models: ModelRegistry) -> None:
    add(models, "x", 1)
    for name, told in (("y", "there are: x"), ("x:7", "x:1"), ("x@", "NAME@ALIAS"), ("", "NAME")):
        with pytest.raises(ConfigError, match=told):
            models.get_model(name)
    with pytest.raises(ConfigError, match="unknown stage 'live'"):
        models.promote("x", "live")
    with pytest.raises(ConfigError, match="one of version and alias"):
        models.get_model("x:1", alias="a")
    with pytest.raises(ConfigError, match="local or shared folder"):
        ModelRegistry.open("s3://bucket/runs")


# --- writers and faults -------------------------------------------------------------------------

_WRITER = """
import sys
from crucible_tinkex.registry.models import ModelRegistry
models = ModelRegistry.open(sys.argv[1])
for i in range(10):
    path = f"tinker://run{sys.argv[2]}/sampler_weights/{i}"
    models.register_model("shared", checkpoint_path=path)
"""


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), str(n)]) for n in range(4)
    ]
    assert [w.wait(60) for w in writers] == [0, 0, 0, 0]
    found = ModelRegistry.open(tmp_path).list_models("shared")
    assert [m.version for m in found] == list(range(1, 41))
    assert len({m.checkpoint_path for m in found}) == 40


def test_a_reader_sees_what_another_instance_wrote(models: ModelRegistry, tmp_path: Path) -> None:
    reader = ModelRegistry.open(tmp_path / "runs")
    for number in (1, 2):
        add(models, "x", number)
        assert reader.get_model("x").version == number
    models.promote("x:2", "archived")
    assert reader.get_model("x").version == 1


def test_a_torn_write_is_dropped_and_damage_is_named(models: ModelRegistry, tmp_path: Path) -> None:
    add(models, "x", 1)
    folder = tmp_path / "runs" / ".models"
    whole = (folder / "000001.log").read_bytes()
    (folder / "000002.log").write_bytes(whole[:-5])  # a writer that was killed
    again = ModelRegistry.open(tmp_path / "runs")
    assert [m.id for m in again.list_models()] == ["x:1"]
    assert add(again, "x", 2) == "x:2"
    (folder / "000001.log").write_bytes(whole[:20] + b"#" + whole[21:])
    with pytest.raises(CorruptLogError, match=r"000001\.log is damaged"):
        ModelRegistry.open(tmp_path / "runs").list_models()


def test_records_of_a_later_version_are_passed_over(models: ModelRegistry, tmp_path: Path) -> None:
    add(models, "x", 1)
    later = {"type": "blessed", "v": 9, "time": 1.0, "name": "x"}
    entry = {"checkpoint_path": PATH.format(2), "colour": "red"}
    newer = {"type": "registered", "v": 9, "time": 1.0, "name": "x", "entry": entry, "by": "me"}
    gone = {"type": "stage", "v": 1, "time": 1.0, "name": "x", "version": 8, "stage": "archived"}
    with SegmentLog(tmp_path / "runs" / ".models") as log:
        log.append([json.dumps(r).encode() for r in (later, newer, gone)])
    assert [m.id for m in models.list_models()] == ["x:1", "x:2"]


def test_a_metric_that_nobody_knows_is_named_with_the_one_that_is_meant(
    models: ModelRegistry,
) -> None:
    with pytest.raises(ConfigError, match=r"which way 'eval/nil' .*did you mean 'eval/nll'\?"):
        models.find_for_ensemble(metric="eval/nil", top_n=1)
