"""A training service in memory, for testing loops and sweeps without HTTP, a server or torch.

It is a FAKE: nothing is learned. Its shape is the real one: operations are submitted when called
and take effect in that order, losses come per row and as `loss:sum`, checkpoints can be resumed
exactly, a lost session stays lost. The loss is a pure function of the model's rank and seed and
of the learning rates so far: it falls from 4 nats per token towards a floor, fastest near
`BEST_RATE`, and rises for rates above `DIVERGING_RATE`. Equal requests give equal numbers.

`FakeBackend` is what outlives a session: make one per test, and a `FakeService` on it for each
attempt. `FakeBackend(failures=[("optim_step", 3, OperationFailedError("no"))])` fails the third
`optim_step` of all its services; `backend.calls` lists what was asked.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import crucible_tinkex.client as client
from crucible_tinkex.client.capabilities import ServerCapabilities, SupportedModel
from crucible_tinkex.client.interface import EndReason
from crucible_tinkex.client.operations import Pending
from crucible_tinkex.client.wire import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    LoraConfig,
    ModelData,
    ModelInfo,
    OptimStepResponse,
    SampledSequence,
    SampleResponse,
    SamplingParams,
    TensorData,
)
from crucible_tinkex.errors import ConfigError, RequestRejectedError, SessionLostError
from crucible_tinkex.names import TinkerPath, check_segment, model_id_of

if TYPE_CHECKING:
    from crucible_tinkex.client.custom_loss import CustomLoss

T = TypeVar("T")

START_NLL = 4.0
BEST_RATE = 1e-3
DIVERGING_RATE = 0.1
VOCABULARY = 256


@dataclass(frozen=True)
class FakeWeights:
    """A fake model's whole state; `excess` is the part of the loss still to be removed."""

    base_model: str
    lora: LoraConfig
    step: int = 0
    excess: float = 1.0

    @property
    def nll(self) -> float:
        """Nats per token."""
        floor = 1.0 + 1.0 / self.lora.rank
        wobble = 0.02 * _uniform(self.lora.seed or 0, self.step)
        return floor + (START_NLL - floor) * self.excess + wobble

    def stepped(self, rate: float) -> FakeWeights:
        if rate > DIVERGING_RATE:
            factor = 1.5
        else:
            distance = math.log(max(rate, 1e-12) / BEST_RATE)
            factor = 1.0 - 0.2 * math.exp(-distance * distance / 4.5)
        return replace(self, step=self.step + 1, excess=min(self.excess * factor, 1e6))


@dataclass
class FakeBackend:
    """What outlives a session: checkpoints, planned failures, and the record of all calls."""

    base_models: Sequence[str] = ("nano",)
    delay_s: float = 0.0
    """How long each `forward_backward` and `optim_step` takes."""
    failures: Sequence[tuple[str, int, Exception]] = ()
    """(operation, n, error): the n-th call of the operation, from 1, fails with the error."""
    checkpoints: dict[str, FakeWeights] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    """The reason of every closed session."""
    _counts: Counter[str] = field(default_factory=Counter)
    _sessions: Any = field(default_factory=lambda: itertools.count(1))

    def record(self, operation: str) -> None:
        """Count the call; raises the failure planned for it."""
        self.calls.append(operation)
        self._counts[operation] += 1
        for planned, nth, error in self.failures:
            if planned == operation and nth == self._counts[operation]:
                raise copy.copy(error)

    def next_session_id(self) -> str:
        return f"fake-{next(self._sessions)}"

    def load(self, path: str) -> FakeWeights:
        if path not in self.checkpoints:
            raise RequestRejectedError(f"no checkpoint {path}", status=404, category="user")
        return self.checkpoints[path]


class FakeService:
    """A `TrainingService` on a `FakeBackend`."""

    def __init__(self, backend: FakeBackend | None = None) -> None:
        self.backend = backend or FakeBackend()
        self.session_id = self.backend.next_session_id()
        self._models = itertools.count()
        self._is_closed = False

    async def capabilities(self) -> ServerCapabilities:
        self._record("capabilities")
        return ServerCapabilities(
            supported_models=[
                SupportedModel(
                    model_name=name, max_context_length=2048, trainable=True, sampleable=True
                )
                for name in self.backend.base_models
            ]
        )

    async def create_training(
        self,
        *,
        base_model: str,
        lora: LoraConfig,
        user_metadata: Mapping[str, Any] | None = None,
    ) -> FakeTraining:
        self._record("create_training")
        return self._training(FakeWeights(self._known(base_model), lora.model_copy()))

    async def create_training_from_state(
        self, path: str, *, optimizer: bool = True
    ) -> FakeTraining:
        self._record("create_training_from_state")
        TinkerPath.parse(path)
        return self._training(self.backend.load(path))

    async def sampler(
        self, *, base_model: str | None = None, model_path: str | None = None
    ) -> FakeSampling:
        self._record("sampler")
        if (base_model is None) == (model_path is None):
            raise ConfigError("sampler() takes either base_model or model_path")
        if model_path is not None:
            return FakeSampling(self.backend, self.backend.load(model_path))
        weights = FakeWeights(self._known(base_model or ""), LoraConfig(rank=1))
        return FakeSampling(self.backend, weights)

    async def delete_checkpoint(self, path: str) -> None:
        self._record("delete_checkpoint")
        TinkerPath.parse(path)
        self.backend.checkpoints.pop(path, None)

    async def close(self, *, reason: EndReason = "success", detail: str | None = None) -> None:
        if not self._is_closed:
            self.backend.ends.append(reason)
        self._is_closed = True

    def _record(self, operation: str) -> None:
        if self._is_closed:
            raise SessionLostError("this service client is closed")
        self.backend.record(operation)

    def _known(self, base_model: str) -> str:
        if base_model not in self.backend.base_models:
            legal = ", ".join(self.backend.base_models)
            raise RequestRejectedError(f"no base model {base_model!r}; there are: {legal}")
        return base_model

    def _training(self, weights: FakeWeights) -> FakeTraining:
        return FakeTraining(model_id_of(self.session_id, next(self._models)), weights, self.backend)


class FakeTraining:
    """A `TrainingClient`. `weights` may be read by tests."""

    def __init__(self, model_id: str, weights: FakeWeights, backend: FakeBackend) -> None:
        self.model_id = model_id
        self.weights = weights
        self._backend = backend
        self._has_gradient = False
        self._turn = asyncio.Lock()
        self._lost: SessionLostError | None = None

    def forward_backward(
        self,
        data: Sequence[Datum],
        *,
        loss_fn: str = "cross_entropy",
        loss_fn_config: Mapping[str, float] | None = None,
    ) -> Awaitable[ForwardBackwardOutput]:
        rows = _copied(data)

        def effect() -> ForwardBackwardOutput:
            self._has_gradient = True
            return _output(rows, self.weights.nll)

        return self._submit("forward_backward", effect, self._backend.delay_s)

    def forward_backward_custom(
        self, data: Sequence[Datum], loss_fn: CustomLoss
    ) -> Awaitable[ForwardBackwardOutput]:
        """Calls `loss_fn`, and takes any gradient for a good one."""
        rows = _copied(data)

        def effect() -> ForwardBackwardOutput:
            output = _output(rows, self.weights.nll)
            weighed = client.custom_loss.weigh(rows, output, loss_fn)
            self._has_gradient = True
            return client.custom_loss.reported(output, weighed)

        return self._submit("forward_backward_custom", effect, self._backend.delay_s)

    def forward(
        self,
        data: Sequence[Datum],
        *,
        loss_fn: str = "cross_entropy",
        loss_fn_config: Mapping[str, float] | None = None,
    ) -> Awaitable[ForwardBackwardOutput]:
        rows = _copied(data)
        return self._submit("forward", lambda: _output(rows, self.weights.nll))

    def optim_step(self, params: AdamParams) -> Awaitable[OptimStepResponse]:
        rate = params.learning_rate

        def effect() -> OptimStepResponse:
            if self._has_gradient:
                self.weights = self.weights.stepped(rate)
            self._has_gradient = False
            return OptimStepResponse(metrics={"step": float(self.weights.step)})

        return self._submit("optim_step", effect, self._backend.delay_s)

    def save_state(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._submit("save_state", lambda: self._save("weights", name))

    def save_for_sampler(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._submit("save_for_sampler", lambda: self._save("sampler_weights", name))

    def load_state(self, path: str, *, optimizer: bool) -> Awaitable[None]:
        def effect() -> None:
            self.weights = self._backend.load(path)

        return self._submit("load_state", effect)

    async def sampler(self) -> FakeSampling:
        return await self._submit(
            "training_sampler", lambda: FakeSampling(self._backend, self.weights)
        )

    async def info(self) -> ModelInfo:
        base_model = self.weights.base_model
        return ModelInfo(
            model_id=self.model_id,
            model_data=ModelData(model_name=base_model),
            is_lora=True,
            lora_rank=self.weights.lora.rank,
            model_name=base_model,
        )

    def _save(self, kind: str, name: str) -> str:
        check_segment(name, what="checkpoint name")
        path = str(TinkerPath(self.model_id, kind, name))
        self._backend.checkpoints[path] = self.weights
        return path

    def _submit(self, operation: str, effect: Callable[[], T], delay_s: float = 0.0) -> Pending[T]:
        if self._lost is not None:
            raise copy.copy(self._lost)
        task = asyncio.ensure_future(self._run(operation, effect, delay_s))
        return Pending(task)

    async def _run(self, operation: str, effect: Callable[[], T], delay_s: float) -> T:
        async with self._turn:
            if self._lost is not None:
                raise copy.copy(self._lost)
            try:
                self._backend.record(operation)
            except SessionLostError as error:
                self._lost = error
                raise
            await asyncio.sleep(delay_s)
            return effect()


class FakeSampling:
    """A `SamplingClient` whose tokens depend on the prompt, the seed and the sample's index."""

    def __init__(self, backend: FakeBackend, weights: FakeWeights) -> None:
        self._backend = backend
        self._weights = weights

    async def sample(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        num_samples: int = 1,
        prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
    ) -> SampleResponse:
        self._backend.record("sample")
        nll = self._weights.nll
        sequences = [_sequence(prompt, params, index, nll) for index in range(num_samples)]
        scores = [None, *[-nll] * (len(prompt) - 1)] if prompt_logprobs and prompt else None
        return SampleResponse(sequences=sequences, prompt_logprobs=scores)

    async def compute_logprobs(self, tokens: Sequence[int]) -> list[float | None]:
        answer = await self.sample(tokens, SamplingParams(max_tokens=1), prompt_logprobs=True)
        return answer.prompt_logprobs or []


def _sequence(
    prompt: Sequence[int], params: SamplingParams, index: int, nll: float
) -> SampledSequence:
    """Ends behind a token of `params.stop`; text cannot stop it, because it has no tokenizer."""
    stops = {t for t in params.stop or () if isinstance(t, int)}
    tokens: list[int] = []
    for position in range(params.max_tokens or 16):
        tokens.append(int(_uniform(params.seed or 0, index, position, *prompt) * VOCABULARY))
        if tokens[-1] in stops:
            break
    is_stopped = tokens[-1] in stops
    return SampledSequence(
        stop_reason="stop" if is_stopped else "length",
        tokens=tokens,
        logprobs=[-nll] * len(tokens),
    )


def _copied(data: Sequence[Datum]) -> list[Datum]:
    if not data:
        raise ConfigError("a batch needs at least one row")
    return [datum.model_copy(deep=True) for datum in data]


def _output(rows: Sequence[Datum], nll: float) -> ForwardBackwardOutput:
    outputs, total = [], 0.0
    for row in rows:
        count = len(row.loss_fn_inputs["target_tokens"].data)
        weights = row.loss_fn_inputs.get("weights")
        total += nll * (count if weights is None else math.fsum(weights.data))
        logprobs = TensorData(data=[-nll] * count, dtype="float32", shape=[count])
        outputs.append({"logprobs": logprobs})
    return ForwardBackwardOutput(loss_fn_outputs=outputs, metrics={"loss:sum": total})


def _uniform(*parts: int) -> float:
    """A number in [0, 1) that depends on `parts` only."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
