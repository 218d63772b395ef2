"""Scores: against published and hand-made values, and what each says of bad input."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.scoring import (
    bits_per_byte,
    classification,
    exact_match,
    json_problem,
    majority,
    matches,
    matches_schema,
    pass_at_k,
    perplexity,
)

SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": ["supports", "refutes"]}, "n": {"type": "integer"}},
    "required": ["verdict"],
}


def test_exact_match_forgives_space_and_case_unless_strict() -> None:
    assert exact_match(" SUPPORTS \n", "supports")
    assert not exact_match(" SUPPORTS \n", "supports", strict=True)
    assert not exact_match("supports it", "supports")
    assert exact_match("Straße", "STRASSE")


def test_patterns() -> None:
    assert matches("CLAIM[c1]: tea", r"^CLAIM\[c\d+\]: ")
    assert not matches("claim", r"^CLAIM")
    with pytest.raises(ConfigError, match=r"'\(' is no regular expression"):
        matches("a", "(")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('{"verdict": "supports", "n": 3}', None),
        ('{"verdict": "maybe"}', "$.verdict: 'maybe' is not one of"),
        ('{"verdict": "refutes", "n": 1.5}', "$.n: 1.5 is not of type 'integer'"),
        ("{}", "$: 'verdict' is a required property"),
        ("supports", "not JSON: Expecting value"),
        ('{"verdict": NaN}', "not JSON: NaN is no JSON value"),
        ("[" * 100_000, "not JSON: maximum recursion"),
    ],
)
def test_json_is_checked_against_a_schema(answer: str, problem: str | None) -> None:
    found = json_problem(answer, SCHEMA)
    assert found is None if problem is None else str(found).startswith(problem)
    assert matches_schema(answer, SCHEMA) == (problem is None)


def test_a_schema_must_be_valid() -> None:
    with pytest.raises(ConfigError, match="the JSON schema is not valid: 'nonsense'"):
        json_problem("{}", {"type": "nonsense"})


def test_classification_by_hand() -> None:
    expected = ["a", "a", "a", "b", "b", "c"]
    predicted = ["a", "a", "b", "b", None, "d"]
    found = classification(predicted, expected)
    assert (found.rows, found.accuracy) == (6, 0.5)
    a, b, c, d = (found.classes[name] for name in "abcd")
    assert (a.precision, a.recall, a.f1) == (1, 2 / 3, 0.8)
    assert (b.precision, b.recall, b.f1) == (0.5, 0.5, 0.5)
    assert (c.precision, c.recall, c.f1) == (None, 0, 0)
    assert (d.precision, d.recall, d.f1) == (0, None, 0)
    assert found.macro_f1 == pytest.approx(1.3 / 4)
    assert classification([None], ["a"]).macro_f1 == 0
    for wrong in (([], []), (["a"], [])):
        with pytest.raises(ValueError, match="predictions for 0 rows"):
            classification(*wrong)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer() -> None:
    for samples, right, k in [(5, 2, 3), (6, 1, 2), (4, 0, 2), (4, 4, 1), (7, 3, 7)]:
        subsets = list(itertools.combinations(range(samples), k))
        share = sum(any(i < right for i in subset) for subset in subsets) / len(subsets)
        assert pass_at_k(samples, right, k) == pytest.approx(share, abs=1e-15)
    assert pass_at_k(200, 1, 100) == 0.5  # n = 200 as in the paper
    for samples, right, k in [(3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)]:
        with pytest.raises(ValueError, match="cannot be"):
            pass_at_k(samples, right, k)


@given(st.integers(1, 30), st.data())
def test_pass_at_1_is_the_share_that_is_right(samples: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, samples))
    assert pass_at_k(samples, right, 1) == right / samples


def test_majority_breaks_ties_by_the_first() -> None:
    assert majority(["a", "b", "b"]) == "b"
    assert majority(["a", "b", "b", "a"]) == "a"
    assert majority([None, None, "c"]) == "c"
    assert majority([None]) is None and majority([]) is None


def test_likelihoods() -> None:
    assert perplexity(math.log(8)) == pytest.approx(8)
    assert perplexity(1e4) == math.inf
    # A uniform guess over 256 bytes costs 8 bits for each.
    assert bits_per_byte(10 * math.log(256), 10) == pytest.approx(8)
    with pytest.raises(ValueError, match="0 bytes"):
        bits_per_byte(1.0, 0)
