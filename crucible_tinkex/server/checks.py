"""Requests checked against the base model and turned into operations.

Guarantees: whatever passes cannot make a pass fail by its content: tokens are in the vocabulary,
rows fit the context, inputs have the right lengths and are finite. Everything else is refused with
`RequestRejectedError` that names the place. No torch here.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence

import numpy as np

import crucible_tinkex.client.wire as wire
from crucible_tinkex.errors import RequestRejectedError
from crucible_tinkex.server.loss_specs import LOSS_SPECS, WEIGHTS, LossSpec
from crucible_tinkex.server.operations import (
    Adam,
    BaseInfo,
    FloatArray,
    ForwardBackward,
    IntArray,
    LoraSpec,
    Row,
    Sample,
    SamplerSource,
)

MAX_RANK = 256
MAX_SAMPLES = 1024
MAX_TOPK = 100
_INT64_MAX = 2**63 - 1


def refused(message: str, status: int = 400) -> RequestRejectedError:
    return RequestRejectedError(message, status=status, category="user")


def base_model(name: str | None, base: BaseInfo) -> None:
    if name is not None and name != base.name:
        raise refused(f"unknown base model {name!r}; this server has {base.name!r}")


def lora_spec(config: wire.LoraConfig) -> LoraSpec:
    if not 1 <= config.rank <= MAX_RANK:
        raise refused(f"lora_config.rank must be 1 to {MAX_RANK}, not {config.rank}")
    if not (config.train_attn or config.train_mlp or config.train_unembed):
        raise refused("lora_config trains nothing: train_attn, train_mlp, train_unembed are false")
    seed = secrets.randbits(62) if config.seed is None else config.seed
    return LoraSpec(
        rank=config.rank,
        seed=seed & _INT64_MAX,
        train_attn=config.train_attn,
        train_mlp=config.train_mlp,
        train_unembed=config.train_unembed,
    )


def adam(params: wire.AdamParams) -> Adam:
    for name, value in params.model_dump().items():
        if not math.isfinite(value):
            raise refused(f"adam_params.{name} must be a finite number, not {value}")
    if params.learning_rate <= 0:
        raise refused(f"adam_params.learning_rate must be above 0, not {params.learning_rate}")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(params, name) < 1:
            raise refused(f"adam_params.{name} must be at least 0 and below 1")
    for name in ("eps", "weight_decay", "grad_clip_norm"):
        if getattr(params, name) < 0:
            raise refused(f"adam_params.{name} must not be negative")
    return Adam(**params.model_dump())


def forward(
    model_id: str, given: wire.ForwardInput, base: BaseInfo, *, backward: bool
) -> ForwardBackward:
    spec = LOSS_SPECS.get(given.loss_fn)
    if spec is None:
        raise refused(f"unknown loss_fn {given.loss_fn!r}; known are {', '.join(LOSS_SPECS)}")
    config = _loss_config(given, spec)
    if not given.data:
        raise refused("data is empty")
    weighted = any(WEIGHTS in d.loss_fn_inputs for d in given.data)
    names = (
        (*spec.required, WEIGHTS) if weighted and WEIGHTS not in spec.required else spec.required
    )
    rows = tuple(_row(d, names, base, f"data[{i}]") for i, d in enumerate(given.data))
    return ForwardBackward(model_id, rows, given.loss_fn, config, backward)


def _loss_config(given: wire.ForwardInput, spec: LossSpec) -> Mapping[str, float]:
    config = given.loss_fn_config or {}
    for name, value in config.items():
        if name not in spec.config:
            known = ", ".join(spec.config) or "none"
            raise refused(f"loss_fn {given.loss_fn} has no setting {name!r}; it has: {known}")
        if not math.isfinite(value):
            raise refused(f"loss_fn_config.{name} must be a finite number")
    return config


def _row(datum: wire.Datum, names: Sequence[str], base: BaseInfo, where: str) -> Row:
    tokens = tokens_of(datum.model_input, base, f"{where}.model_input")
    given = datum.loss_fn_inputs
    if "target_tokens" not in given:
        raise refused(f"{where}.loss_fn_inputs lacks target_tokens")
    targets = in_vocabulary(given["target_tokens"].data, base, f"{where}.target_tokens")
    if len(targets) != len(tokens):
        raise refused(f"{where}.target_tokens has {len(targets)} entries for {len(tokens)} tokens")
    inputs = {n: _floats(given, n, len(tokens), where) for n in names}
    return Row(tokens, targets, inputs)


def _floats(given: Mapping[str, wire.TensorData], name: str, length: int, where: str) -> FloatArray:
    if name not in given:
        if name == WEIGHTS and "logprobs" in given:
            return np.ones(length, np.float32)
        raise refused(f"{where}.loss_fn_inputs lacks {name}")
    values = np.asarray(given[name].data, np.float32)
    if len(values) != length:
        raise refused(f"{where}.{name} has {len(values)} entries for {length} tokens")
    if not np.isfinite(values).all():
        raise refused(f"{where}.{name} has entries that are not finite numbers")
    return values


def tokens_of(given: wire.ModelInput, base: BaseInfo, where: str) -> IntArray:
    for chunk in given.chunks:
        if chunk.type != "encoded_text":
            raise refused(f"{where} has a chunk of type {chunk.type!r}; only encoded_text works")
    tokens = in_vocabulary(given.tokens(), base, where)
    if not 0 < len(tokens) <= base.max_length:
        raise refused(f"{where} has {len(tokens)} tokens; {base.name} takes 1 to {base.max_length}")
    return tokens


def in_vocabulary(values: Sequence[int] | Sequence[float], base: BaseInfo, where: str) -> IntArray:
    try:
        tokens = np.asarray(values, np.int64)
    except (OverflowError, ValueError) as e:
        raise refused(f"{where} has entries that are no token ids") from e
    if len(tokens) and not (tokens.min() >= 0 and tokens.max() < base.vocab_size):
        bad = int(tokens[(tokens < 0) | (tokens >= base.vocab_size)][0])
        raise refused(f"{where} has token id {bad}; {base.name} has 0 to {base.vocab_size - 1}")
    return tokens


def sample(request: wire.SampleRequest, source: SamplerSource, base: BaseInfo) -> Sample:
    prompt = tokens_of(request.prompt, base, "prompt")
    params = request.sampling_params
    room = base.max_length - len(prompt)
    wanted = room if params.max_tokens is None else params.max_tokens
    if wanted < 1 and not (params.max_tokens is None and request.prompt_logprobs):
        raise refused(f"max_tokens must be at least 1; the prompt leaves room for {room}")
    if not 1 <= request.num_samples <= MAX_SAMPLES:
        raise refused(f"num_samples must be 1 to {MAX_SAMPLES}, not {request.num_samples}")
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        raise refused(f"temperature must be 0 or more, not {params.temperature}")
    if not 0 < params.top_p <= 1:
        raise refused(f"top_p must be above 0 and at most 1, not {params.top_p}")
    if not 0 <= request.topk_prompt_logprobs <= MAX_TOPK:
        raise refused(f"topk_prompt_logprobs must be 0 to {MAX_TOPK}")
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
