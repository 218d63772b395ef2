"""Requests checked against the base model and turned into operations.

Guarantees: whatever passes cannot make a pass fail by its content: tokens are in the vocabulary,
rows fit the context, inputs have the right lengths and are finite. Everything else is refused with
`RequestRejectedError` that names the place. No torch here.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator

import crucible_tinkex.protocol.wire as wire
from crucible_tinkex.names import base_name
from crucible_tinkex.protocol.proto.tensors import Budget, unfold
from crucible_tinkex.server.engine.loss_specs import LOSS_SPECS, WEIGHTS, LossSpec
from crucible_tinkex.server.operations import (
    BaseInfo,
    FloatArray,
    ForwardBackward,
    IntArray,
    LoraSpec,
    Row,
    Sample,
    SamplerSource,
    refused,
)

MAX_RANK = 256
MAX_SAMPLES = 1024
MAX_TOPK = 100
MIN_EPS = 1e-18
"""Adam divides by sqrt(v) + eps in fp32, where the square of a gradient below 1e-22 is 0."""
MAX_TTL_S = 10 * 366 * 24 * 3600
MAX_TARGETS = 1 << 22
"""Targets of one request whose tokens have several."""
_INT64_MAX = 2**63 - 1


# --- what the protocol's bodies must hold here -----------------------------------------------

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_NotNegative = Annotated[_Finite, Field(ge=0)]
_Beta = Annotated[_Finite, Field(ge=0, lt=1)]
_TopK = Annotated[int, Field(ge=0, le=MAX_TOPK)]
TtlSeconds = Annotated[int, Field(ge=1, le=MAX_TTL_S)]


class LoraConfig(wire.LoraConfig):
    rank: int = Field(ge=1, le=MAX_RANK)


class OptimizerConfig(wire.OptimizerConfig):
    @field_validator("type")
    @classmethod
    def _supported(cls, name: str) -> str:
        if name != "adamw":
            raise ValueError(f"optimizer {name!r} is not supported; supported is 'adamw'")
        return name


class CreateModelRequest(wire.CreateModelRequest):
    lora_config: LoraConfig
    optimizer_config: OptimizerConfig | None = None


class AdamParams(wire.AdamParams):
    learning_rate: _Finite = Field(1e-4, gt=0)
    beta1: _Beta = 0.9
    beta2: _Beta = 0.95
    eps: _Finite = Field(1e-12, ge=MIN_EPS)
    weight_decay: _NotNegative = 0.0
    grad_clip_norm: _NotNegative = 0.0


class OptimStepRequest(wire.OptimStepRequest):
    adam_params: AdamParams
    optimizer_params: OptimizerConfig | None = None


class SaveRequest(wire.Wire):
    """Of all three kinds of saving."""

    model_id: str
    path: str | None = None
    seq_id: int | None = None
    ttl_seconds: TtlSeconds | None = None
    overwrite: bool | None = None
    user_metadata: dict[str, Any] | None = None
    age_encryption_recipients: Annotated[list[str], Field(max_length=0)] | None = None


class SaveForSamplerRequest(SaveRequest):
    sampling_session_seq_id: int | None = None
    kind: Literal["snapshot"] | None = None


class LoadWeightsRequest(wire.LoadWeightsRequest):
    optimizer_config: OptimizerConfig | None = None


class TtlRequest(wire.Wire):
    ttl_seconds: TtlSeconds | None = None


class SamplingParams(wire.SamplingParams):
    temperature: _NotNegative = 1.0
    top_p: _Finite = Field(1.0, gt=0, le=1)


class SampleRequest(wire.SampleRequest):
    num_samples: int = Field(1, ge=1, le=MAX_SAMPLES)
    sampling_params: SamplingParams = Field(default_factory=SamplingParams)
    topk_prompt_logprobs: _TopK = 0
    topk_sample_logprobs: _TopK | None = None
    target_prompt_logprobs: None = None
    prompt_alt_tokens_k: Literal[0] | None = None


# --- what pydantic cannot know ---------------------------------------------------------------


def base_model(name: str | None, base: BaseInfo) -> None:
    """The folder of the base's tokenizer is another name of it: what the cookbook loads."""
    if name is None or name.rstrip("/") == base.tokenizer_id:
        return
    if base_name(name) != base.name:
        raise refused(f"unknown base model {name!r}; this server has {base.name!r}")


def lora_spec(config: LoraConfig) -> LoraSpec:
    if not (config.train_attn or config.train_mlp or config.train_unembed):
        raise refused("lora_config trains nothing: train_attn, train_mlp, train_unembed are false")
    seed = secrets.randbits(62) if config.seed is None else config.seed
    return LoraSpec(**{**config.model_dump(), "seed": seed & _INT64_MAX})


_INSTEAD = "; recipes of the cookbook take loss_fn=importance_sampling"
"""Its RL recipes default to a loss whose formula is not published."""


def forward(
    model_id: str, given: wire.ForwardInput, base: BaseInfo, *, backward: bool
) -> ForwardBackward:
    spec = LOSS_SPECS.get(given.loss_fn)
    if spec is None:
        supported = ", ".join(LOSS_SPECS)
        raise refused(
            f"loss_fn {given.loss_fn!r} is not supported; supported are {supported}{_INSTEAD}"
        )
    config = _loss_config(given, spec)
    if not given.data:
        raise refused("data is empty")
    optional = (WEIGHTS, *spec.config)
    present = {n for n in optional if any(n in d.loss_fn_inputs for d in given.data)}
    fills = {WEIGHTS: 1.0} | {n: config.get(n, spec.config[n]) for n in present if n != WEIGHTS}
    names = dict.fromkeys((*spec.required, *(n for n in optional if n in present)))
    fill = {n: fills.get(n) for n in names}
    rows = tuple(
        _row(d, fill, base, f"data[{i}]", is_wide=spec.is_wide) for i, d in enumerate(given.data)
    )
    _bounded(rows)
    return ForwardBackward(model_id, rows, given.loss_fn, config, backward)


def _bounded(rows: Sequence[Row]) -> None:
    """Rows of few targets are filled up to the widest one's."""
    width = max(1 if r.targets.ndim == 1 else r.targets.shape[1] for r in rows)
    if width > 1 and width * sum(len(r.tokens) for r in rows) > MAX_TARGETS:
        raise refused(f"{width} targets per token are too many for a request of this size")


def _loss_config(given: wire.ForwardInput, spec: LossSpec) -> Mapping[str, float]:
    config = given.loss_fn_config or {}
    for name, value in config.items():
        if name not in spec.config:
            known = ", ".join(spec.config) or "none"
            raise refused(f"loss_fn {given.loss_fn} has no setting {name!r}; it has: {known}")
        if not math.isfinite(value):
            raise refused(f"loss_fn_config.{name} must be a finite number")
    return config


def _row(
    datum: wire.Datum,
    fill: Mapping[str, float | None],
    base: BaseInfo,
    where: str,
    *,
    is_wide: bool,
) -> Row:
    """`fill` names the inputs and what stands for one that is missing; None: it must not be."""
    tokens = tokens_of(datum.model_input, base, f"{where}.model_input")
    given = datum.loss_fn_inputs
    if "target_tokens" not in given:
        raise refused(f"{where}.loss_fn_inputs lacks target_tokens")
    place = f"{where}.target_tokens"
    flat, shape = _dense(given["target_tokens"], place)
    if len(shape) == 2 and shape[0] == len(tokens) and shape[1] > 0:
        if not is_wide:
            raise refused(f"{place} has the shape {list(shape)}; this loss takes one per token")
    elif len(shape) > 1 or len(flat) != len(tokens):
        raise refused(f"{place} has {len(flat)} entries for {len(tokens)} tokens")
    targets = in_vocabulary(flat, base, place).reshape(shape)
    inputs = {}
    for name, value in fill.items():
        if name in given:
            inputs[name] = _floats(given[name], shape, f"{where}.{name}")
        elif value is None:
            raise refused(f"{where}.loss_fn_inputs lacks {name}")
        else:
            inputs[name] = np.full(shape, value, np.float32)
    return Row(tokens, targets, inputs)


def _dense(
    given: wire.TensorData, where: str
) -> tuple[Sequence[int] | Sequence[float], tuple[int, ...]]:
    """The elements row by row, and the shape."""
    data: Sequence[int] | Sequence[float] = given.data
    shape = tuple(given.shape or (len(data),))
    if given.sparse_crow_indices is not None:
        columns = given.sparse_col_indices or []
        data = unfold(data, given.sparse_crow_indices, columns, shape, what=where, budget=Budget())
    if min(shape) < 0 or math.prod(shape) != len(data):
        raise refused(f"{where} has {len(data)} entries and the shape {list(shape)[:9]}")
    return data, shape


def _floats(given: wire.TensorData, shape: tuple[int, ...], where: str) -> FloatArray:
    flat, own = _dense(given, where)
    if len(flat) != math.prod(shape) or (len(own) > 1 and own != shape):
        raise refused(f"{where} has {len(flat)} entries for {math.prod(shape)} targets")
    with np.errstate(over="ignore"):
        values = np.asarray(flat, np.float32).reshape(shape)
    is_bound = where.endswith("_threshold")
    if not (np.isfinite(values) | (is_bound & np.isinf(values))).all():
        raise refused(f"{where} has entries that are not finite numbers")
    return values


def tokens_of(given: wire.ModelInput, base: BaseInfo, where: str) -> IntArray:
    for chunk in given.chunks:
        if chunk.type != "encoded_text":
            raise refused(f"{where} has a chunk of type {chunk.type!r}; only encoded_text works")
    chunks = given.chunks
    tokens = chunks[0].tokens if len(chunks) == 1 else given.tokens()
    if not 0 < len(tokens) <= base.max_length:
        raise refused(f"{where} has {len(tokens)} tokens; {base.name} takes 1 to {base.max_length}")
    return in_vocabulary(tokens, base, where)


def in_vocabulary(values: Sequence[int] | Sequence[float], base: BaseInfo, where: str) -> IntArray:
    try:
        tokens = np.asarray(values, np.int64)
    except (OverflowError, ValueError) as e:
        raise refused(f"{where} has entries that are no token ids") from e
    if len(tokens) and not (tokens.min() >= 0 and tokens.max() < base.vocab_size):
        bad = int(tokens[(tokens < 0) | (tokens >= base.vocab_size)][0])
        raise refused(f"{where} has token id {bad}; {base.name} has 0 to {base.vocab_size - 1}")
    return tokens


def sample(request: SampleRequest, source: SamplerSource, base: BaseInfo) -> Sample:
    prompt = tokens_of(request.prompt, base, "prompt")
    params = request.sampling_params
    room = base.max_length - len(prompt)
    wanted = room if params.max_tokens is None else params.max_tokens
    if wanted < 1 and not (params.max_tokens is None and request.prompt_logprobs):
        raise refused(f"max_tokens must be at least 1; the prompt leaves room for {room}")
    last_n = request.prompt_logprobs_last_n
    if last_n is not None and not 1 <= last_n < len(prompt):
        raise refused(f"prompt_logprobs_last_n must be 1 to {len(prompt) - 1}, not {last_n}")
    if request.record_stability_info:
        raise refused(f"record_stability_info is not supported, nor is stable_reinforce{_INSTEAD}")
    strings, tokens = _stops(params.stop)
    return Sample(
        source=source,
        prompt=prompt,
        num_samples=request.num_samples,
        max_tokens=max(1, min(wanted, room)),
        seed=params.seed,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        stop_tokens=tokens,
        stop_strings=strings,
        prompt_logprobs=bool(request.prompt_logprobs),
        topk_prompt_logprobs=request.topk_prompt_logprobs,
        topk_sample_logprobs=request.topk_sample_logprobs or 0,
        prompt_logprobs_last_n=last_n,
    )


def _stops(
    stop: str | list[str] | list[int] | None,
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Stop strings and stop tokens; None for tokens means the end-of-sequence tokens."""
    if stop is None:
        return (), None
    given = [stop] if isinstance(stop, str) else stop
    strings = tuple(s for s in given if isinstance(s, str))
    if any(not s for s in strings):
        raise refused("a stop string must not be empty")
    tokens = tuple(t for t in given if isinstance(t, int))
    return strings, None if strings else tokens
