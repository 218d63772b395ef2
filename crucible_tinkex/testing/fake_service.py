"""A training service in memory, for testing loops and sweeps without HTTP, a server or torch.

It is a FAKE, of the real shape: operations are submitted when called and take effect in that order,
losses come per row and as `loss:sum`, checkpoints can be resumed exactly, a lost session stays
lost. What it trains learns from its data (`fake_model`): rows that are trained on become probable,
and greedy samples become right. Equal requests give equal numbers.

`FakeBackend` is what outlives a session. It delays, fails, holds and forgets what a test asks for,
and `backend.ledger` lists every effect: what a real service would have applied, and billed.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from typing_extensions import Unpack

from crucible_tinkex.client.http.watch import Observer
from crucible_tinkex.client.interface import EndReason, LossOptions, SampleOptions
from crucible_tinkex.client.model import custom_loss
from crucible_tinkex.client.model.custom_loss import CustomLoss
from crucible_tinkex.client.session.submission import Pending
from crucible_tinkex.errors import ConfigError, RequestRejectedError, SessionLostError
from crucible_tinkex.names import TinkerPath, check_segment, model_id_of
from crucible_tinkex.protocol.capabilities import ServerCapabilities, SupportedModel
from crucible_tinkex.protocol.wire import (
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
from crucible_tinkex.testing.fake_backend import Effect, FakeBackend
from crucible_tinkex.testing.fake_model import (
    USUAL_ADAM,
    USUAL_LORA,
    FakeRow,
    FakeWeights,
    pairs_of,
    rows_digest,
    uniform,
)

T = TypeVar("T")


class FakeService:
    """A `TrainingService` on a `FakeBackend`."""

    def __init__(
        self, backend: FakeBackend | None = None, *, observer: Observer | None = None
    ) -> None:
        self.backend = backend or FakeBackend()
        self.observer = observer or Observer()
        self.session_id = self.backend.next_session_id()
        self._models = itertools.count()
        self._is_closed = False

    async def capabilities(self) -> ServerCapabilities:
        return await self._call("capabilities", self._capabilities)

    def _capabilities(self) -> ServerCapabilities:
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
        await self.backend.take_place(self.session_id, self.observer)
        return await self._call(
            "create_training",
            lambda: self._training(
                FakeWeights(self._known(base_model), self.backend.applied("lora", lora, USUAL_LORA))
            ),
        )

    async def create_training_from_state(
        self, path: str, *, optimizer: bool = True
    ) -> FakeTraining:
        TinkerPath.parse(path)
        await self.backend.take_place(self.session_id, self.observer)
        return await self._call(
            "create_training_from_state", lambda: self._training(self.backend.load(path))
        )

    async def sampler(
        self, *, base_model: str | None = None, model_path: str | None = None
    ) -> FakeSampling:
        if (base_model is None) == (model_path is None):
            raise ConfigError("sampler() takes either base_model or model_path")

        def made() -> FakeSampling:
            if model_path is not None:
                weights = self.backend.load(model_path)
            else:
                weights = FakeWeights(self._known(base_model or ""), LoraConfig(rank=1))
            return FakeSampling(self, weights)

        return await self._call("sampler", made)

    async def delete_checkpoint(self, path: str) -> None:
        TinkerPath.parse(path)
        await self._call("delete_checkpoint", lambda: self.backend.checkpoints.pop(path, None))

    async def close(self, *, reason: EndReason = "success", detail: str | None = None) -> None:
        if not self._is_closed:
            self.backend.ends.append(reason)
            del self.backend.loaded[self.session_id]
        self._is_closed = True

    async def _call(self, operation: str, effect: Callable[[], T]) -> T:
        self.check()
        return await self.backend.operate(operation, effect, self.observer)

    def check(self) -> None:
        if self._is_closed:
            raise SessionLostError("this service client is closed")

    def _known(self, base_model: str) -> str:
        if base_model not in self.backend.base_models:
            legal = ", ".join(self.backend.base_models)
            raise RequestRejectedError(f"no base model {base_model!r}; there are: {legal}")
        return base_model

    def _training(self, weights: FakeWeights) -> FakeTraining:
        return FakeTraining(model_id_of(self.session_id, next(self._models)), weights, self)


class FakeTraining:
    """A `TrainingClient`. `weights` may be read by tests."""

    def __init__(self, model_id: str, weights: FakeWeights, service: FakeService) -> None:
        self.model_id = model_id
        self.weights = weights
        self._service = service
        self._backend = service.backend
        self._gradient: list[FakeRow] | None = None
        self._rate: float | None = None
        self._turn = asyncio.Lock()
        self._seqs = itertools.count(1)
        self._lost: SessionLostError | None = None

    def forward_backward(
        self, data: Sequence[Datum], **loss: Unpack[LossOptions]
    ) -> Awaitable[ForwardBackwardOutput]:
        rows = _rows(data)
        heard = [row.heard(self._backend.ignores) for row in rows]
        return self._submit("forward_backward", lambda: self._learn(heard), rows)

    def forward_backward_custom(
        self, data: Sequence[Datum], loss_fn: CustomLoss
    ) -> Awaitable[ForwardBackwardOutput]:
        """Calls `loss_fn`, and takes any gradient for a good one."""
        rows, copied = _rows(data), [datum.model_copy(deep=True) for datum in data]

        def effect() -> ForwardBackwardOutput:
            output = self._output(rows)
            weighed = custom_loss.weigh(copied, output, loss_fn)
            self._learn(rows)
            return custom_loss.reported(output, weighed)

        return self._submit("forward_backward_custom", effect, rows)

    def forward(
        self, data: Sequence[Datum], **loss: Unpack[LossOptions]
    ) -> Awaitable[ForwardBackwardOutput]:
        rows = _rows(data)
        return self._submit("forward", lambda: self._output(rows), rows)

    def optim_step(self, params: AdamParams) -> Awaitable[OptimStepResponse]:
        adam = self._backend.applied("optimizer", params, USUAL_ADAM)
        if "optimizer.schedule" in self._backend.ignores:
            self._rate = self._rate or adam.learning_rate
            adam = adam.model_copy(update={"learning_rate": self._rate})

        def effect() -> OptimStepResponse:
            if self._gradient is not None:
                self.weights = self.weights.stepped(pairs_of(self._gradient), adam)
            self._gradient = None
            return OptimStepResponse(metrics={"step": float(self.weights.step)})

        return self._submit("optim_step", effect)

    def save_state(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._submit("save_state", lambda: self._save("weights", name), name=name)

    def save_for_sampler(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._submit(
            "save_for_sampler", lambda: self._save("sampler_weights", name), name=name
        )

    def load_state(self, path: str, *, optimizer: bool) -> Awaitable[None]:
        def effect() -> None:
            self.weights = self._backend.load(path)

        return self._submit("load_state", effect, name=path)

    async def sampler(self) -> FakeSampling:
        return await self._submit(
            "training_sampler", lambda: FakeSampling(self._service, self.weights)
        )

    async def info(self) -> ModelInfo:
        base_model = self.weights.base_model
        return ModelInfo(
            model_id=self.model_id,
            model_data=ModelData(model_name=base_model),
            is_lora=True,
            lora_rank=self.weights.lora.rank if self._backend.tells_rank else None,
            model_name=base_model,
        )

    def _learn(self, rows: Sequence[FakeRow]) -> ForwardBackwardOutput:
        kept = () if "train.accumulate" in self._backend.ignores else self._gradient or ()
        self._gradient = [*kept, *rows]
        return self._output(rows)

    def _output(self, rows: Sequence[FakeRow]) -> ForwardBackwardOutput:
        return _output(rows, self.weights, self._backend.noise_of_call())

    def _save(self, kind: str, name: str) -> str:
        check_segment(name, what="checkpoint name")
        path = str(TinkerPath(self.model_id, kind, name))
        self._backend.checkpoints[path] = self.weights
        return path

    def _submit(
        self,
        operation: str,
        effect: Callable[[], T],
        rows: Sequence[FakeRow] = (),
        *,
        name: str = "",
    ) -> Pending[T]:
        if self._lost is not None:
            raise copy.copy(self._lost)
        seq = next(self._seqs)

        def entered() -> T:
            result = effect()
            what = rows_digest(rows) if rows else name
            tokens = sum(len(row.pairs) for row in rows)
            self._backend.ledger.append(Effect(self.model_id, operation, seq, what, tokens))
            return result

        self._backend.submitted(operation)
        return Pending(asyncio.ensure_future(self._run(operation, entered)))

    async def _run(self, operation: str, effect: Callable[[], T]) -> T:
        try:
            async with self._turn:
                if self._lost is not None:
                    raise copy.copy(self._lost)
                self._service.check()
                return await self._backend.operate(operation, effect, self._service.observer)
        except SessionLostError as error:
            self._lost = error
            raise
        finally:
            self._backend.answered(operation)


class FakeSampling:
    """A `SamplingClient`. Drawn tokens depend on the weights, the prompt, the seed and the index of
    the sample; greedy ones on the weights and the prompt."""

    def __init__(self, service: FakeService, weights: FakeWeights) -> None:
        self._service = service
        self._weights = weights

    async def sample(
        self, prompt: Sequence[int], params: SamplingParams, **how: Unpack[SampleOptions]
    ) -> SampleResponse:
        given, asked, backend = list(prompt), params.model_copy(deep=True), self._service.backend
        count, scored = how.get("num_samples", 1), how.get("prompt_logprobs", False)

        def effect() -> SampleResponse:
            sequences = [self._sequence(given, asked, index) for index in range(count)]
            sampled = sum(len(s.tokens) for s in sequences)
            backend.ledger.append(Effect("", "sample", 0, "", len(given), sampled))
            scores = self._scores(given) if scored and given else None
            return SampleResponse(sequences=sequences, prompt_logprobs=scores)

        backend.submitted("sample")
        try:
            return await backend.operate("sample", effect, self._service.observer)
        finally:
            backend.answered("sample")

    async def compute_logprobs(self, tokens: Sequence[int]) -> list[float | None]:
        answer = await self.sample(tokens, SamplingParams(max_tokens=1), prompt_logprobs=True)
        return answer.prompt_logprobs or []

    def _scores(self, prompt: Sequence[int]) -> list[float | None]:
        return [None, *(self._weights.logprob(a, b) for a, b in itertools.pairwise(prompt))]

    def _sequence(
        self, prompt: Sequence[int], params: SamplingParams, index: int
    ) -> SampledSequence:
        """Ends behind a token of `params.stop`; text cannot stop it, because it has no tokenizer,
        and no end-of-sequence token."""
        stops = {t for t in params.stop or () if isinstance(t, int)}
        tokens: list[int] = []
        logprobs: list[float] = []
        before = prompt[-1] if prompt else 0
        for position in range(params.max_tokens or 16):
            chance = uniform(params.seed or 0, index, position, *prompt)
            token = self._weights.drawn(before, chance, greedy=params.temperature == 0)
            tokens.append(token)
            logprobs.append(self._weights.logprob(before, token))
            before = token
            if token in stops:
                break
        reason = "stop" if tokens[-1] in stops else "length"
        return SampledSequence(stop_reason=reason, tokens=tokens, logprobs=logprobs)


def _rows(data: Sequence[Datum]) -> list[FakeRow]:
    if not data:
        raise ConfigError("a batch needs at least one row")
    return [FakeRow.of(datum) for datum in data]


def _output(rows: Sequence[FakeRow], weights: FakeWeights, noise: float) -> ForwardBackwardOutput:
    outputs, total = [], 0.0
    for row in rows:
        logprobs = [logprob + noise for logprob in weights.logprobs(row)]
        total -= math.fsum(w * p for w, p in zip(row.weights, logprobs, strict=True))
        tensor = TensorData(data=logprobs, dtype="float32", shape=[len(logprobs)])
        outputs.append({"logprobs": tensor})
    return ForwardBackwardOutput(loss_fn_outputs=outputs, metrics={"loss:sum": total})
