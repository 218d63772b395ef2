"""What `[evaluation]` asks of generated answers, and quality targets, as pure functions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_tinkex.config import EvaluationSection, Experiment, QualitySection
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.metrics import direction_of, known, objective
from crucible_tinkex.scoring import Question, Scoring, similarity
from crucible_tinkex.scoring.quality import Assessment, assess, overall

ROW = Question("r1", "2 + 2 =", "so it is #### 4")


def declared(evaluation: dict[str, Any], **sections: Any) -> Experiment:
    raw = {"name": "x", "model": {"base": "nano"}, "data": {"train": "t.jsonl", "eval": "e.jsonl"}}
    return Experiment.build({**raw, "evaluation": evaluation, **sections})


def scored(texts: list[str], question: Question = ROW, **section: Any) -> dict[str, float]:
    scoring = Scoring(EvaluationSection(samples=len(texts), **section))
    return dict(scoring.scored(question, texts).scores)


def length(answer: str, row: Question) -> float:
    assert row.expected
    return len(answer) / 10


def broken(answer: str, row: Question) -> float:
    return 1 / 0 if "boom" in answer else math.nan


def test_what_counts_of_an_answer_is_found_by_the_pattern() -> None:
    options = {"metrics": ("exact_match", "majority"), "answer": r"####\s*(\d+)"}
    assert scored(["#### 3, no: #### 4", "4", "#### 4 .", "####5"], **options) == {
        "eval/exact_match": 0.5,
        "eval/majority": 1.0,
    }
    assert scored(["nothing", "no", "none"], **options)["eval/majority"] == 0.0


def test_samples_give_pass_at_k_by_the_score_that_says_right() -> None:
    rule = {"regex": r"^\d+$", "name": "number"}
    found = scored(
        ["1", "x", "y", "z"], metrics=("pass@1", "pass@k", "pass@2", rule), right_by="number"
    )
    assert found["eval/pass@1"] == pytest.approx(0.25)
    assert found["eval/pass@2"] == pytest.approx(0.5)
    assert found["eval/pass@4"] == 1.0
    assert found["eval/score/number"] == 0.25


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        ("The  Cat", "the cat", 1.0),
        ("ab", "ac", 0.0),
        ("ab", "ab cd", 2 / math.sqrt(2 * 4)),
        ("aaaa", "aa", 2 / math.sqrt(6 * 2)),  # " aa", aaa, aaa, "aa " and " aa", "aa "
        ("", "x", 0.0),
        ("", " ", 1.0),
        ("x", "", 0.0),
    ],
)
def test_similarity_is_the_cosine_of_trigrams(answer: str, expected: str, value: float) -> None:
    assert similarity(answer, expected) == pytest.approx(value)
    assert similarity(expected, answer) == pytest.approx(value)


@given(st.text(max_size=30), st.text(max_size=30))
def test_similarity_is_a_share_and_whole_for_the_same_text(one: str, other: str) -> None:
    assert 0 <= similarity(one, other) <= 1
    assert similarity(one, one) == pytest.approx(1)


def test_similarity_is_of_what_counts_and_can_rank() -> None:
    options = {"metrics": ("similarity",), "answer": r"####\s*(.+)"}
    found = scored(["so #### 4", "#### 5", "nothing"], **options)
    assert found == {"eval/similarity": pytest.approx(1 / 3)}
    ranked = declared({"metrics": ["similarity"]}, search={"metric": "eval/similarity"})
    assert ranked.search.objective_direction == "max"
    with pytest.raises(ConfigError, match="'eval/similarity' is not measured"):
        declared({}, search={"metric": "eval/similarity"})


def test_a_function_sees_the_answer_and_the_row() -> None:
    assert scored(["12345"], metrics=(f"{__name__}:length",)) == {"eval/score/length": 0.5}


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("test_scorers:broken", "boom", r"'test_scorers:broken', row r1: ZeroDivisionError"),
        ("test_scorers:broken", "x", "gave nan; a score must be a finite number"),
        ("test_scorers:gone", "x", "test_scorers has no gone"),
        ("no_such_module:f", "x", "No module named 'no_such_module'; is it on the Python path"),
        ("test_scorers:ROW", "x", "cannot be called"),
    ],
)
def test_a_bad_function_is_named(name: str, answer: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scored([answer], metrics=(name,))


def test_classes_of_all_rows() -> None:
    scoring = Scoring(EvaluationSection(metrics=("classification",)))
    pairs = [("Yes", "yes"), ("no", "yes"), ("no", "no"), ("perhaps", "no")]
    rows = [scoring.scored(Question(str(i), "?", e), [a]) for i, (a, e) in enumerate(pairs)]
    found = scoring.metrics(rows)
    assert found["eval/class_accuracy"] == 0.5
    assert found["eval/precision/yes"] == 1.0 and found["eval/recall/yes"] == 0.5
    assert found["eval/f1/no"] == 0.5
    assert found["eval/f1_macro"] == pytest.approx((2 / 3 + 0.5) / 2)


def test_a_schema_is_kept_as_it_was_read(tmp_path: Path) -> None:
    schema = tmp_path / "answer.json"
    schema.write_text(json.dumps({"type": "object", "required": ["a"]}))
    experiment = declared({"metrics": [{"json_schema": str(schema)}]})
    schema.unlink()
    again = Experiment.loaded(experiment.stored(tmp_path / "runs" / "x"), tmp_path / "runs" / "x")
    assert again.evaluation == experiment.evaluation
    scoring = Scoring(again.evaluation)
    assert scoring.scored(ROW, ['{"a": 1}']).scores == {"eval/json_schema": 1.0}
    assert scoring.scored(ROW, ["a"]).scores == {"eval/json_schema": 0.0}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"metrics": ["exactmatch"]}, "no metric 'exactmatch'; there are exact_match"),
        ({"metrics": ["pass@3"], "samples": 2}, "'pass@3' needs samples = 3"),
        ({"metrics": ["majority"]}, "'majority' needs samples = 2"),
        ({"metrics": [{"regex": "("}]}, "metrics.0.regex: it is no regular expression"),
        ({"metrics": [{"json_schema": "gone.json"}]}, "json_schema: cannot read .*gone.json"),
        ({"metrics": [{"regex": "a", "function": "m:f"}]}, "give one of regex, json_schema"),
        ({"metrics": [{"function": "mf"}]}, "must be written module:function"),
        ({"metrics": [{"regex": "a"}, {"regex": "b"}]}, "two of them are eval/regex; give them"),
        ({"metrics": [{"regexp": "a"}]}, "unknown key 'evaluation.metrics.0.regexp'; did you"),
        ({"samples": 2}, "samples has no effect without metrics"),
        ({"metrics": ["exact_match"], "samples": 2, "temperature": 0}, "all samples of a prompt"),
        ({"metrics": ["exact_match"], "right_by": "x"}, "no score 'x' in metrics; one of exact_m"),
        ({"answer": "["}, "evaluation.answer: it is no regular expression"),
    ],
)
def test_what_cannot_be_measured_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        declared(section)


def test_a_search_ranks_by_what_is_measured() -> None:
    asked = {"metrics": ["pass@2", "classification", {"regex": "a", "name": "form"}], "samples": 2}
    for name in ("eval/pass@2", "eval/f1_macro", "eval/f1/yes", "eval/score/form"):
        experiment = declared(asked, search={"metric": name})
        assert experiment.search.objective_direction == "max"
    for name in ("eval/pass@1", "eval/exact_match", "eval/score/other"):
        with pytest.raises(ConfigError, match=f"{name}' is not measured; evaluation.metrics gives"):
            declared(asked, search={"metric": name})
    with pytest.raises(ConfigError, match="unknown objective 'eval/pass@'"):
        objective("eval/pass@")
    assert known("eval/f2/yes") is None


def test_answers_that_nobody_asks_for_leave_trials_as_they_were() -> None:
    plain = declared({})
    assert plain.trial_settings(total_steps=1)["evaluation"] == {"generate": True, "max_rows": None}
    asked = declared({"metrics": ["exact_match"]})
    warmer = declared({"metrics": ["exact_match"], "temperature": 0.5})
    settings = [e.trial_settings(total_steps=1) for e in (plain, asked, warmer)]
    assert settings[0] != settings[1] != settings[2]
    assert warmer.contradictions(asked) == ["evaluation.temperature"]


# --- quality -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "low", "high", "status"),
    [
        ("max", 0.9, 0.99, "met"),
        ("max", 0.8, 0.89, "missed"),
        ("max", 0.8, 0.95, "not settled"),
        ("min", 0.8, 0.9, "met"),
        ("min", 0.91, 0.99, "missed"),
        ("max", -math.inf, math.inf, "not settled"),
    ],
)
def test_a_target_is_judged_on_the_interval(
    direction: Any, low: float, high: float, status: str
) -> None:
    found = assess("m", 0.9, direction, value=0.9, low=low, high=high, n=40)
    assert found.status == status


def test_few_rows_settle_nothing_and_none_is_no_zero() -> None:
    few = assess("m", 0.5, "max", value=0.9, low=0.8, high=1.0, n=20, min_n=50)
    assert few.status == "not settled"
    assert str(few) == "m: at least 0.5: not settled (0.9, 0.8 to 1, 20 rows (50 are asked for))"
    missing = assess("m", 0.0, "max")
    assert (missing.status, missing.value) == ("unmeasured", None)


def test_the_worst_of_all_is_the_verdict() -> None:
    def of(status: Any) -> Assessment:
        return Assessment("m", 1.0, "max", status)

    assert overall([]) is None
    assert overall([of("met"), of("unmeasured"), of("not settled")]) == "unmeasured"
    assert overall([of("met"), of("missed"), of("unmeasured")]) == "missed"


def test_the_seeds_targets_have_their_defaults_by_name() -> None:
    targets = {"schema_compliance": "default", "eval/nll": 2, "x": {"target": 1, "min_n": 9}}
    targets["loss_reduction"] = "default"
    section = QualitySection.model_validate({"targets": targets})
    assert (section.resolved["loss_reduction"].target, section.resolved["x"].target) == (0.95, 1)
    assert section.resolved["loss_reduction"].min_n == 20
    assert section.resolved["schema_compliance"].target == 0.95
    assert section.resolved["x"].min_n == 9
    with pytest.raises(ConfigError, match="'x' has no default target; schema_compliance"):
        declared({}, quality={"targets": {"x": "default"}})
    assert direction_of("citation_invalid_rate") == direction_of("eval/nll") == "min"
    assert direction_of("overall_pass_rate") == direction_of("eval/pass@8") == "max"
