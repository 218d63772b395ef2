"""`ForwardBackwardRequest`: a batch on its way to the service.

Decoding is tolerant of what is new (unknown fields; chunks that are not text become empty chunks
of their type, for the server to refuse by name) and strict about what would train wrongly: cut
or misshapen tensors, unknown dtypes, and configuration values that are not numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.protocol.proto.malformed import MalformedError, parsed
from crucible_tinkex.protocol.proto.messages import ForwardBackwardRequest as Message
from crucible_tinkex.protocol.proto.tensors import (
    Budget,
    get_tensor,
    pack,
    put_tensor,
    unpack_array,
)
from crucible_tinkex.protocol.wire import (
    Chunk,
    Datum,
    ForwardBackwardRequest,
    ForwardInput,
    ModelInput,
)

_TEXT = "encoded_text"
_MAX_SEQ_ID = 2**31 - 1


class ForwardBackwardCall(NamedTuple):
    """A decoded request. Its models are built without pydantic's checks; ours are stricter."""

    model_id: str
    seq_id: int
    forward_only: bool
    given: ForwardInput


def encode_forward_backward(request: ForwardBackwardRequest, *, forward_only: bool) -> bytes:
    """Raises `ConfigError` for a batch that the encoding cannot hold."""
    seq_id, given = request.seq_id or 0, request.forward_backward_input
    if not 0 <= seq_id <= _MAX_SEQ_ID:
        raise ConfigError(f"the sequence number {seq_id} does not fit the protocol")
    message = Message(
        model_id=request.model_id, seq_id=seq_id, loss_fn=given.loss_fn, forward_only=forward_only
    )
    for name, number in (given.loss_fn_config or {}).items():
        message.loss_fn_config[name] = number
        message.loss_fn_config_v2[name].number = number
    for datum in given.data:
        _put_datum(message.data.add(), datum)
    encoded: bytes = message.SerializeToString()
    return encoded


def _put_datum(row: Any, datum: Datum) -> None:
    for chunk in datum.model_input.chunks:
        if chunk.type != _TEXT:
            raise ConfigError(f"chunks of type {chunk.type!r} are not supported")
        row.model_input.add().encoded_text.tokens = pack(chunk.tokens, "i")
    for name, tensor in datum.loss_fn_inputs.items():
        put_tensor(row.loss_fn_inputs[name], tensor)


def decode_forward_backward(data: bytes) -> ForwardBackwardCall:
    """Raises `MalformedError`. Sparse tensors come out dense, numbers as arrays."""
    message = parsed(Message, data)
    budget = Budget()
    given = ForwardInput.model_construct(
        data=[_datum(row, f"data[{i}]", budget) for i, row in enumerate(message.data)],
        loss_fn=message.loss_fn or "cross_entropy",
        loss_fn_config=_config(message),
    )
    return ForwardBackwardCall(message.model_id, message.seq_id, message.forward_only, given)


def _config(message: Any) -> dict[str, float] | None:
    """The newer map wins, since senders fill both."""
    config: dict[str, float] = dict(message.loss_fn_config)
    for name, value in message.loss_fn_config_v2.items():
        if value.WhichOneof("value") == "text":
            raise MalformedError(f"loss_fn_config[{name!r}] is text; only numbers are supported")
        config[name] = value.number
    return config or None


def _datum(row: Any, where: str, budget: Budget) -> Datum:
    chunks = [_chunk(chunk, f"{where}.model_input[{i}]") for i, chunk in enumerate(row.model_input)]
    inputs = {
        name: get_tensor(tensor, what=f"{where}.{name}", budget=budget)
        for name, tensor in row.loss_fn_inputs.items()
    }
    return Datum.model_construct(
        model_input=ModelInput.model_construct(chunks=chunks), loss_fn_inputs=inputs
    )


def _chunk(chunk: Any, where: str) -> Chunk:
    kind = chunk.WhichOneof("chunk")
    if kind != _TEXT:
        return Chunk.model_construct(type=kind or "unknown", tokens=[])
    tokens: Any = unpack_array(chunk.encoded_text.tokens, "i", what=where)
    return Chunk.model_construct(type=_TEXT, tokens=tokens)
