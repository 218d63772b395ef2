"""Scores as pure functions: of an answer's text (`answers`), of predicted classes (`classes`), of
several answers to one prompt (`samples`), of a likelihood (`likelihood`), and what an experiment
asks for of them (`scorers`)."""

from __future__ import annotations

from crucible_tinkex.scoring.answers import (
    exact_match,
    json_problem,
    matches,
    matches_schema,
    similarity,
)
from crucible_tinkex.scoring.classes import Classification, ClassScore, classification
from crucible_tinkex.scoring.likelihood import bits_per_byte, perplexity
from crucible_tinkex.scoring.samples import majority, pass_at_k
from crucible_tinkex.scoring.scorers import Question, Scored, Scoring, classes

__all__ = [
    "ClassScore",
    "Classification",
    "Question",
    "Scored",
    "Scoring",
    "bits_per_byte",
    "classes",
    "classification",
    "exact_match",
    "json_problem",
    "majority",
    "matches",
    "matches_schema",
    "pass_at_k",
    "perplexity",
    "similarity",
]
