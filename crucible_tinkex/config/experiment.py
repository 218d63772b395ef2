"""The experiment: what a researcher declares, as one validated, frozen tree of pydantic models.

Guarantees: unknown keys are refused with the legal ones listed; every value is checked before any
service is asked; the same declaration always has the same identity. It is not the place for
secrets (the API key never enters a config) nor for anything that is measured.

Paths are absolute in memory. Those of an experiment file, and of `--set`, which edits it, start
from the file's folder; those given to Python or `--storage`, and the default storage `runs`, start
from the current folder.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from crucible_tinkex.config.advice import advise
from crucible_tinkex.config.identity import amendments, contradictions, trial_settings
from crucible_tinkex.config.problems import explain
from crucible_tinkex.config.section import Section, anchor_of, as_value_error, set_dotted
from crucible_tinkex.config.storing import stored, unstored
from crucible_tinkex.config.sweep.budget import BudgetSection
from crucible_tinkex.config.sweep.checkpoints import CheckpointsSection
from crucible_tinkex.config.sweep.models import ModelsSection
from crucible_tinkex.config.sweep.notify import NotifySection
from crucible_tinkex.config.sweep.quality import QualitySection
from crucible_tinkex.config.sweep.run import RunSection
from crucible_tinkex.config.sweep.search import DEFAULT_METRIC, TRAINING_DATA, SearchSection
from crucible_tinkex.config.sweep.sets import named
from crucible_tinkex.config.sweep.steps import StepsSection
from crucible_tinkex.config.trial.data import DataSection
from crucible_tinkex.config.trial.evaluation import EvaluationSection
from crucible_tinkex.config.trial.model import NOT_APPLIED, LoraSection, ModelSection, folder_beside
from crucible_tinkex.config.trial.service import ServiceSection
from crucible_tinkex.config.trial.train import OptimizerSection, TrainSection
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import check_segment


class Experiment(Section):
    """The whole declaration."""

    name: str
    """Of the sweep and its folder; a file that gives none lends its own name."""
    service: ServiceSection = ServiceSection()
    model: ModelSection
    lora: LoraSection = LoraSection()
    optimizer: OptimizerSection = OptimizerSection()
    data: DataSection
    train: TrainSection = TrainSection()
    evaluation: EvaluationSection = EvaluationSection()
    steps: StepsSection = StepsSection()
    quality: QualitySection = QualitySection()
    search: SearchSection = SearchSection()
    budget: BudgetSection = BudgetSection()
    checkpoints: CheckpointsSection = CheckpointsSection()
    models: ModelsSection = ModelsSection()
    notify: NotifySection = NotifySection()
    run: RunSection = Field(default_factory=RunSection)

    @model_validator(mode="before")
    @classmethod
    def _has_named_data(cls, raw: Any) -> Any:
        return named(raw) if isinstance(raw, Mapping) else raw

    @field_validator("name")
    @classmethod
    def _safe_name(cls, name: str) -> str:
        with as_value_error():
            return check_segment(name, what="name")

    @field_validator("model")
    @classmethod
    def _folder_of_base(cls, model: ModelSection, info: ValidationInfo) -> ModelSection:
        # Only the embedded server loads folders: elsewhere `org/name` is a name, also where a
        # folder of that name lies beside the file.
        service = info.data.get("service")
        if service is None or not service.embedded:
            return model
        folder = folder_beside(model.base, anchor_of(info), holding="config.json")
        return model.model_copy(update={"base": folder}) if folder else model

    @model_validator(mode="after")
    def _measures_its_metric(self) -> Experiment:
        if self.search.metric == "eval/accuracy" and not self.evaluation.generate:
            raise ValueError("search.metric 'eval/accuracy' needs evaluation.generate = true")
        if not self.evaluation.measures(self.search.metric):
            raise ValueError(
                f"search.metric {self.search.metric!r} is not measured; evaluation.metrics gives "
                f"{', '.join(self.evaluation.tags) or 'nothing'}"
            )
        return self

    @model_validator(mode="after")
    def _measures_on_the_same_rows(self) -> Experiment:
        if self.search.training_data and self.data.splits:
            raise ValueError(
                "the search varies data.train, and data.eval_fraction and data.eval_rows would "
                "hold other rows out of each training file: name a file in data.eval instead"
            )
        return self

    @classmethod
    def from_toml(
        cls, path: str | Path, *, overrides: Mapping[str, Any] | None = None
    ) -> Experiment:
        """Read an experiment file; `overrides` are dotted keys. Raises `ConfigError`."""
        path = Path(path)
        raw = _read(path)
        raw.setdefault("name", path.stem)
        _override(raw, overrides or {})
        return cls.build(raw, source=str(path), folder=path.parent)

    @classmethod
    def build(
        cls, raw: Mapping[str, Any], *, source: str = "experiment", folder: Path | None = None
    ) -> Experiment:
        """Validate plain data, whose paths start from `folder` (by default the current one).
        Raises `ConfigError` that lists every problem."""
        try:
            return cls.model_validate(dict(raw), context={"folder": folder})
        except ValidationError as e:
            raise ConfigError(explain(e, source=source, model=cls)) from None

    def stored(self, folder: Path) -> dict[str, Any]:
        """JSON values that `loaded` reads again, wherever the sweep's `folder` is moved."""
        return stored(self, folder)

    @classmethod
    def loaded(cls, raw: Mapping[str, Any], folder: Path, *, source: str = "") -> Experiment:
        """The experiment of the sweep that is now in `folder`. Raises `ConfigError`."""
        return cls.build(unstored(dict(raw), folder), source=source or str(folder))

    def configured(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment of one trial: dotted keys replaced and validated, and of the search only
        what ranks. Raises `ConfigError`."""
        changes: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            if key == TRAINING_DATA:
                value = self._training_data(value)
            section, _, name = key.partition(".")
            table, _, inner = name.partition(".")
            fields = changes.setdefault(section, {})
            if inner:  # a number of a table
                declared = getattr(getattr(self, section, None), table, {})
                fields[table] = {**declared, **fields.get(table, {}), inner: value}
            else:
                fields[name] = value
        sections = {name: self._changed(name, fields) for name, fields in changes.items()}
        search = self.search
        ranks = SearchSection(metric=search.metric, direction=search.direction, at=search.at)
        return self.model_copy(update={**sections, "search": ranks})

    def _training_data(self, name: object) -> Any:
        if name in self.data.sets:
            return self.data.sets[str(name)]
        known = ", ".join(map(repr, self.data.sets)) or "none"
        raise ConfigError(
            f"{TRAINING_DATA}: the search has no training data {name!r} (it has {known}); put it "
            f"into the axis {TRAINING_DATA} of search.space"
        )

    def _changed(self, name: str, fields: Mapping[str, Any]) -> Section:
        section = getattr(self, name, None)
        if not isinstance(section, Section):
            raise ConfigError(f"search space: there is no section {name!r}")
        try:
            return type(section).model_validate({**dict(section), **fields})
        except ValidationError as e:
            raise ConfigError(
                explain(e, source="search space", model=type(section), section=name)
            ) from None

    def warnings(self, *, rows: int | None = None, tokens: int | None = None) -> list[str]:
        """What is allowed and may be a mistake. `rows` and `tokens` of the training data, where
        they are known, add warnings on sizes."""
        return list(advise(self, rows=rows, tokens=tokens))

    def trial_settings(self, *, total_steps: int, reference: bool = False) -> dict[str, Any]:
        """See `identity.trial_settings`."""
        return trial_settings(self, total_steps=total_steps, reference=reference)

    def amendments(self, old: Experiment) -> list[str]:
        """Dotted keys in which this differs from `old` and that a sweep may change."""
        return amendments(self, old)

    def contradictions(self, old: Experiment) -> list[str]:
        """Dotted keys in which this differs from `old` and that a sweep may not change."""
        return contradictions(self, old)

    def setting(self, key: str) -> Any:
        """What is declared at a dotted key, which may be a number of a table, or None."""
        found: Any = self
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else getattr(found, part, None)
        return found

    def not_applied(self) -> list[str]:
        """Keys that were given and that the Tinker API cannot take."""
        return [key for key in NOT_APPLIED if self.setting(key) is not None]


def _read(path: Path) -> dict[str, Any]:
    try:
        # Windows editors put a byte order mark in front.
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"no experiment file {path}") from None
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        hint = "" if path.suffix == ".toml" else "; a file of rows goes to `crucible tune`"
        raise ConfigError(f"{path} is not valid TOML: {e}{hint}") from e


def _override(raw: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    search = raw.get("search")
    metric = overrides.get("search.metric")
    if isinstance(search, dict) and metric not in (None, search.get("metric", DEFAULT_METRIC)):
        # The direction that the file gives is that of the file's metric.
        search.pop("direction", None)
    for key, value in overrides.items():
        set_dotted(raw, key, value)


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value` of `--set`; the value is TOML, or a plain string if it is not."""
    key, separator, value = text.partition("=")
    key = key.replace('"', "")  # as a file writes it: search.space."lora.rank"
    if not separator or not key.strip():
        raise ConfigError(f"--set {text!r} must have the form key=value")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value
