"""The `TrainingService` interface over the official `tinker` SDK, for hosted Tinker.

The SDK tracks the hosted service's protocol best; it also costs more memory and time than our own
client (`benchmarks/client_cost.py`). Its errors become ours here, with the key removed. It keeps
its own retries, deadlines and heartbeat in a thread of its own.

What the SDK has marked for removal (listing the service's abilities, deleting a checkpoint) goes
through our own `RestClient`. The only module that imports `tinker`, and it does so at its top:
import it only when it is used (`client.resolved`).
"""

from __future__ import annotations

import asyncio
import copy
import logging
import warnings
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import tinker

from crucible_tinkex.client.checkpoints.rest import RestClient
from crucible_tinkex.client.http.address import Address
from crucible_tinkex.client.http.key import ApiKey
from crucible_tinkex.client.http.transport import Lease, shared_transport
from crucible_tinkex.client.interface import EndReason
from crucible_tinkex.client.sdk.sdk_errors import translated
from crucible_tinkex.client.sdk.sdk_values import (
    from_output,
    from_sample,
    surrogate,
    to_datum,
    to_input,
)
from crucible_tinkex.client.session.settings import ClientSettings
from crucible_tinkex.client.session.submission import Pending
from crucible_tinkex.errors import ConfigError, ServiceError, SessionLostError
from crucible_tinkex.names import TinkerPath
from crucible_tinkex.protocol.capabilities import ServerCapabilities
from crucible_tinkex.protocol.wire import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    LoraConfig,
    ModelData,
    ModelInfo,
    OptimStepResponse,
    SampleResponse,
    SamplingParams,
)

T = TypeVar("T")
_log = logging.getLogger(__name__)


class SdkService:
    """A `TrainingService`. No input or output before the first use. Whoever makes it closes it."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key_file: str | None = None,
        allow_http: bool | Collection[str] = False,
        settings: ClientSettings | None = None,
    ) -> None:
        self.address = Address.parse(base_url, allow_http=allow_http)
        self._key = ApiKey(api_key_file)
        self._settings = settings or ClientSettings()
        self._lease: Lease | None = None
        self._client: tinker.ServiceClient | None = None
        self._lock = asyncio.Lock()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"SdkService({str(self.address)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an SdkService holds a live session; make one in each process")

    async def capabilities(self) -> ServerCapabilities:
        return await self._rest().capabilities()

    async def create_training(
        self,
        *,
        base_model: str,
        lora: LoraConfig,
        user_metadata: Mapping[str, Any] | None = None,
    ) -> SdkTraining:
        service = await self._opened()
        made = await called(
            "create_model",
            lambda: service.create_lora_training_client(
                base_model,
                **lora.model_dump(),
                user_metadata={k: str(v) for k, v in (user_metadata or {}).items()} or None,
            ),
        )
        return SdkTraining(made)

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
        service = await self._opened()
        made = await called(
            "create_sampling_session",
            lambda: service.create_sampling_client(model_path=model_path, base_model=base_model),
        )
        return SdkSampling(made)

    async def delete_checkpoint(self, path: str) -> None:
        await self._rest().delete(path)

    async def close(self, *, reason: EndReason = "success", detail: str | None = None) -> None:
        """May be called again; the second call does nothing."""
        self._is_closed = True
        service, self._client = self._client, None
        lease, self._lease = self._lease, None
        try:
            if service is not None:
                async with asyncio.timeout(self._settings.close_s):
                    await called("finish_session", lambda: service.close(reason, detail))
        except (ServiceError, TimeoutError) as error:
            _log.info("the session was not finished: %s", error)
        finally:
            if lease is not None:
                await lease.release()

    async def _opened(self) -> tinker.ServiceClient:
        self._check()
        async with self._lock:
            if self._client is None:
                key = await asyncio.to_thread(self._key.read)
                self._client = await called(
                    "create_session",
                    lambda: tinker.ServiceClient(base_url=str(self.address), api_key=key),
                )
        return self._client

    def _rest(self) -> RestClient:
        self._check()
        if self._lease is None:
            settings = self._settings
            self._lease = shared_transport(
                self.address,
                key=self._key,
                policy=settings.policy,
                limits=settings.limits,
                clock=settings.clock,
            )
        return RestClient(self._lease.transport)

    def _check(self) -> None:
        if self._is_closed:
            raise SessionLostError("this service client is closed")


class SdkTraining:
    """A `TrainingClient`. The SDK draws the numbers, at the call."""

    def __init__(self, client: tinker.TrainingClient) -> None:
        self._client = client
        self._failure: ServiceError | None = None

    @property
    def model_id(self) -> str:
        return str(self._client.model_id)

    def forward_backward(
        self,
        data: Sequence[Datum],
        *,
        loss_fn: str = "cross_entropy",
        loss_fn_config: Mapping[str, float] | None = None,
    ) -> Awaitable[ForwardBackwardOutput]:
        start = self._client.forward_backward
        return self._batch("forward_backward", start, data, loss_fn, loss_fn_config)

    def forward(
        self,
        data: Sequence[Datum],
        *,
        loss_fn: str = "cross_entropy",
        loss_fn_config: Mapping[str, float] | None = None,
    ) -> Awaitable[ForwardBackwardOutput]:
        return self._batch("forward", self._client.forward, data, loss_fn, loss_fn_config)

    def forward_backward_custom(
        self, data: Sequence[Datum], loss_fn: Any
    ) -> Awaitable[ForwardBackwardOutput]:
        """Needs torch, because the SDK does."""
        rows = _rows(data)
        return self._submit(
            "forward_backward_custom",
            lambda: self._client.forward_backward_custom(rows, surrogate(loss_fn)),
            from_output,
        )

    def optim_step(self, params: AdamParams) -> Awaitable[OptimStepResponse]:
        given = tinker.AdamParams(**params.model_dump())
        return self._submit(
            "optim_step",
            lambda: self._client.optim_step(given),
            lambda found: OptimStepResponse(metrics=found.metrics),
        )

    def save_state(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._submit(
            "save_weights",
            lambda: self._client.save_state(name, ttl_seconds=ttl_s),
            lambda found: str(found.path),
        )

    def save_for_sampler(self, name: str, *, ttl_s: int | None = None) -> Awaitable[str]:
        return self._submit(
            "save_weights_for_sampler",
            lambda: self._client.save_weights_for_sampler(name, ttl_seconds=ttl_s),
            lambda found: str(found.path),
        )

    def load_state(self, path: str, *, optimizer: bool) -> Awaitable[None]:
        client = self._client

        def load() -> Any:
            with warnings.catch_warnings():
                # Deprecated in favour of a new client, which is not the same operation.
                warnings.simplefilter("ignore", FutureWarning)
                return (
                    client.load_state_with_optimizer(path) if optimizer else client.load_state(path)
                )

        return self._submit("load_weights", load, lambda found: None)

    async def sampler(self) -> SdkSampling:
        self._check()
        client = self._client
        made = await called(
            "save_weights_for_sampler", lambda: client.save_weights_and_get_sampling_client()
        )
        return SdkSampling(made)

    async def info(self) -> ModelInfo:
        found = await called("get_info", self._client.get_info)
        data = ModelData(
            arch=found.model_data.arch,
            model_name=found.model_data.model_name,
            tokenizer_id=found.model_data.tokenizer_id,
        )
        return ModelInfo(
            model_id=str(found.model_id),
            model_data=data,
            is_lora=found.is_lora,
            lora_rank=found.lora_rank,
            model_name=found.model_name,
        )

    def _batch(
        self,
        operation: str,
        start: Callable[..., Any],
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, float] | None,
    ) -> Pending[ForwardBackwardOutput]:
        rows, config = _rows(data), dict(loss_fn_config) if loss_fn_config else None
        return self._submit(operation, lambda: start(rows, loss_fn, config), from_output)

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
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        num_samples: int = 1,
        prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
    ) -> SampleResponse:
        more: dict[str, Any] = (
            {"topk_sample_logprobs": topk_sample_logprobs} if topk_sample_logprobs else {}
        )
        with translated("asample"):
            found = await self._client.sample(
                to_input(prompt),
                num_samples,
                tinker.SamplingParams(**params.model_dump()),
                include_prompt_logprobs=prompt_logprobs,
                topk_prompt_logprobs=topk_prompt_logprobs,
                **more,
            )
        return from_sample(found)

    async def compute_logprobs(self, tokens: Sequence[int]) -> list[float | None]:
        with translated("asample"):
            return list(await self._client.compute_logprobs(to_input(tokens)))


async def called(operation: str, function: Callable[[], Any]) -> Any:
    """The result of an SDK call that may block or give a future, depending on its version."""
    with translated(operation):
        made = await asyncio.to_thread(function)
        return await made if hasattr(made, "result_async") else made


def _rows(data: Sequence[Datum]) -> list[tinker.Datum]:
    if not data:
        raise ConfigError("a batch needs at least one row")
    return [to_datum(datum) for datum in data]
