"""`[evaluation]`: what is measured on the held-out rows: likelihoods and generated answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from crucible_tinkex.config.section import Section, anchor_of, anchored
from crucible_tinkex.metrics import SCORE, known
from crucible_tinkex.user_code import FUNCTION

EXACT, MAJORITY, CLASSES, PASS = "exact_match", "majority", "classification", "pass@"
SIMILARITY = "similarity"
CLAIMS = (
    "schema_compliance",
    "citation_accuracy",
    "mean_entailment",
    "overall_pass_rate",
    "polarity_conflict",
)
"""Scores of extracted claims, functions of `scoring.claims`: the seed's quality targets."""
_OURS = "crucible_tinkex.scoring.claims:"
_CLASS_TAGS = ("eval/class_accuracy", "eval/f1_macro")
_CLASS_FAMILIES = ("eval/precision/", "eval/recall/", "eval/f1/")
_NAME = re.compile(r"[\w.-]{1,64}")


class ScoreTable(Section):
    """A rule by which one answer is right or wrong, or a function that gives it a score."""

    regex: str | None = None
    """The regular expression that must be found in the answer."""
    json_schema: dict[str, Any] | None = None
    """The schema by which the answer must be valid JSON: a table, or the file that holds it."""
    function: str | None = None
    """`module:function`; takes the answer and the row (`prompt`, `expected`, `example_id`,
    `group`, and in `notes` its other keys), and gives a number."""
    name: str | None = None
    """The metric is then `eval/score/<name>`."""

    @field_validator("json_schema", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        """What a file says is kept, so that the sweep goes on without it, and on other machines."""
        if not isinstance(value, str):
            return value
        path = Path(anchored(value, anchor_of(info)))
        try:
            return json.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return _checked_pattern(value)

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, value: str | None) -> str | None:
        if value is not None and not FUNCTION.fullmatch(value):
            raise ValueError("it must be written module:function")
        return value

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str | None) -> str | None:
        if value is not None and not _NAME.fullmatch(value):
            raise ValueError("it may have letters, digits, '_', '.' and '-'")
        return value

    @model_validator(mode="after")
    def _one_rule(self) -> ScoreTable:
        given = [n for n in ("regex", "json_schema", "function") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError("give one of regex, json_schema and function")
        return self

    @property
    def tag(self) -> str:
        """The metric that it makes."""
        if self.name is not None:
            return SCORE + self.name
        if self.function is not None:
            return SCORE + self.function.rpartition(":")[2]
        return "eval/regex" if self.regex is not None else "eval/json_schema"


def _kind(value: Any) -> str:
    return "score" if isinstance(value, Mapping | ScoreTable) else "str"


Asked = Annotated[
    Annotated[str, Tag("str")] | Annotated[ScoreTable, Tag("score")], Discriminator(_kind)
]


class EvaluationSection(Section):
    """What is measured on the held-out rows."""

    generate: bool = True
    """Also measure `eval/accuracy`: the greedy continuation begins with the expected completion."""
    max_rows: int | None = Field(default=None, ge=1)
    """Use only the first rows of the eval file."""
    metrics: tuple[Asked, ...] = ()
    """What is measured on answers that the model writes: `"exact_match"`, `"similarity"`,
    `"classification"`, `"majority"`, `"pass@k"` (k is a number, or the letter for all samples),
    of extracted claims `"schema_compliance"`, `"citation_accuracy"`, `"mean_entailment"`,
    `"overall_pass_rate"`, `"polarity_conflict"`, `"module:function"`,
    `{ regex = .. }`, `{ json_schema = .. }`, `{ function = .. }`, the last three with a `name` of
    your own (docs/evaluation.md)."""
    samples: int = Field(default=1, ge=1, le=256)
    """Answers to each prompt."""
    temperature: float | None = Field(default=None, ge=0, le=10)
    """Of the answers; by default 0 for one sample and 1 for several."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the end of sequence."""
    seed: int = Field(default=0, ge=0)
    """Of the answers: the same weights write the same ones again."""
    answer: str | None = None
    """Regular expression that finds what counts in an answer and in the expected text: its first
    group, or all of it, at its last place. By default the whole text counts."""
    right_by: str = EXACT
    """Which score says that an answer is right, for `pass@k` and `majority`: `exact_match`, or that
    of one of `metrics`, by its name."""

    @field_validator("answer")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        return _checked_pattern(value)

    @model_validator(mode="after")
    def _can_be_measured(self) -> EvaluationSection:
        for name in self.metrics:
            if isinstance(name, str):
                self._check(name)
        tags = [table.tag for table in self.scores]
        twice = next((tag for tag in tags if tags.count(tag) > 1), None)
        if twice:
            raise ValueError(f"metrics: two of them are {twice}; give them names")
        if self.samples > 1 and not self.metrics:
            raise ValueError("samples has no effect without metrics")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("at temperature 0 all samples of a prompt are the same; raise it")
        if self.right_by != EXACT and self.right_tag not in tags:
            named = ", ".join((EXACT, *(tag.rpartition("/")[2] for tag in tags)))
            raise ValueError(f"right_by: no score {self.right_by!r} in metrics; one of {named}")
        return self

    def _check(self, name: str) -> None:
        if name in (EXACT, SIMILARITY, CLASSES, *CLAIMS) or FUNCTION.fullmatch(name):
            return
        if name == MAJORITY:
            if self.samples < 2:
                raise ValueError("metrics: 'majority' needs samples = 2 at least")
            return
        k = name.removeprefix(PASS)
        if not name.startswith(PASS) or not (k == "k" or re.fullmatch(r"[1-9]\d{0,2}", k)):
            raise ValueError(
                f"metrics: no metric {name!r}; there are exact_match, similarity, classification, "
                f"majority, pass@k, {', '.join(CLAIMS)}, module:function, {{ regex = .. }} and "
                "{ json_schema = .. }"
            )
        if k != "k" and int(k) > self.samples:
            raise ValueError(f"metrics: {name!r} needs samples = {k} at least")

    @property
    def scores(self) -> tuple[ScoreTable, ...]:
        """Rules and functions."""
        return tuple(
            ScoreTable(function=_function(m)) if isinstance(m, str) else m
            for m in self.metrics
            if not isinstance(m, str) or ":" in m or m in CLAIMS
        )

    @property
    def has_functions(self) -> bool:
        """Whether a function of the user's is asked, which sees all of a row."""
        return any(m.function and not m.function.startswith(_OURS) for m in self.scores)

    @property
    def passes(self) -> tuple[int, ...]:
        """Each k of `pass@k`."""
        found = [m.removeprefix(PASS) for m in self.metrics if isinstance(m, str) and PASS in m]
        return tuple(dict.fromkeys(self.samples if k == "k" else int(k) for k in found))

    @property
    def tags(self) -> list[str]:
        """The metrics that `metrics` makes; those of single classes follow from the rows."""
        found = [name for name in (EXACT, SIMILARITY, MAJORITY) if name in self.metrics]
        tags = [f"eval/{name}" for name in (*found, *(f"pass@{k}" for k in self.passes))]
        tags += _CLASS_TAGS if CLASSES in self.metrics else ()
        return [*tags, *(table.tag for table in self.scores)]

    @property
    def right_tag(self) -> str:
        """The score that says whether an answer is right."""
        if self.right_by == EXACT:
            return "eval/exact_match"
        tags = (f"eval/{self.right_by}", SCORE + self.right_by)
        return next((t.tag for t in self.scores if t.tag in tags), self.right_by)

    @property
    def sampling_temperature(self) -> float:
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.samples == 1 else 1.0

    def measures(self, metric: str) -> bool:
        """Whether a metric that an experiment must ask for is asked for."""
        if CLASSES in self.metrics and metric.startswith(_CLASS_FAMILIES):
            return True
        return not asked_for(metric) or metric in self.tags

    def identity(self) -> dict[str, Any]:
        """What decides a trial's numbers."""
        fields = self.model_dump(mode="json")
        return fields if self.metrics else {k: fields[k] for k in ("generate", "max_rows")}


def asked_for(metric: str) -> bool:
    """Whether it is measured only where an experiment asks for it."""
    always = ("eval/nll", "eval/perplexity", "eval/bpb", "eval/accuracy")
    return metric.startswith("eval/") and metric not in always and known(metric) is not None


def _function(metric: str) -> str:
    return f"{_OURS}{metric}" if metric in CLAIMS else metric


def _checked_pattern(value: str | None) -> str | None:
    try:
        re.compile(value or "")
    except re.error as error:
        raise ValueError(f"it is no regular expression: {error}") from None
    return value
