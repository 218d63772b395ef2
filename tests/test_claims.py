"""Scores of extracted claims, and the antagonist's flags, as pure functions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from crucible_tinkex.config import EvaluationSection, QualitySection
from crucible_tinkex.metrics import direction_of
from crucible_tinkex.scoring import Question, Scoring, claims
from crucible_tinkex.scoring.antagonist import Flag, Thresholds, flags

PROMPT = "[101] Iron was given to 399 adults. blood pressure fell.\nClaims:"
GOLD = (
    " CLAIM[c1]: Iron lowers blood pressure (citing 101)\n"
    "CLAIM[c2]: blood pressure fell in 399 adults (citing 101)\nRELATION: c2 supports c1"
)
ROW = Question("r", PROMPT, GOLD)


@pytest.mark.parametrize(
    ("answer", "complies"),
    [
        (GOLD, 1),
        ("CLAIM[c1]: it is so", 1),
        ("", 0),
        ("CLAIM[c2]: no first one", 0),
        ("CLAIM[c1]: a\nCLAIM[c1]: b", 0),
        ("CLAIM[c1]: a\nand so on", 0),
        ("CLAIM[c1]:", 0),
        ("CLAIM[c1]: a\nRELATION: c2 supports c1", 0),
        ("CLAIM[c1]: a\nRELATION: c1 implies c1", 0),
    ],
)
def test_lines_that_are_no_claims_count_against_the_schema(answer: str, complies: float) -> None:
    assert claims.schema_compliance(answer, ROW) == complies


@pytest.mark.parametrize(
    ("answer", "accurate"),
    [
        (GOLD, 1),
        ("CLAIM[c1]: a (citing 101)\nCLAIM[c2]: b (citing 999)", 0),
        ("CLAIM[c1]: a", 0),
    ],
)
def test_a_citation_that_is_made_up_is_not_accurate(answer: str, accurate: float) -> None:
    assert claims.citation_accuracy(answer, ROW) == accurate


def test_what_the_expected_text_makes_up_is_not_accurate_either() -> None:
    row = Question("r", PROMPT, "CLAIM[c1]: a (citing 1101)")
    assert claims.citation_accuracy("CLAIM[c1]: a (citing 1101)", row) == 0
    asked = Question("r", "Write CLAIM[c1]: <text>.", "CLAIM[c1]: a (citing 7)")
    assert claims.citation_accuracy("CLAIM[c1]: a (citing 7)", asked) == 1
    assert claims.citation_accuracy("CLAIM[c1]: a (citing c1)", asked) == 0


def test_without_citations_in_the_expected_text_none_is_asked_for() -> None:
    row = Question("r", "Document 7 says so.", "CLAIM[c1]: so")
    assert claims.citation_accuracy("CLAIM[c1]: so", row) == 1
    assert claims.citation_accuracy("CLAIM[c1]: so (citing 7)", row) == 1
    assert claims.citation_accuracy("CLAIM[c1]: so (citing 8)", row) == 0


def test_entailment_is_the_published_heuristic() -> None:
    row = Question("r", "iron helps old adults", "")
    assert claims.mean_entailment("CLAIM[c1]: Iron helps (citing 3)", row) == pytest.approx(0.85)
    two = "CLAIM[c1]: iron helps\nCLAIM[c2]: it harms mice"
    assert claims.mean_entailment(two, row) == pytest.approx(0.85 / 2)
    assert claims.mean_entailment("iron helps", row) == 0


def test_passing_needs_format_citation_and_entailment() -> None:
    assert claims.overall_pass_rate(GOLD, ROW) == 1
    assert claims.overall_pass_rate(GOLD.replace("101", "5", 1), ROW) == 0
    assert claims.overall_pass_rate(GOLD + "\nthe end", ROW) == 0
    assert claims.overall_pass_rate("CLAIM[c1]: mice are small (citing 101)", ROW) == 0


def test_a_claim_that_is_supported_and_refuted_is_in_conflict() -> None:
    both = "RELATION: c2 supports c1\nRELATION: c3 refutes c1"
    assert claims.polarity_conflict(both, ROW) == 1
    assert claims.polarity_conflict(both.replace("refutes c1", "refutes c2"), ROW) == 0


# --- in an evaluation ----------------------------------------------------------------------------


def test_the_seeds_targets_are_measured_by_name() -> None:
    names = ("schema_compliance", "citation_accuracy", "mean_entailment", "overall_pass_rate")
    section = EvaluationSection(metrics=(*names, "polarity_conflict"))
    assert section.tags == [f"eval/score/{n}" for n in (*names, "polarity_conflict")]
    scores = Scoring(section).scored(ROW, [GOLD]).scores
    assert scores["eval/score/schema_compliance"] == scores["eval/score/overall_pass_rate"] == 1
    targets = QualitySection(targets=dict.fromkeys(names, "default")).resolved
    assert direction_of("eval/score/polarity_conflict") == "min"
    assert [targets[name].target for name in names] == [0.95, 0.95, 0.5, 0.45]
    others = dict.fromkeys(("entailment_pass_rate", "similarity_pass_rate"), "default")
    assert [t.target for t in QualitySection(targets=others).resolved.values()] == [0.45, 0.35]


# --- flags ---------------------------------------------------------------------------------------


@dataclass
class Row:
    example_id: str
    scores: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("scores", "severity", "issues"),
    [
        ({"citation_accuracy": 0.0, "mean_entailment": 0.9}, "HIGH", ["CITATION_INVALID"]),
        ({"chirality": 0.55}, "MEDIUM", ["POLARITY_CONTRADICTION"]),
        ({"chirality": 0.65}, "MEDIUM", ["POLARITY_CONTRADICTION"]),
        ({"chirality": 0.64, "evidence_overlap": 0.9}, "MEDIUM", ["POLARITY_CONTRADICTION"]),
        ({"chirality": 0.65, "evidence_overlap": 0.2}, "HIGH", ["POLARITY_CONTRADICTION"]),
        ({"polarity_conflict": 1.0}, "HIGH", ["POLARITY_CONFLICT"]),
        ({"mean_entailment": 0.49}, "MEDIUM", ["WEAK_ENTAILMENT"]),
        (
            {"citation_accuracy": 0, "chirality": 0.6546, "evidence_overlap": 0.6, "entailment": 0},
            "HIGH",
            ["CITATION_INVALID", "POLARITY_CONTRADICTION", "WEAK_ENTAILMENT"],
        ),
    ],
)
def test_scores_raise_the_published_issues(
    scores: dict[str, float], severity: str, issues: list[str]
) -> None:
    (flag,) = flags([Row("133", {f"eval/score/{k}": v for k, v in scores.items()})]).flags
    assert (flag.example_id, flag.severity, list(flag.issues)) == ("133", severity, issues)


def test_what_is_good_or_was_not_measured_raises_nothing() -> None:
    good = {"citation_accuracy": 1.0, "chirality": 0.54, "mean_entailment": 0.5}
    found = flags([Row("a", good), Row("b", {"polarity_conflict": 0.0}), Row("c")])
    assert (found.flags, found.flag_rate) == ([], 0.0)
    assert flags([]).flag_rate is None


def test_thresholds_may_be_others() -> None:
    rows = [Row("a", {"mean_entailment": 0.7, "chirality": 0.3})]
    strict = Thresholds(entailment=0.75, chirality=0.3)
    (flag,) = flags(rows, strict).flags
    assert set(flag.issues) == {"POLARITY_CONTRADICTION", "WEAK_ENTAILMENT"}


def test_flags_are_counted_and_written(tmp_path: Path) -> None:
    rows = [Row("a", {"citation_accuracy": 0.0}), Row("b", {"mean_entailment": 0.1}), Row("c")]
    found = flags(rows)
    assert found.summary() == {
        "rows": 3,
        "flagged": 2,
        "flag_rate": 2 / 3,
        "severities": {"HIGH": 1, "MEDIUM": 1, "LOW": 0},
        "issues": {"CITATION_INVALID": 1, "WEAK_ENTAILMENT": 1},
    }
    found.write(tmp_path / "new" / "flags.jsonl")
    lines = (tmp_path / "new" / "flags.jsonl").read_text().splitlines()
    assert [Flag(**json.loads(line)) for line in lines] == found.flags
