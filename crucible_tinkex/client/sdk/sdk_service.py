"""The `TrainingService` interface over the official `tinker` SDK, for hosted Tinker.

The SDK tracks the hosted service's protocol best; it also costs more memory and time than our own
client (`benchmarks/client_cost.py`). Its errors become ours here, with the key removed. It keeps
its own retries, deadlines and heartbeat in a thread of its own.

What the SDK has marked for removal (listing the service's abilities, deleting a checkpoint) goes
through our own client. With `sdk_errors` the only module that imports `tinker`, at its top: import
it only when it is used (`client.resolved`).
"""

from __future__ import annotations

import asyncio
import copy
import logging
import warnings
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

import tinker
from typing_extensions import Unpack

from crucible_tinkex.client.http.key import ApiKey
from crucible_tinkex.client.http.settings import ClientSettings
from crucible_tinkex.client.interface import CROSS_ENTROPY, EndReason, LossOptions, SampleOptions
from crucible_tinkex.client.model import custom_loss
from crucible_tinkex.client.sdk.sdk_errors import translated
from crucible_tinkex.client.service import TinkexService
from crucible_tinkex.client.session.submission import Pending
from crucible_tinkex.errors import ConfigError, ServiceError, SessionLostError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.protocol.capabilities import ServerCapabilities
from crucible_tinkex.protocol.wire import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    LoraConfig,
    ModelInfo,
    OptimStepResponse,
    SampleResponse,
    SamplingParams,
    Wire,
)

T = TypeVar("T")
R = TypeVar("R", bound=Wire)
_log = logging.getLogger(__name__)


class SdkService:
    """A `TrainingService`. No input or output before the first use. Whoever makes it closes it."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key_file: str | None = None,
        allow_http: bool | Collection[str] = False,
    ) -> None:
        self._ours = TinkexService(base_url, api_key_file=api_key_file, allow_http=allow_http)
        self.address = self._ours.address
        self._key = ApiKey(api_key_file)
        self._client: tinker.ServiceClient | None = None
        self._lock = asyncio.Lock()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"SdkService({str(self.address)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an SdkService holds a live session; make one in each process")

    async def capabilities(self) -> ServerCapabilities:
        return await self._ours.capabilities()

    async def create_training(
        self,
        *,
        base_model: str,
        lora: LoraConfig,
        user_metadata: Mapping[str, Any] | None = None,
    ) -> SdkTraining:
        metadata = {k: str(v) for k, v in (user_metadata or {}).items()} or None
        create = (await self._opened()).create_lora_training_client
        return SdkTraining(
            await called(
                "create_model",
                lambda: create(base_model, **lora.model_dump(), user_metadata=metadata),
            )
        )

    async def create_training_from_state(self, path: str, *, optimizer: bool = True) -> SdkTraining:
        if TinkerPath.parse(path).kind != "weights":
            raise ConfigError(f"{path!r} is not a training checkpoint tinker://RUN/weights/NAME")
        service = await self._opened()
        with_optimizer = service.create_training_client_from_state_with_optimizer
        create = with_optimizer if optimizer else service.create_training_client_from_state
        return SdkTraining(await called("load_weights", lambda: create(path)))

    async def sampler(
        self, *, base_model: str | None = None, model_path: str | None = None
    ) -> SdkSampling:
        if (base_model is None) == (model_path is None):
            raise ConfigError("sampler() takes either base_model or model_path")
        create = (await self._opened()).create_sampling_client
        return SdkSampling(
            await called(
                "create_sampling_session",
                lambda: create(model_path=model_path, base_model=base_model),
            )
        )

    async def delete_checkpoint(self, path: str) -> None:
        await self._ours.delete_checkpoint(path)

    async def close(self, *, reason: EndReason = "success", detail: str | None = None) -> None:
        """May be called again; the second call does nothing."""
        self._is_closed = True
        service, self._client = self._client, None
        try:
            if service is not None:
                async with asyncio.timeout(ClientSettings().close_s):
                    await called("finish_session", lambda: service.close(reason, detail))
        except (ServiceError, TimeoutError) as error:
            _log.info("the session was not finished: %s", error)
        finally:
            await self._ours.close()

    async def _opened(self) -> tinker.ServiceClient:
        if self._is_closed:
            raise SessionLostError("this service client is closed")
        async with self._lock:
            if self._client is None:
                key = await asyncio.to_thread(self._key.read)
                self._client = await called(
                    "create_session",
                    lambda: tinker.ServiceClient(base_url=str(self.address), api_key=key),
                )
        return self._client


class SdkTraining:
    """A `TrainingClient`. The SDK draws the numbers, at the call."""

    def __init__(self, client: tinker.TrainingClient) -> None:
        self._client = client
        self._failure: ServiceError | None = None

    @property
    def model_id(self) -> str:
        return str(self._client.model_id)

    def forward_backward(
        self, data: Sequence[Datum], **loss: Unpack[LossOptions]
    ) -> Awaitable[ForwardBackwardOutput]:
        return self._batch("forward_backward", self._client.forward_backward, data, loss)

    def forward(
        self, data: Sequence[Datum], **loss: Unpack[LossOptions]
    ) -> Awaitable[ForwardBackwardOutput]:
        return self._batch("forward", self._client.forward, data, loss)

    def forward_backward_custom(
        self, data: Sequence[Datum], loss_fn: custom_loss.CustomLoss
    ) -> Awaitable[ForwardBackwardOutput]:
        """Needs torch, because the SDK does."""
        rows, loss = _rows(data), surrogate(loss_fn)
        return self._submit(
            "forward_backward_custom",
            lambda: self._client.forward_backward_custom(rows, loss),
            partial(_read, ForwardBackwardOutput),
        )

    def optim_step(self, params: AdamParams) -> Awaitable[OptimStepResponse]:
        given = tinker.AdamParams(**params.model_dump())
        return self._submit(
            "optim_step",
            lambda: self._client.optim_step(given),
            partial(_read, OptimStepResponse),
        )

    def save_state(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._submit(
            "save_weights", lambda: self._client.save_state(name, ttl_seconds=ttl_s), _path
        )

    def save_for_sampler(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._submit(
            "save_weights_for_sampler",
            lambda: self._client.save_weights_for_sampler(name, ttl_seconds=ttl_s),
            _path,
        )

    def load_state(self, path: str, *, optimizer: bool) -> Awaitable[None]:
        client = self._client
        load = client.load_state_with_optimizer if optimizer else client.load_state

        def start() -> Any:
            with warnings.catch_warnings():
                # Deprecated in favour of a new client, which is not the same operation.
                warnings.simplefilter("ignore", FutureWarning)
                return load(path)

        return self._submit("load_weights", start, lambda found: None)

    async def sampler(self) -> SdkSampling:
        self._check()
        snapshot = self._client.save_weights_and_get_sampling_client
        return SdkSampling(await called("save_weights_for_sampler", snapshot))

    async def info(self) -> ModelInfo:
        return _read(ModelInfo, await called("get_info", self._client.get_info))

    def _batch(
        self,
        operation: str,
        start: Callable[..., Any],
        data: Sequence[Datum],
        loss: LossOptions,
    ) -> Pending[ForwardBackwardOutput]:
        rows, config = _rows(data), dict(loss.get("loss_fn_config") or {}) or None
        loss_fn = loss.get("loss_fn", CROSS_ENTROPY)
        return self._submit(
            operation,
            lambda: start(rows, loss_fn, config),
            partial(_read, ForwardBackwardOutput),
        )

    def _submit(
        self, operation: str, start: Callable[[], Any], read: Callable[[Any], T]
    ) -> Pending[T]:
        """Calls the SDK now, which draws the number and sends in its thread."""
        self._check()
        with translated(operation):
            future = start()
        return Pending(asyncio.ensure_future(self._result(operation, future, read)))

    async def _result(self, operation: str, future: Any, read: Callable[[Any], T]) -> T:
        try:
            with translated(operation, model_id=self.model_id):
                found = await future
        except SessionLostError as error:
            self._failure = self._failure or error
            raise
        return read(found)

    def _check(self) -> None:
        if self._failure is not None:
            raise copy.copy(self._failure)


class SdkSampling:
    """A `SamplingClient`."""

    def __init__(self, client: tinker.SamplingClient) -> None:
        self._client = client

    async def sample(
        self, prompt: Sequence[int], params: SamplingParams, **how: Unpack[SampleOptions]
    ) -> SampleResponse:
        given: dict[str, Any] = dict(how)
        with translated("asample"):
            found = await self._client.sample(
                tinker.ModelInput.from_ints(list(prompt)),
                given.pop("num_samples", 1),
                tinker.SamplingParams(**params.model_dump()),
                given.pop("prompt_logprobs", False),
                **given,
            )
        return _read(SampleResponse, found)

    async def compute_logprobs(self, tokens: Sequence[int]) -> list[float | None]:
        prompt = tinker.ModelInput.from_ints(list(tokens))
        with translated("asample"):
            return list(await self._client.compute_logprobs(prompt))


async def called(operation: str, function: Callable[[], Any]) -> Any:
    """The result of an SDK call that may block or give a future, depending on its version."""
    with translated(operation):
        made = await asyncio.to_thread(function)
        return await made if hasattr(made, "result_async") else made


# --- values: copies of ours for the SDK, and of its own for us -------------------------------


def _rows(data: Sequence[Datum]) -> list[tinker.Datum]:
    if not data:
        raise ConfigError("a batch needs at least one row")
    return [
        tinker.Datum(
            model_input=tinker.ModelInput.from_ints(datum.model_input.tokens()),
            loss_fn_inputs={
                name: tinker.TensorData(**tensor.model_dump(exclude_none=True))
                for name, tensor in datum.loss_fn_inputs.items()
            },
        )
        for datum in data
    ]


def _read(model: type[R], found: Any) -> R:
    """The SDK's values have the protocol's names, as attributes."""
    return model.model_validate(found, from_attributes=True)


def _path(found: Any) -> str:
    return str(found.path)


def surrogate(loss_fn: custom_loss.CustomLoss) -> Callable[[Any, list[Any]], tuple[Any, Any]]:
    """Our custom loss as the SDK wants it: a torch scalar with that value and that gradient."""

    def loss(data: Any, logprobs: list[Any]) -> tuple[Any, Any]:
        arrays = [tensor.detach().numpy() for tensor in logprobs]
        value, gradients, metrics = custom_loss.evaluate(loss_fn, arrays)
        linear = sum(
            (tensor * tensor.new_tensor(gradient)).sum()
            for tensor, gradient in zip(logprobs, gradients, strict=True)
        )
        return linear - linear.detach() + value, dict(metrics)

    return loss
