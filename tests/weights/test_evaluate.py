"""Answers measured while a sweep trains, its quality targets, and `crucible evaluate` after it."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from in_process import crucible
from nano_sweep import make_experiment

import crucible_tinkex as ct
import crucible_tinkex.weights.evaluating as evaluating
from crucible_tinkex.errors import ConfigError, DataError, ServiceUnavailableError
from crucible_tinkex.protocol.capabilities import ServerCapabilities, SupportedModel
from crucible_tinkex.server.bases import ensure_base

METRICS = [
    "exact_match",
    "classification",
    "pass@2",
    "majority",
    {"regex": r"^\d+$", "name": "schema_compliance"},
]
TARGETS = {
    "eval/nll": 0.01,
    "schema_compliance": {"target": 0.0, "min_n": 6},
    "mean_entailment": "default",
    "loss_reduction": "default",  # too few steps to settle, and to see convergence
    "convergence_steps": "default",
}


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> ct.Sweep:
    """A sweep with answers and targets; must not be changed."""
    folder = tmp_path_factory.mktemp("answered")
    experiment = make_experiment(
        folder,
        evaluation={"metrics": METRICS, "samples": 4, "max_tokens": 5},
        quality={"targets": TARGETS, "required": True},
        notify={"command": f"tee -a {folder / 'told.jsonl'}"},
    )
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    grouped = [json.dumps({**row, "group": f"g{i // 2}"}) for i, row in enumerate(rows)]
    (folder / "eval.jsonl").write_text("\n".join(grouped))
    return ct.run(experiment)


def data_of(sweep: ct.Sweep) -> Path:
    return sweep.paths.root.parent.parent / "eval.jsonl"


def test_all_answers_and_scores_of_a_sweep_are_kept(answered: ct.Sweep) -> None:
    best = answered.best()
    assert best is not None
    rows = answered.evaluations(trial_id=best["id"], step=6).to_pylist()
    assert len(rows) == 6 and {row["group"] for row in rows} == {"g0", "g1", "g2"}
    assert all(len(row["answers"]) == 4 and len(row["expected"]) == 3 for row in rows)
    for tag in ("eval/exact_match", "eval/pass@2", "eval/score/schema_compliance"):
        scores = [dict(row["scores"])[tag] for row in rows]
        assert math.fsum(scores) / 6 == pytest.approx(best["metrics"][tag])
    assert {"eval/majority", "eval/f1_macro", "eval/class_accuracy"} <= set(best["metrics"])


def test_a_missed_target_that_is_required_is_the_exit_code(answered: ct.Sweep) -> None:
    assert answered.exit_code == 1
    told = json.loads((data_of(answered).parent / "told.jsonl").read_text())
    assert (told["event"], told["exit_code"]) == ("quality missed", 1)
    quality = answered.status()["quality"]
    assert quality["status"] == "missed" and quality["required"]
    assert {t["metric"]: t["status"] for t in quality["targets"]} == {
        "eval/nll": "missed",
        "eval/score/schema_compliance": "met",
        "mean_entailment": "unmeasured",
        "train/loss_reduction": "not settled",
        "convergence_steps": "unmeasured",
    }


def test_rows_of_one_group_are_one_cluster(answered: ct.Sweep) -> None:
    found = answered.compare("1", "2")
    assert (found.examples, found.clusters) == (6, 3)


def test_after_the_fact_as_while_training(answered: ct.Sweep) -> None:
    best = answered.best()
    assert best is not None
    found = answered.evaluate(data_of(answered))
    assert (found.trial_id, found.step, found.cached) == (best["id"], 6, False)
    for tag in ("eval/nll", "eval/bpb", "eval/accuracy"):
        assert found.metrics[tag].value == pytest.approx(best["metrics"][tag], rel=1e-3)
    # The same seeds: the same answers.
    assert found.metrics["eval/exact_match"].value == best["metrics"]["eval/exact_match"]
    assert found.metrics["eval/nll"].low < found.metrics["eval/nll"].value
    assert (found.metrics["eval/nll"].n, found.metrics["eval/nll"].clusters) == (6, 3)
    again = answered.evaluate(data_of(answered))
    assert again.cached and again.metrics == found.metrics and again.rows == found.rows
    rows = answered.query("select e.group as g, answers from evaluations_after e").to_pylist()
    assert len(rows) == 6 and {row["g"] for row in rows} == {"g0", "g1", "g2"}


def test_the_command(answered: ct.Sweep, tmp_path: Path) -> None:
    storage = str(answered.paths.root.parent)
    command = ("evaluate", "small", "0", str(data_of(answered)), "--storage", storage)
    options = ("-m", "exact_match", "-m", "digits=regex=\\d", "--samples", "1", "--json")
    done = crucible(*command, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["trial"].startswith("0000-base") and found["n"] == 6
    named = crucible(*command[:2], "base", *command[3:], *options)  # as the leaderboard calls it
    assert json.loads(named.stdout)["trial_id"] == found["trial_id"], named.stderr
    assert set(found["metrics"]) >= {"eval/nll", "eval/exact_match", "eval/score/digits"}
    copy = tmp_path / "again.jsonl"
    copy.write_bytes(data_of(answered).read_bytes())
    again = crucible(*command[:3], str(copy), *command[4:], *options[:-1])
    title = again.stdout.split("metric ")[0]
    assert str(copy) in "".join(title.split()), "the file that was asked for"
    assert f"6 rows, 95 % intervals, measured before as {data_of(answered)};" in again.stdout
    wrong = crucible(*command, "-m", "exactly")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: evaluate: evaluation: metrics: no metric 'exactly'")


def test_bad_input_is_refused_before_a_service_is_asked(
    answered: ct.Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "service_of", None)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl, line 1: the key 'completion'"):
        answered.evaluate(tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match=r"gone.jsonl: no such file"):
        answered.evaluate(tmp_path / "gone.jsonl")
    with pytest.raises(ConfigError, match="no trial '77'"):
        answered.evaluate(data_of(answered), "77")
    with pytest.raises(ConfigError, match="needs samples = 9"):
        answered.evaluate(data_of(answered), metrics=["pass@9"])
    with pytest.raises(ConfigError, match=r"unknown key 'evaluation.metric'"):
        answered.evaluate(data_of(answered), metric=["exact_match"])


class Scripted:
    """A service whose one sampler gives the same logprob to every token, `left` times."""

    def __init__(self, left: int) -> None:
        self._left = left

    async def capabilities(self) -> ServerCapabilities:
        model = SupportedModel(
            model_name="nano", tokenizer_id=str(ensure_base("nano").tokenizer_folder)
        )
        return ServerCapabilities(supported_models=[model])

    async def sampler(self, **_: Any) -> Scripted:
        return self

    async def compute_logprobs(self, tokens: Sequence[int]) -> list[float | None]:
        self._left -= 1
        if self._left < 0:
            raise ServiceUnavailableError("the service is gone")
        return [None, *([-1.0] * (len(tokens) - 1))]


def serve(monkeypatch: pytest.MonkeyPatch, *, left: int) -> None:
    @contextlib.asynccontextmanager
    async def service(*_: Any) -> AsyncIterator[Scripted]:
        yield Scripted(left)

    monkeypatch.setattr(evaluating, "service_of", service)


def test_a_service_that_goes_away_leaves_nothing_behind(
    answered: ct.Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(answered.paths.evaluations_after.glob("*"))
    options: dict[str, Any] = {"metrics": [], "samples": 1, "generate": False, "seed": 5}
    serve(monkeypatch, left=3)
    with pytest.raises(ServiceUnavailableError, match="the service is gone") as caught:
        answered.evaluate(data_of(answered), "1", **options)
    assert "0001-rank=2" in str(caught.value)
    assert set(answered.paths.evaluations_after.glob("*")) == before
    serve(monkeypatch, left=100)
    found = answered.evaluate(data_of(answered), "1", **options)
    assert not found.cached and found.metrics["eval/nll"].value == pytest.approx(1.0)


def test_the_antagonist_flags_what_scores_speak_against(answered: ct.Sweep, tmp_path: Path) -> None:
    """On nano, which was trained on digits and writes no claims."""
    storage, file = str(answered.paths.root.parent), tmp_path / "flags.jsonl"
    command = ("evaluate", "small", "0", str(data_of(answered)), "--storage", storage)
    asked = ("-m", "mean_entailment", "-m", "polarity_conflict", "--samples", "1")
    done = crucible(*command, *asked, "--flags", str(file), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["metrics"]["eval/score/mean_entailment"]["value"] == 0
    assert found["flags"]["issues"] == {"WEAK_ENTAILMENT": 6}
    assert len(file.read_text().splitlines()) == 6
    shown = crucible(*command, *asked, "--flags", str(file)).stdout.splitlines()[-1]
    assert shown == f"6 of 6 rows flagged (6 MEDIUM): {file}"


def test_a_damaged_file_is_measured_again(
    answered: ct.Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"metrics": [], "samples": 1, "generate": False}
    serve(monkeypatch, left=100)
    first = answered.evaluate(data_of(answered), "0", **options)
    file = answered.paths.evaluations_after / f"{first.key}.json"
    file.write_text(file.read_text()[:100])
    again = answered.evaluate(data_of(answered), "0", **options)
    assert not again.cached and again.metrics == first.metrics
    assert answered.evaluate(data_of(answered), "0", **options).cached
