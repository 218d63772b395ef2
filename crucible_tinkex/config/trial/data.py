"""`[data]`: which rows are learnt, which are held out."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from crucible_tinkex.config.section import AnchoredPath, Section, anchored_path
from crucible_tinkex.datasets.files.address import is_short_name
from crucible_tinkex.datasets.files.source import DataFile
from crucible_tinkex.datasets.rows import Format, TrainOn
from crucible_tinkex.datasets.tokens.tokenising import TooLong


def _placed(value: str, info: ValidationInfo) -> str:
    return value if is_short_name(value) else anchored_path(value, info)


DataPath = Annotated[str, AfterValidator(_placed)]
"""The name of a published data set, or a path; absolute once it is validated."""


class TrainFile(Section):
    """`{ path, weight }`: one of several training files."""

    path: DataPath
    """As `data.train`."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """How often an epoch shows each of its rows: 0.3 shows three tenths of them, others each time
    round; 2 shows each twice."""


def _many(value: Any) -> str:
    return "files" if isinstance(value, list | tuple) else "file"


def _table(value: Any) -> str:
    return "weighted" if isinstance(value, dict | TrainFile) else "file"


File = Annotated[
    Annotated[DataPath, Tag("file")] | Annotated[TrainFile, Tag("weighted")],
    Discriminator(_table),
]


Files = Annotated[
    Annotated[DataPath, Tag("file")] | Annotated[tuple[File, ...], Tag("files")],
    Discriminator(_many),
]


class DataSection(Section):
    """The rows."""

    train: Files
    """A JSONL, JSON, CSV, TSV or Parquet file, relative to the experiment file, or at an address
    (`hf://datasets/ORG/NAME/FILE`, `s3://BUCKET/FILE`), or a published data set by its name:
    `gsm8k`, `mmlu`, `humaneval`, `scifact`, `fever`. Options stand behind a `?`:
    `"mmlu?subject=anatomy&split=test"`, `"a.jsonl?sample=500&stratify=label"` (docs/data.md).
    Several: a list of them, in which `{ path = .., weight = .. }` shows a file's rows more or less
    often than once an epoch."""
    sets: dict[Annotated[str, Field(min_length=1)], Files] = Field(default_factory=dict)
    """Short names for training data that an axis `data.train` of `search.space` takes, such as
    `clean = "a.jsonl"`; a path or list that stands in the axis itself needs none. Where the search
    varies `data.train`, that key may be left out: it is the first of them."""
    eval: DataPath | None = None
    """Held-out rows for the `eval/*` metrics; named as `train`."""
    eval_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Instead of `eval`: hold out about this share of the training rows. Which ones depends on
    their content, so that they stay held out when rows are appended."""
    eval_rows: int | None = Field(default=None, ge=1)
    """Instead of `eval`: hold out this many of the training rows."""
    eval_seed: int = Field(default=0, ge=0)
    """Of `eval_fraction` and `eval_rows`: another seed holds out other rows."""
    format: Format | None = None
    """By default read off the first row of each file."""
    corpus: AnchoredPath | None = None
    """Format scifact: the abstracts that its claims quote; by default `corpus.jsonl` beside them.
    """
    train_on: TrainOn = "all_assistant"
    """What is learnt of a conversation: every turn of the assistant, or the last one only.
    `"everything"` learns all that a row says, prompts included."""
    too_long: TooLong | None = None
    """What becomes of rows over `train.max_length`. By default a row of format text is cut and any
    other refused; `"truncate"` cuts all from the right and leaves out those with nothing to learn
    after it."""

    @field_validator("train", "sets")
    @classmethod
    def _names_a_file(cls, value: Any) -> Any:
        if not value and not isinstance(value, dict):
            raise ValueError("it must name at least one file")
        for name, files in value.items() if isinstance(value, dict) else ():
            if not files:
                raise ValueError(f"{name!r} must name at least one file")
        return value

    @model_validator(mode="after")
    def _one_way_to_hold_out(self) -> DataSection:
        ways = ("eval", "eval_fraction", "eval_rows")
        given = [f"data.{way}" for way in ways if getattr(self, way) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}")
        return self

    @property
    def files(self) -> tuple[DataFile, ...]:
        """Of `train`, with their weights."""
        declared = (self.train,) if isinstance(self.train, str) else self.train
        return tuple(
            DataFile(file) if isinstance(file, str) else DataFile(file.path, file.weight)
            for file in declared
        )

    @property
    def name(self) -> str | None:
        """Of `train` among the `sets`."""
        return next((name for name, files in self.sets.items() if files == self.train), None)

    @property
    def splits(self) -> bool:
        """Whether rows are held out of the training files."""
        return self.eval_fraction is not None or self.eval_rows is not None

    @property
    def evaluates(self) -> bool:
        """Whether there are held-out rows."""
        return self.eval is not None or self.splits
