"""What the app asks of an engine, as plain data: operations, results, and the `Engine` protocol.

Guarantees: nothing here imports torch, starlette or pydantic, so another engine (a benchmark's
stand-in, for instance) can stand behind the same app. An engine executes the operations of one
`model_id` in the order in which they were submitted; different models are independent.
Not here: validation (`checks`), ordering by seq_id (`ordering`), encoding (`codec`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from crucible_tinkex.errors import (
    CrucibleError,
    DamagedCheckpointError,
    RequestRejectedError,
    SessionLostError,
)
from crucible_tinkex.names import TinkerPath

IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float32]

ALPHA = 32.0
"""LoRA's alpha: an adapter's output is scaled by ALPHA / rank."""
HEAD = "lm_head"
"""The name of the output layer among an adapter's layers."""


def refused(message: str, status: int = 400) -> RequestRejectedError:
    """The answer to a request that the client should not have made."""
    return RequestRejectedError(message, status=status, category="user")


def damaged(message: str) -> DamagedCheckpointError:
    """The answer for a checkpoint whose files are not those that were saved."""
    return DamagedCheckpointError(f"{message}; use another one", status=422, category="user")


def gone(message: str) -> SessionLostError:
    """The answer for what was there and is no more."""
    return SessionLostError(message, status=410, category="user")


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """The one base model of an engine. `tokenizer_id` is a folder that AutoTokenizer can load."""

    name: str
    tokenizer_id: str
    vocab_size: int
    max_length: int


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """What an adapter is made of; `seed` seeds its A matrices."""

    rank: int
    seed: int
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One datum of N tokens: targets [N] or [N, K], and by name float inputs of N (or N x K)."""

    tokens: IntArray
    targets: IntArray
    inputs: Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Adam:
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class SamplerSource:
    """Whose weights sample: the base (both None), a saved checkpoint, or a snapshot in memory."""

    path: TinkerPath | None = None
    snapshot_id: str | None = None


@dataclass(frozen=True, slots=True)
class CreateModel:
    model_id: str
    spec: LoraSpec


@dataclass(frozen=True, slots=True)
class LoadWeights:
    """Puts a checkpoint into `model_id`, which need not exist yet."""

    model_id: str
    path: TinkerPath
    optimizer: bool


@dataclass(frozen=True, slots=True)
class ForwardBackward:
    """A forward pass, and unless `backward` is False the accumulation of gradients."""

    model_id: str
    rows: tuple[Row, ...]
    loss_fn: str
    loss_config: Mapping[str, float]
    backward: bool


@dataclass(frozen=True, slots=True)
class OptimStep:
    model_id: str
    adam: Adam


@dataclass(frozen=True, slots=True)
class SaveWeights:
    """Writes a checkpoint; with optimizer state if `path.kind` is `weights`."""

    model_id: str
    path: TinkerPath
    overwrite: bool = False
    ttl_seconds: int | None = None
    user_metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Keeps a copy of the weights in memory, under the id of the sampling session it is for."""

    model_id: str
    snapshot_id: str


@dataclass(frozen=True, slots=True)
class UnloadModel:
    """Frees a model; unknown ids are ignored."""

    model_id: str


@dataclass(frozen=True, slots=True)
class DropSnapshot:
    """Comes after the samples of the same owner that were asked for before it."""

    snapshot_id: str
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """`stop_tokens` None: end-of-sequence tokens stop; `max_tokens` is already within limits.
    `ticket` is what `CancelSample` names. Owners take turns."""

    source: SamplerSource
    prompt: IntArray
    num_samples: int = 1
    first_sample: int = 0
    """The number of the first one: each draws by its seed and number."""
    max_tokens: int = 1
    seed: int | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    stop_tokens: tuple[int, ...] | None = None
    stop_strings: tuple[str, ...] = ()
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_logprobs_last_n: int | None = None
    ticket: str = ""
    owner: str = ""


@dataclass(frozen=True, slots=True)
class CancelSample:
    """Drops the sample of this ticket if it has not started; it then fails with 410."""

    ticket: str


Operation: TypeAlias = (
    CreateModel
    | LoadWeights
    | ForwardBackward
    | OptimStep
    | SaveWeights
    | TakeSnapshot
    | UnloadModel
    | DropSnapshot
    | Sample
    | CancelSample
)


@dataclass(frozen=True, slots=True)
class ModelReady:
    """The answer to CreateModel and LoadWeights."""

    model_id: str
    path: TinkerPath | None = None


@dataclass(frozen=True, slots=True)
class ForwardOutput:
    logprobs: tuple[FloatArray, ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class StepOutput:
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Saved:
    """The answer to SaveWeights (`path`) and TakeSnapshot (`sampler_id`)."""

    path: TinkerPath | None = None
    sampler_id: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to operations that have nothing to say."""


@dataclass(frozen=True, slots=True)
class Sequence:
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: str
    topk_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class PromptScores:
    """What was asked about the prompt's tokens."""

    logprobs: tuple[float | None, ...] | None = None
    topk: tuple[tuple[tuple[int, float], ...] | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class SampleOutput:
    sequences: tuple[Sequence, ...]
    prompt: PromptScores = field(default_factory=PromptScores)


Result: TypeAlias = ModelReady | ForwardOutput | StepOutput | Saved | Done | SampleOutput
Outcome: TypeAlias = Result | CrucibleError


class Engine(Protocol):
    """Whatever does the work behind the app."""

    @property
    def base(self) -> BaseInfo: ...

    def submit(self, operation: Operation, done: Callable[[Outcome], None]) -> None:
        """Queue `operation`; never blocks. `done` is called once, from any thread."""

    def close(self) -> None:
        """Stop working; what is queued is never answered."""
