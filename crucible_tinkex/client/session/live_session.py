"""The session that a service keeps for one `TinkexService`: opened, kept alive, lost, finished.

Guarantees: it is opened once, at the first use that needs it, and kept alive by a heartbeat from
then on; when the service says that it is over (410), or after `close`, its clients fail, and so
does every further use, with `SessionLostError`; `close` gives the shared transport back.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from collections.abc import Callable
from functools import partial
from secrets import token_hex
from typing import Protocol, TypeVar
from urllib.parse import quote

from crucible_tinkex.client.http.address import Address
from crucible_tinkex.client.http.encoding import nothing, reads
from crucible_tinkex.client.http.exchange import Reply
from crucible_tinkex.client.http.key import ApiKey
from crucible_tinkex.client.http.pace import Lane
from crucible_tinkex.client.http.settings import ClientSettings
from crucible_tinkex.client.http.transport import (
    IDEMPOTENCY_KEY,
    USER_AGENT,
    Call,
    Transport,
    give_back,
    shared_transport,
)
from crucible_tinkex.client.http.watch import Watch
from crucible_tinkex.client.interface import EndReason
from crucible_tinkex.client.session.futures import Promises
from crucible_tinkex.client.session.heartbeat import beat
from crucible_tinkex.client.session.room import Room, room_at
from crucible_tinkex.errors import (
    ProtocolError,
    RequestRejectedError,
    ServiceError,
    SessionLostError,
)
from crucible_tinkex.protocol.capabilities import ClientConfig, ClientConfigRequest
from crucible_tinkex.protocol.wire import (
    CreateSessionRequest,
    CreateSessionResponse,
    FinishReason,
    FinishSessionRequest,
    FutureEnvelope,
    ModelRequest,
    Wire,
)

R = TypeVar("R", bound=Wire)
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Client(Protocol):
    """What ends with the session."""

    def poison(self, error: ServiceError) -> None:
        """The session is lost: fail, now and from now on."""

    async def aclose(self) -> None:
        """The session is about to be finished."""

    @property
    def model_id(self) -> str: ...


class LiveSession:
    """The constructor does no input or output. `watch` hears of every call."""

    def __init__(
        self,
        address: Address,
        key: ApiKey,
        settings: ClientSettings,
        watch: Watch,
    ) -> None:
        self._address = address
        self._key = key
        self._settings = settings
        self._watch = watch
        self._transport: Transport | None = None
        self._session_id: str | None = None
        self._opening = asyncio.Lock()
        self._heartbeat: asyncio.Task[None] | None = None
        self._lost: SessionLostError | None = None
        self._clients: list[Client] = []

    @property
    def session_id(self) -> str | None:
        """None until it is opened."""
        return self._session_id

    async def opened(self) -> str:
        """The session's id; the first call opens it."""
        self.check()
        async with self._opening:
            if self._session_id is None:
                await self._open()
        assert self._session_id is not None
        return self._session_id

    def check(self) -> None:
        """Raises if the session is lost or closed."""
        if self._lost is not None:
            raise copy.copy(self._lost)

    def attach(self, client: Client) -> None:
        """`client` hears of the loss of the session, and is closed before its end."""
        self._clients.append(client)

    async def close(self, reason: EndReason, detail: str | None) -> None:
        """May be called again; the second call does nothing."""
        heartbeat, self._heartbeat = self._heartbeat, None
        if heartbeat is not None:
            heartbeat.cancel()
            await asyncio.gather(heartbeat, return_exceptions=True)
        for client in self._clients:
            await client.aclose()
        transport, self._transport = self._transport, None
        lost = self._lost
        self._lost = lost or SessionLostError("this service client is closed")
        if transport is None:
            return
        try:
            if self._session_id is not None and lost is None:
                await self._finish(transport, self._session_id, reason, detail)
        finally:
            await give_back(transport)

    @property
    def room(self) -> Room:
        """What is known of the places of its service."""
        return room_at(self._address, self._key)

    # --- calls --------------------------------------------------------------------------------

    def transport(self) -> Transport:
        """The shared transport, from the first call until `close`."""
        if self._transport is None:
            self.check()
            self._transport = shared_transport(self._address, self._key, self._settings)
        return self._transport

    def promises(self) -> Promises:
        return Promises(self.transport(), self._watch)

    async def call(self, call: Call, parse: Callable[[Reply], T]) -> T:
        """The calls of a session itself are few, and a refusal of one says nothing of the work of
        its clients: it does not slow that down."""
        call = call._replace(lane=Lane.ADMISSION, watch=self._watch)
        return await self.transport().call(call, parse)

    async def operate(self, operation: str, request: Wire, model: type[R]) -> R:
        """The result of an operation that the service promises."""
        envelope = await self.call(Call(operation, body=request.body()), reads(FutureEnvelope))
        return await self.promises().result(envelope, model, operation)

    # --- its life -----------------------------------------------------------------------------

    async def _open(self) -> None:
        # Sent even if empty: to some services the metadata is a required field.
        request = CreateSessionRequest(user_metadata={}, sdk_version=USER_AGENT)
        once = [(IDEMPOTENCY_KEY, token_hex(16).encode())]
        call = Call("create_session", body=request.body(), headers=once)
        answer = await self.call(call, reads(CreateSessionResponse))
        self._show(answer)
        await self._ask_config()
        self._session_id = answer.session_id
        self._heartbeat = asyncio.create_task(
            beat(answer.session_id, self.transport(), self._settings, on_lost=self._lose)
        )

    def _show(self, answer: CreateSessionResponse) -> None:
        notes = (answer.info_message, answer.warning_message, answer.error_message)
        for level, note in zip((logging.INFO, logging.WARNING, logging.ERROR), notes, strict=True):
            if note:
                _log.log(level, "the service says: %s", self.transport().scrub(note))

    async def _ask_config(self) -> None:
        """Once per address: what the service understands. A failure is asked about again later."""
        encoding = self.transport().encoding
        if encoding.is_asked:
            return
        body = ClientConfigRequest(sdk_version=USER_AGENT).body()
        call = Call("client_config", "client/config", body, total_s=self._settings.config_s)
        try:
            config = await self.call(call, reads(ClientConfig))
        except (RequestRejectedError, SessionLostError, ProtocolError):
            encoding.learn(None)
        except ServiceError as error:
            _log.info("the service's client/config is out of reach: %s", error)
        else:
            encoding.learn(config)

    def _lose(self, error: SessionLostError) -> None:
        self._lost = error
        for client in self._clients:
            client.poison(error)

    async def _finish(
        self, transport: Transport, session_id: str, reason: EndReason, detail: str | None
    ) -> None:
        """Where a session cannot be finished, its models keep their places; see `room`."""
        request = FinishSessionRequest(reason=FinishReason(type=reason), detail=detail)
        path = f"sessions/{session_id}/finish"
        try:
            await self._farewell(transport, "finish_session", path, request)
        except RequestRejectedError:
            left = self.room.interrupted if reason == "interrupted" else self.room.left
            left.extend(client.model_id for client in self._clients)
            if self.room.is_short:
                await self.room.make(partial(self._unload, transport))
        except ServiceError as error:
            _log.info("the session %s was not finished: %s", session_id, error)

    async def unload(self, model_id: str) -> None:
        """Have the service give the place of a model free. Whether it did shows later."""
        await self._unload(self.transport(), model_id)

    async def _unload(self, transport: Transport, model_id: str) -> None:
        # hatchery reads the id in the query, the others in the body
        path = f"unload_model?model_id={quote(model_id, safe=':')}"
        with contextlib.suppress(ServiceError):
            await self._farewell(transport, "unload_model", path, ModelRequest(model_id=model_id))

    async def _farewell(
        self, transport: Transport, operation: str, path: str, request: Wire
    ) -> None:
        total_s = self._settings.close_s
        call = Call(operation, path, request.body(), lane=Lane.VITAL, total_s=total_s)
        await transport.call(call._replace(watch=self._watch), nothing)
