"""What `evaluation.metrics` says of the answers to one prompt, and of all prompts together.

An answer is the text that a model wrote, or the part of it that `evaluation.answer` finds; that of
a text in which the pattern is not found is None, which is wrong and no class. Rules and functions
see the whole text. A row's score is the mean over its samples, so rows count alike; a class is
that of the first sample.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, TypeAlias

from crucible_tinkex.config import EvaluationSection, ScoreTable
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.scoring.answers import (
    exact_match,
    json_problem,
    matches,
    matches_schema,
    similarity,
)
from crucible_tinkex.scoring.classes import classification
from crucible_tinkex.scoring.samples import majority, pass_at_k
from crucible_tinkex.user_code import load_function

FUNCTION = "evaluation function"
"""What messages call one."""
SHOWN_CLASSES = 20
"""More classes than this have no metrics of their own."""


@dataclass(frozen=True)
class Question:
    """A held-out row, as functions see it."""

    example_id: str
    prompt: str
    expected: str
    group: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Other keys of the row (HumanEval's `test` and `entry_point`); functions get them, rules do
    not, and what a sweep keeps of a row has none."""


Scorer: TypeAlias = Callable[[str, Question], float]
"""Takes what the model wrote, and the row; the higher the better."""


@dataclass(frozen=True)
class Scored:
    """What is known of the answers to one question."""

    question: Question
    texts: Sequence[str]
    expected: str | None = None
    """What counts of the expected text."""
    answers: Sequence[str | None] = ()
    """What counts of each text."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """By metric."""


class Scoring:
    """Of one `[evaluation]`. Raises `ConfigError` for a function that cannot be imported, and for a
    schema that is none."""

    def __init__(self, section: EvaluationSection) -> None:
        self._section = section
        self._answer = re.compile(section.answer) if section.answer else None
        self._scorers = {table.tag: _scorer(table) for table in section.scores}

    def scored(self, question: Question, texts: Sequence[str]) -> Scored:
        """Raises `ConfigError` where a function fails, or gives no number."""
        expected = self.counting(question.expected)
        answers = [self.counting(text) for text in texts]
        each = {
            tag: [scorer(text, question) for text in texts] for tag, scorer in self._scorers.items()
        }
        each["eval/exact_match"] = [
            float(a is not None and expected is not None and exact_match(a, expected))
            for a in answers
        ]
        each["eval/similarity"] = [
            0.0 if a is None or expected is None else similarity(a, expected) for a in answers
        ]
        right = [score >= 1 for score in each[self._section.right_tag]]
        scores = {tag: fmean(each[tag]) for tag in self._section.tags if tag in each}
        for k in self._section.passes:
            scores[f"eval/pass@{k}"] = pass_at_k(len(texts), sum(right), k)
        if "majority" in self._section.metrics:
            plain = [None if a is None else _plain(a) for a in answers]
            most = majority(plain)
            scores["eval/majority"] = float(most is not None and right[plain.index(most)])
        return Scored(question, texts, expected, answers, scores)

    def metrics(self, rows: Sequence[Scored]) -> dict[str, float]:
        """Of all rows together."""
        tags = rows[0].scores if rows else ()
        found = {tag: fmean(row.scores[tag] for row in rows) for tag in tags}
        if "classification" in self._section.metrics and rows:
            found |= class_metrics(*classes(rows))
        return found

    def counting(self, text: str) -> str | None:
        """The part of a text that counts; None where the pattern is not found."""
        if self._answer is None:
            return text
        places = list(self._answer.finditer(text))
        if not places:
            return None
        return places[-1].group(1 if self._answer.groups else 0)


def classes(rows: Sequence[Scored]) -> tuple[list[str | None], list[str]]:
    """The class that each row was given, and the one that is expected, in one spelling. An answer
    that no row expects is no class."""
    expected = [_plain(row.expected or "") for row in rows]
    answered = [_plain(row.answers[0]) if row.answers and row.answers[0] else None for row in rows]
    known = set(expected)
    return [a if a in known else None for a in answered], expected


def class_metrics(predicted: Sequence[str | None], expected: Sequence[str]) -> dict[str, float]:
    """Of one prediction for each row. What is not defined is left out."""
    found = classification(predicted, expected)
    metrics = {"eval/class_accuracy": found.accuracy, "eval/f1_macro": found.macro_f1}
    for name, score in found.classes.items() if len(found.classes) <= SHOWN_CLASSES else ():
        for kind in ("precision", "recall", "f1"):
            value = getattr(score, kind)
            if value is not None:
                metrics[f"eval/{kind}/{name}"] = value
    return metrics


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _scorer(table: ScoreTable) -> Scorer:
    if table.function is not None:
        return _guarded(table.function, load_function(table.function, what=FUNCTION))
    if table.regex is not None:
        pattern = table.regex
        return lambda text, question: float(matches(text, pattern))
    schema = table.json_schema or {}
    json_problem("null", schema)  # raises where the schema is none
    return lambda text, question: float(matches_schema(text, schema))


def _guarded(name: str, function: Callable[..., Any]) -> Scorer:
    """A stranger's function: what it raises becomes one error that names it and the row."""

    def score(text: str, question: Question) -> float:
        where = f"{FUNCTION} {name!r}, row {question.example_id}"
        try:
            value = float(function(text, question))
        except Exception as error:
            raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
        if not math.isfinite(value):
            raise ConfigError(f"{where}: gave {value}; a score must be a finite number")
        return value

    return score
