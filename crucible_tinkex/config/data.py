"""`[data]` and `[evaluation]`: which rows are learnt, which are held out, what is measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from crucible_tinkex.config.section import AnchoredPath, Section


class DataSection(Section):
    """The rows."""

    train: AnchoredPath
    """JSONL file; a relative path is relative to the experiment file."""
    eval: AnchoredPath | None = None
    """Held-out rows for the `eval/*` metrics."""
    format: Literal["prompt_completion", "text", "chat"] | None = None
    """By default read off the first row."""


class EvaluationSection(Section):
    """What is measured on the held-out rows."""

    generate: bool = True
    """Also measure `eval/accuracy`: the greedy continuation begins with the expected completion."""
    max_rows: int | None = Field(default=None, ge=1)
    """Use only the first rows of the eval file."""
