"""One session on a Tinker-compatible service over HTTP: its clients, its heartbeat, its end.

The service session is created at the first use that needs one, and kept alive by a heartbeat
every 10 s. When the service says that the session is over (410), every client of it fails with
`SessionLostError`: resume from a checkpoint with a new `TinkexService`. Make one per training
session; all of a process share connections and back-off underneath.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from crucible_tinkex.client.address import Address
from crucible_tinkex.client.connections import Headers, Reply
from crucible_tinkex.client.futures import Promises
from crucible_tinkex.client.heartbeat import beat
from crucible_tinkex.client.interface import EndReason
from crucible_tinkex.client.key import ApiKey
from crucible_tinkex.client.older import create_then_load
from crucible_tinkex.client.pace import Lane
from crucible_tinkex.client.rest import PROJECT_VARIABLE, RestClient
from crucible_tinkex.client.sampling import TinkexSampling, joined
from crucible_tinkex.client.settings import ClientSettings
from crucible_tinkex.client.training import TinkexTraining
from crucible_tinkex.client.transport import (
    IDEMPOTENCY_KEY,
    LOST,
    USER_AGENT,
    Lease,
    Transport,
    shared_transport,
)
from crucible_tinkex.client.watch import Observer, Watch
from crucible_tinkex.client.wire import (
    ClientConfig,
    ClientConfigRequest,
    CreateModelRequest,
    CreateModelResponse,
    CreateSamplingSessionRequest,
    CreateSamplingSessionResponse,
    CreateSessionRequest,
    CreateSessionResponse,
    FinishReason,
    FinishSessionRequest,
    FutureEnvelope,
    LoadWeightsRequest,
    LoadWeightsResponse,
    LoraConfig,
    ServerCapabilities,
    Wire,
)
from crucible_tinkex.errors import (
    ConfigError,
    ProtocolError,
    RequestRejectedError,
    ServiceError,
    SessionLostError,
)
from crucible_tinkex.names import NOT_FOR_TRAINING, TinkerPath

R = TypeVar("R", bound=Wire)
_log = logging.getLogger(__name__)


class TinkexService:
    """A `TrainingService` over HTTP. The constructor does no input or output but checks the URL.

    Absent `base_url`: TINKER_BASE_URL, else hosted Tinker; absent `project_id`: TINKER_PROJECT_ID,
    else none. `observer` hears of every HTTP call and of what the session waits for.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key_file: str | Path | None = None,
        allow_plain_http: bool = False,
        tags: Sequence[str] = (),
        user_metadata: Mapping[str, Any] | None = None,
        project_id: str | None = None,
        observer: Observer | None = None,
        settings: ClientSettings | None = None,
    ) -> None:
        self.address = Address.parse(base_url, allow_plain_http=allow_plain_http)
        self._key = ApiKey(None if api_key_file is None else str(api_key_file))
        self._tags = list(tags)
        self._user_metadata = dict(user_metadata) if user_metadata is not None else None
        self._project_id = project_id or os.environ.get(PROJECT_VARIABLE) or None
        self._watch = Watch(observer)
        self._settings = settings or ClientSettings()
        self._lease: Lease | None = None
        self._session_id: str | None = None
        self._session_lock = asyncio.Lock()
        self._heartbeat: asyncio.Task[None] | None = None
        self._lost: SessionLostError | None = None
        self._trainings: list[TinkexTraining] = []
        self._model_seq = itertools.count()
        self._sampling_seq = itertools.count()

    def __repr__(self) -> str:
        return f"TinkexService({str(self.address)!r}, session_id={self._session_id!r})"

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
        return self._session_id

    # --- the TrainingService interface --------------------------------------------------------

    async def capabilities(self) -> ServerCapabilities:
        return await self._call(
            "get_server_capabilities",
            "get_server_capabilities",
            ServerCapabilities,
            method="GET",
            total_s=self._settings.contact_s,
        )

    async def create_training(
        self,
        *,
        base_model: str,
        lora: LoraConfig,
        user_metadata: Mapping[str, Any] | None = None,
    ) -> TinkexTraining:
        session_id = await self._session()
        number = next(self._model_seq)
        request = CreateModelRequest(
            session_id=session_id,
            model_seq_id=number,
            base_model=base_model,
            user_metadata=dict(user_metadata) if user_metadata is not None else None,
            lora_config=lora,
        )
        answer = await self._operate("create_model", request, CreateModelResponse)
        return self._training(answer.model_id)

    async def create_training_from_state(
        self,
        path: str,
        *,
        optimizer: bool = True,
        user_metadata: Mapping[str, Any] | None = None,
        access_token: str | None = None,
    ) -> TinkexTraining:
        """`access_token` lets another account's checkpoint be read."""
        if TinkerPath.read(path).kind in NOT_FOR_TRAINING:
            raise ConfigError(f"{path!r} is not a training checkpoint tinker://RUN/weights/NAME")
        session_id = await self._session()
        number = next(self._model_seq)
        request = LoadWeightsRequest(
            path=path,
            optimizer=optimizer,
            session_id=session_id,
            model_seq_id=number,
            user_metadata=dict(user_metadata) if user_metadata is not None else None,
            weights_access_token=access_token,
        )
        try:
            envelope = await self._call(
                "load_weights", "load_weights", FutureEnvelope, body=request.body()
            )
        except RequestRejectedError as refusal:
            return await create_then_load(self, request, refusal)
        promises = self._promises()
        answer = await promises.result(envelope, LoadWeightsResponse, "load_weights")
        # The official SDK never reads the id either: the protocol fixes it.
        return self._training(answer.model_id or f"{session_id}:train:{number}")

    async def sampler(
        self, *, base_model: str | None = None, model_path: str | None = None
    ) -> TinkexSampling:
        if (base_model is None) == (model_path is None):
            raise ConfigError("sampler() takes either base_model or model_path")
        session_id = await self._session()
        request = CreateSamplingSessionRequest(
            session_id=session_id,
            sampling_session_seq_id=next(self._sampling_seq),
            base_model=base_model,
            model_path=model_path,
        )
        operation = "create_sampling_session"
        answer = await self._transport().call(
            operation, operation, _session_or_promise, body=request.body(), watch=self._watch
        )
        if isinstance(answer, FutureEnvelope):
            promises = self._promises()
            answer = await promises.result(answer, CreateSamplingSessionResponse, operation)
        return self._sampling(answer.sampling_session_id)

    async def join_sampler(self, sampling_session_id: str) -> TinkexSampling:
        """A further client of a sampling session that another process made."""
        return await joined(sampling_session_id, self._promises())

    async def delete_checkpoint(self, path: str) -> None:
        await self.rest.delete(path)

    @property
    def rest(self) -> RestClient:
        """Sessions, runs and checkpoints of the account. Usable until `close`."""
        return RestClient(self._transport(), self._watch)

    async def close(self, *, reason: EndReason = "success", detail: str | None = None) -> None:
        """May be called again; the second call does nothing."""
        heartbeat, self._heartbeat = self._heartbeat, None
        if heartbeat is not None:
            heartbeat.cancel()
            await asyncio.gather(heartbeat, return_exceptions=True)
        for training in self._trainings:
            await training.aclose()
        lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            if self._session_id is not None and self._lost is None:
                await self._finish(lease.transport, self._session_id, reason, detail)
        finally:
            self._lost = self._lost or SessionLostError("this service client is closed")
            await lease.release()

    # --- the session --------------------------------------------------------------------------

    async def _session(self) -> str:
        self._check()
        async with self._session_lock:
            if self._session_id is None:
                await self._open()
        assert self._session_id is not None
        return self._session_id

    async def _open(self) -> None:
        request = CreateSessionRequest(
            tags=self._tags,
            # Sent even if empty: to some services it is a required field.
            user_metadata=self._user_metadata or {},
            sdk_version=USER_AGENT,
            project_id=self._project_id,
        )
        answer = await self._call(
            "create_session",
            "create_session",
            CreateSessionResponse,
            body=request.body(),
            headers=[(IDEMPOTENCY_KEY, token_hex(16).encode())],
        )
        notes = (answer.info_message, answer.warning_message, answer.error_message)
        for level, note in zip((logging.INFO, logging.WARNING, logging.ERROR), notes, strict=True):
            if note:
                _log.log(level, "the service says: %s", self._transport().scrub(note))
        await self._ask_config()
        self._session_id = answer.session_id
        self._heartbeat = asyncio.create_task(
            beat(answer.session_id, self._transport(), self._settings, on_lost=self._lose)
        )

    async def _ask_config(self) -> None:
        """Once per address: what the service understands. A failure is asked about again later."""
        encoding = self._transport().encoding
        if encoding.is_asked:
            return
        try:
            config = await self._call(
                "client_config",
                "client/config",
                ClientConfig,
                body=ClientConfigRequest(sdk_version=USER_AGENT).body(),
                total_s=self._settings.config_s,
            )
        except (RequestRejectedError, SessionLostError, ProtocolError):
            encoding.learn(None)
        except ServiceError as error:
            _log.info("the service's client/config is out of reach: %s", error)
        else:
            encoding.learn(config)

    def _lose(self, error: SessionLostError) -> None:
        self._lost = error
        for training in self._trainings:
            training.poison(error)

    def _check(self) -> None:
        if self._lost is not None:
            raise copy.copy(self._lost)

    async def _finish(
        self, transport: Transport, session_id: str, reason: EndReason, detail: str | None
    ) -> None:
        request = FinishSessionRequest(reason=FinishReason(type=reason), detail=detail)
        try:
            await transport.call(
                "finish_session",
                f"sessions/{session_id}/finish",
                lambda reply: None,
                body=request.body(),
                lane=Lane.VITAL,
                total_s=self._settings.close_s,
                watch=self._watch,
            )
        except ServiceError as error:
            _log.info("the session %s was not finished: %s", session_id, error)

    # --- calls --------------------------------------------------------------------------------

    def _transport(self) -> Transport:
        if self._lease is None:
            self._check()
            self._lease = shared_transport(
                self.address,
                key=self._key,
                policy=self._settings.policy,
                limits=self._settings.limits,
                clock=self._settings.clock,
                encoding=self._settings.encoding,
            )
        return self._lease.transport

    async def _call(
        self,
        operation: str,
        path: str,
        model: type[R],
        *,
        body: bytes | None = None,
        method: str = "POST",
        headers: Headers = (),
        total_s: float | None = None,
    ) -> R:
        return await self._transport().call(
            operation,
            path,
            lambda reply: model.model_validate_json(reply.body),
            body=body,
            method=method,
            headers=headers,
            lost_on=LOST,
            lane=Lane.ADMISSION,
            total_s=total_s,
            watch=self._watch,
        )

    async def _operate(self, operation: str, request: Wire, model: type[R]) -> R:
        envelope = await self._call(operation, operation, FutureEnvelope, body=request.body())
        return await self._promises().result(envelope, model, operation)

    def _promises(self) -> Promises:
        return Promises(self._transport(), self._watch)

    def _training(self, model_id: str) -> TinkexTraining:
        self._check()
        training = TinkexTraining(
            model_id,
            promises=self._promises(),
            snapshot=self._sampling,
            next_sampling_seq=self._sampling_seq.__next__,
        )
        self._trainings.append(training)
        return training

    def _sampling(self, sampling_session_id: str) -> TinkexSampling:
        return TinkexSampling(sampling_session_id, self._promises())


def _session_or_promise(reply: Reply) -> CreateSamplingSessionResponse | FutureEnvelope:
    """The protocol has the session at once; some services promise it."""
    try:
        return CreateSamplingSessionResponse.model_validate_json(reply.body)
    except ValueError as problem:
        try:
            return FutureEnvelope.model_validate_json(reply.body)
        except ValueError:
            raise problem from None
