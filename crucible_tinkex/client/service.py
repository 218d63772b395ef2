"""The clients of one session on a Tinker-compatible service over HTTP.

The service session (`session.live_session`) is created at the first use that needs one. When the
service says that it is over, every client of it fails with `SessionLostError`: resume from a
checkpoint with a new `TinkexService`. Make one per training session; all of a process share
connections and back-off underneath.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from crucible_tinkex.client.checkpoints.rest import RestClient
from crucible_tinkex.client.http.address import Address
from crucible_tinkex.client.http.encoding import reads
from crucible_tinkex.client.http.exchange import Reply
from crucible_tinkex.client.http.key import ApiKey
from crucible_tinkex.client.http.settings import ClientSettings
from crucible_tinkex.client.http.transport import Call
from crucible_tinkex.client.http.watch import Observer, Watch
from crucible_tinkex.client.interface import EndReason
from crucible_tinkex.client.model.older import create_then_load
from crucible_tinkex.client.model.sampling_client import TinkexSampling
from crucible_tinkex.client.model.training_client import TinkexTraining
from crucible_tinkex.client.session.live_session import LiveSession
from crucible_tinkex.errors import ConfigError, RequestRejectedError
from crucible_tinkex.names import NOT_FOR_TRAINING, TinkerPath, model_id_of
from crucible_tinkex.protocol.capabilities import ServerCapabilities
from crucible_tinkex.protocol.wire import (
    CreateModelRequest,
    CreateModelResponse,
    CreateSamplingSessionRequest,
    CreateSamplingSessionResponse,
    FutureEnvelope,
    LoadWeightsRequest,
    LoadWeightsResponse,
    LoraConfig,
)


class TinkexService:
    """A `TrainingService` over HTTP. The constructor does no input or output but checks the URL.

    Absent `base_url`: TINKER_BASE_URL, else hosted Tinker. `observer` hears of every HTTP
    call and of what the session waits for.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key_file: str | Path | None = None,
        allow_http: bool | Collection[str] = False,
        observer: Observer | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        self.address = Address.parse(base_url, allow_http=allow_http)
        self._settings = settings or ClientSettings()
        self._watch = Watch(observer)
        self._live = LiveSession(
            self.address,
            ApiKey(None if api_key_file is None else str(api_key_file)),
            self._settings,
            self._watch,
        )
        self._model_seq = itertools.count()
        self._sampling_seq = itertools.count()

    def __repr__(self) -> str:
        return f"TinkexService({str(self.address)!r}, session_id={self.session_id!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a TinkexService holds a live session; make one in each process")

    async def __aenter__(self) -> TinkexService:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close(reason="success" if error is None else "errored")

    @property
    def session_id(self) -> str | None:
        """None until the first use that needs a session."""
        return self._live.session_id

    # --- the TrainingService interface --------------------------------------------------------

    async def capabilities(self) -> ServerCapabilities:
        call = Call("get_server_capabilities", method="GET", total_s=self._settings.contact_s)
        return await self._live.call(call, reads(ServerCapabilities))

    async def create_training(
        self,
        *,
        base_model: str,
        lora: LoraConfig,
        user_metadata: Mapping[str, Any] | None = None,
    ) -> TinkexTraining:
        session_id = await self._live.opened()

        async def create() -> CreateModelResponse:
            request = CreateModelRequest(
                session_id=session_id,
                model_seq_id=next(self._model_seq),
                base_model=base_model,
                user_metadata=dict(user_metadata) if user_metadata is not None else None,
                lora_config=lora,
            )
            return await self._live.operate("create_model", request, CreateModelResponse)

        answer = await self._live.room.when_there_is(
            create, self._live.unload, self._settings, self._watch
        )
        return self._training(answer.model_id)

    async def create_training_from_state(
        self,
        path: str,
        *,
        optimizer: bool = True,
    ) -> TinkexTraining:
        if TinkerPath.read(path).kind in NOT_FOR_TRAINING:
            raise ConfigError(f"{path!r} is not a training checkpoint tinker://RUN/weights/NAME")
        session_id = await self._live.opened()
        number = next(self._model_seq)
        request = LoadWeightsRequest(
            path=path,
            optimizer=optimizer,
            session_id=session_id,
            model_seq_id=number,
        )
        try:
            call = Call("load_weights", body=request.body())
            envelope = await self._live.call(call, reads(FutureEnvelope))
        except RequestRejectedError as refusal:
            return await create_then_load(self, request, refusal)
        promises = self._live.promises()
        answer = await promises.result(envelope, LoadWeightsResponse, "load_weights")
        # The official SDK never reads the id either: the protocol fixes it.
        return self._training(answer.model_id or model_id_of(session_id, number))

    async def sampler(
        self, *, base_model: str | None = None, model_path: str | None = None
    ) -> TinkexSampling:
        if (base_model is None) == (model_path is None):
            raise ConfigError("sampler() takes either base_model or model_path")
        session_id = await self._live.opened()
        request = CreateSamplingSessionRequest(
            session_id=session_id,
            sampling_session_seq_id=next(self._sampling_seq),
            base_model=base_model,
            model_path=model_path,
        )
        operation = "create_sampling_session"
        answer = await self._live.call(Call(operation, body=request.body()), _session_or_promise)
        if isinstance(answer, FutureEnvelope):
            promises = self._live.promises()
            answer = await promises.result(answer, CreateSamplingSessionResponse, operation)
        return self._sampling(answer.sampling_session_id)

    async def delete_checkpoint(self, path: str) -> None:
        await self.rest.delete(path)

    @property
    def rest(self) -> RestClient:
        """Checkpoints. Usable until `close`."""
        return RestClient(self._live)

    async def make_room(self) -> None:
        """Unload what ended sessions of this process left, now and from now on."""
        await self._live.room.make(self._live.unload)

    async def close(self, *, reason: EndReason = "success", detail: str | None = None) -> None:
        """May be called again; the second call does nothing."""
        await self._live.close(reason, detail)

    def _training(self, model_id: str) -> TinkexTraining:
        self._live.check()
        training = TinkexTraining(
            model_id,
            promises=self._live.promises(),
            snapshot=self._sampling,
            next_sampling_seq=self._sampling_seq.__next__,
        )
        self._live.attach(training)
        return training

    def _sampling(self, sampling_session_id: str) -> TinkexSampling:
        return TinkexSampling(sampling_session_id, self._live.promises())


def _session_or_promise(reply: Reply) -> CreateSamplingSessionResponse | FutureEnvelope:
    """The protocol has the session at once; some services promise it."""
    try:
        return CreateSamplingSessionResponse.model_validate_json(reply.body)
    except ValueError as problem:
        try:
            return FutureEnvelope.model_validate_json(reply.body)
        except ValueError:
            raise problem from None
