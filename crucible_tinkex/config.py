"""The experiment: what a researcher declares, as one validated, frozen tree of pydantic models.

Guarantees: unknown keys are refused with the legal ones listed; every value is checked before any
service is asked; the same declaration always has the same identity. It is not the place for
secrets (the API key never enters a config) nor for anything that is measured.
"""

from __future__ import annotations

import difflib
import os
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.names import check_segment, digest

EMBEDDED = "embedded"
AXIS_SECTIONS = ("lora", "optimizer", "train")
NOT_APPLIED = ("lora.alpha", "lora.dropout", "lora.target_modules")
"""Seed settings that the Tinker API cannot take: accepted, recorded, refused as sweep axes."""


class Section(BaseModel):
    """Base of all sections: frozen, extras forbidden, NaN and infinity refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ServiceSection(Section):
    """Where training happens. Without `base_url`: `TINKER_BASE_URL`, else hosted Tinker."""

    base_url: str | None = None
    """`"embedded"` starts the local server; otherwise an http(s) address."""
    api_key_file: str | None = None
    """A file that holds the key; otherwise the environment variable TINKER_API_KEY."""
    transport: Literal["http", "sdk"] = "http"
    """Our own client, or the official `tinker` SDK (extra `[sdk]`)."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Embedded server: number format of the frozen base."""
    threads: int | None = Field(default=None, ge=1)
    """Embedded server: CPU threads (default: all cores)."""

    @property
    def embedded(self) -> bool:
        return self.base_url == EMBEDDED


class ModelSection(Section):
    base: str = Field(min_length=1)
    """Name of the base model, known to the service."""
    tokenizer: str | None = None
    """A folder, relative to the experiment file, or a name on the hub; by default the service's,
    and that of the base where the service names none."""


class LoraSection(Section):
    rank: int = Field(default=8, ge=1, le=1024)
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = False
    seed: int | None = None
    """Seed of the adapter's initial weights; by default the trial's seed."""
    alpha: float | None = None
    dropout: float | None = None
    target_modules: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _trains_something(self) -> LoraSection:
        if not (self.train_attn or self.train_mlp or self.train_unembed):
            raise ValueError("at least one of train_attn, train_mlp, train_unembed must be true")
        return self


class OptimizerSection(Section):
    """AdamW as the Tinker API defines it; defaults are the official SDK's."""

    learning_rate: float = Field(default=1e-4, gt=0, le=10)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-12, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip_norm: float = Field(default=0.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)


class DataSection(Section):
    train: str
    """JSONL file; a relative path is relative to the experiment file."""
    eval: str | None = None
    """Held-out rows for `eval/*` metrics."""
    format: Literal["prompt_completion", "text", "chat"] | None = None
    """By default read off the first row."""


class TrainSection(Section):
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    """Ends training earlier than `epochs` would."""
    batch_size: int = Field(default=8, ge=1, le=65536)
    max_length: int = Field(default=512, ge=2)
    """Longest row in tokens."""
    loss: Literal["cross_entropy"] = "cross_entropy"
    checkpoint_every: int = Field(default=50, ge=0)
    """Steps between resumable checkpoints; the final step is always saved. 0: only the final."""
    eval_every: int = Field(default=0, ge=0)
    """Steps between evaluations; the final step is always evaluated. 0: only the final."""
    submit_ahead: int = Field(default=1, ge=0, le=8)
    """Steps that are sent before the result of an earlier one is awaited."""


class EvaluationSection(Section):
    generate: bool = True
    """Also measure `eval/accuracy`: the greedy continuation begins with the expected completion."""
    max_rows: int | None = Field(default=None, ge=1)
    """Use only the first rows of the eval file."""


class AxisRange(Section):
    """`{ low, high, log, count }`: a grid takes `count` points, sampled strategies draw from it."""

    low: float
    high: float
    log: bool = False
    count: int | None = Field(default=None, ge=1, le=10_000)
    integer: bool = False
    """Round to whole numbers (set by itself when both bounds are whole and the key is one)."""

    @model_validator(mode="after")
    def _ordered(self) -> AxisRange:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError("a log range needs low > 0")
        return self


AxisValue = bool | int | float | str


def _axis_kind(value: Any) -> str:
    return "range" if isinstance(value, dict | AxisRange) else "values"


Axis = Annotated[
    Annotated[tuple[AxisValue, ...], Tag("values")] | Annotated[AxisRange, Tag("range")],
    Discriminator(_axis_kind),
]


class SearchSection(Section):
    strategy: Literal["grid", "list", "random"] = "grid"
    trials: int | None = Field(default=None, ge=1, le=100_000)
    """How many configurations the sampled strategies draw."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sampled strategies."""
    metric: str = "eval/nll"
    direction: Literal["min", "max"] = "min"
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Every configuration runs once per seed (adapter initialisation and data order)."""
    space: dict[str, Axis] = Field(default_factory=dict)
    configs: tuple[dict[str, AxisValue], ...] = ()
    """The configurations of strategy `list`: tables of dotted keys."""
    reference: bool = True
    """Also evaluate the untrained base model, as a row to compare with."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds) or any(s < 0 for s in seeds):
            raise ValueError("seeds must be distinct and not negative")
        return seeds


class RunSection(Section):
    max_concurrent: int = Field(default=8, ge=1, le=10_000)
    """Sessions that train at the same time."""
    sessions_per_actor: int | Literal["auto"] = 1
    """Sessions that share one Ray actor process; "auto" packs them on one actor per core."""
    max_attempts: int = Field(default=5, ge=1)
    """How often a trial is tried without progress when its actor or its session is lost."""
    storage: str = "runs"

    @field_validator("sessions_per_actor")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1")
        return value


class Experiment(Section):
    """The whole declaration."""

    name: str
    service: ServiceSection = ServiceSection()
    model: ModelSection
    lora: LoraSection = LoraSection()
    optimizer: OptimizerSection = OptimizerSection()
    data: DataSection
    train: TrainSection = TrainSection()
    evaluation: EvaluationSection = EvaluationSection()
    search: SearchSection = SearchSection()
    run: RunSection = RunSection()

    @field_validator("name")
    @classmethod
    def _safe_name(cls, name: str) -> str:
        try:
            return check_segment(name, what="name")
        except ConfigError as e:
            raise ValueError(e.message) from None

    @classmethod
    def from_toml(
        cls, path: str | Path, *, overrides: Mapping[str, Any] | None = None
    ) -> Experiment:
        """Read an experiment file; `overrides` are dotted keys. Raises `ConfigError`."""
        path = Path(path)
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"no experiment file {path}") from None
        except OSError as e:
            raise ConfigError(f"cannot read {path}: {e.strerror}") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path} is not valid TOML: {e}") from e
        raw.setdefault("name", path.stem)
        for key, value in (overrides or {}).items():
            _set_dotted(raw, key, value)
        raw = _anchor_paths(raw, path.parent)
        return cls.build(raw, source=str(path))

    @classmethod
    def build(cls, raw: Mapping[str, Any], *, source: str = "experiment") -> Experiment:
        """Validate plain data. Raises `ConfigError` that lists every problem."""
        try:
            return cls.model_validate(dict(raw))
        except ValidationError as e:
            raise ConfigError(explain(e, source=source)) from None

    def with_values(self, values: Mapping[str, Any]) -> Experiment:
        """This experiment with dotted keys replaced, validated again."""
        raw = self.model_dump()
        for key, value in values.items():
            _set_dotted(raw, key, value)
        return Experiment.build(raw, source="search space")

    def identity(self, data_fingerprint: str) -> str:
        """Equal for experiments that do the same work, wherever and however wide they run."""
        content = self.model_dump(
            mode="json", exclude={"name": True, "run": True}, exclude_none=True
        )
        content["service"] = {"base_url": self.service.base_url, "dtype": self.service.dtype}
        content["data"] = {"fingerprint": data_fingerprint}
        return digest(content, 16)

    def not_applied(self) -> list[str]:
        """Keys that were given and that the Tinker API cannot take."""
        given = self.model_dump(exclude_none=True)
        return [k for k in NOT_APPLIED if _get_dotted(given, k) is not None]


def _set_dotted(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node = raw
    for part in parents:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{key!r}: {part!r} is not a section")
        node = child
    node[last] = value


def _get_dotted(raw: Mapping[str, Any], key: str) -> Any:
    node: Any = raw
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def _anchor_paths(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths are relative to the experiment file, not to the current folder. A tokenizer that is no
    folder there is a name on the hub."""
    model, data = raw.get("model"), raw.get("data")
    tokenizer = model.get("tokenizer") if isinstance(model, dict) else None
    if isinstance(tokenizer, str) and (beside := folder / Path(tokenizer).expanduser()).is_dir():
        raw["model"] = {**raw["model"], "tokenizer": os.path.normpath(beside)}
    if isinstance(data, dict):
        for key in ("train", "eval"):
            value = data.get(key)
            if isinstance(value, str) and "://" not in value:
                data[key] = os.path.normpath(folder / Path(value).expanduser())
    return raw


def parse_assignment(text: str) -> tuple[str, Any]:
    """`key=value` of `--set`; the value is TOML, or a plain string if it is not."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text!r} must have the form key=value")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def axis_keys() -> dict[str, Any]:
    """Every dotted key that a sweep may vary, with its annotation."""
    return {
        f"{section}.{name}": field.annotation
        for section in AXIS_SECTIONS
        for name, field in _section_type(section).model_fields.items()
        if f"{section}.{name}" not in NOT_APPLIED
    }


def _section_type(name: str) -> type[BaseModel]:
    annotation = Experiment.model_fields[name].annotation
    assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation


def explain(error: ValidationError, *, source: str) -> str:
    """Every problem on a line of its own: file, key, what is wrong, what would be right."""
    return "\n".join(f"{source}: {_explain_one(d)}" for d in error.errors(include_url=False))


def _explain_one(detail: Any) -> str:
    location = [str(p) for p in detail["loc"] if p not in ("range", "values")]
    key = ".".join(location)
    if detail["type"] == "extra_forbidden":
        legal = _legal_keys(location[:-1])
        close = difflib.get_close_matches(location[-1], legal, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"unknown key {key!r}; {hint}legal here: {', '.join(legal)}"
    if detail["type"] == "missing":
        return f"missing key {key!r}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{key}: {message} (got {detail['input']!r})"


def _legal_keys(location: list[str]) -> list[str]:
    model: Any = Experiment
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return sorted(AxisRange.model_fields) if location[:2] == ["search", "space"] else []
        model = _model_of(field.annotation)
    return sorted(getattr(model, "model_fields", {}))


def _model_of(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next((a for a in get_args(annotation) if hasattr(a, "model_fields")), annotation)
    return annotation
