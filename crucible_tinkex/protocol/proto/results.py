"""`ForwardBackwardOutput` and `SampleResponse`: results on their way back.

A result field of a dtype that we do not know is left out of the rows, and an unknown stop reason
reads as `stop`: a newer service may add either. Counts and offsets are checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, Literal

from crucible_tinkex.protocol.proto.malformed import MalformedError, parsed
from crucible_tinkex.protocol.proto.messages import ForwardBackwardOutput as OutputMessage
from crucible_tinkex.protocol.proto.messages import SampleResponse as SampleMessage
from crucible_tinkex.protocol.proto.tensors import (
    CODES,
    DTYPES,
    NAMES,
    get_topk,
    pack,
    put_topk,
    unpack,
)
from crucible_tinkex.protocol.wire import (
    ForwardBackwardOutput,
    SampledSequence,
    SampleResponse,
    TensorData,
)

Rows = Sequence[Mapping[str, TensorData]]
_LENGTH = 1


# --- forward and forward_backward -------------------------------------------------------------


def encode_forward_backward_output(
    rows: Rows, metrics: Mapping[str, float], *, loss_fn_output_type: str = "logprobs"
) -> bytes:
    """One row per datum; all have the same fields, and `data` may be a list or a numpy array."""
    message = OutputMessage(loss_fn_output_type=loss_fn_output_type)
    for name, value in metrics.items():
        message.metrics[name] = value
    for _, group in groupby(rows, _layout):
        _put_record(message.loss_fn_outputs.add(), list(group))
    encoded: bytes = message.SerializeToString()
    return encoded


def _layout(row: Mapping[str, TensorData]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(n, t.dtype, tuple((t.shape or [0])[1:])) for n, t in sorted(row.items())]


def _put_record(record: Any, rows: Rows) -> None:
    record.num_datums = len(rows)
    for name, first in rows[0].items():
        field = record.fields[name]
        field.dtype = DTYPES[first.dtype]
        field.trailing_shape.extend((first.shape or [0])[1:])
        parts = [pack(row[name].data, CODES[field.dtype]) for row in rows]
        offsets = [0]
        for part in parts:
            offsets.append(offsets[-1] + len(part))
        field.data, field.offsets = b"".join(parts), pack(offsets, "q")


def decode_forward_backward_output(data: bytes) -> ForwardBackwardOutput:
    """Raises `MalformedError`. Each row has its own lists."""
    message = parsed(OutputMessage, data)
    rows: list[dict[str, TensorData]] = []
    for record in message.loss_fn_outputs:
        rows += _rows(record)
    return ForwardBackwardOutput.model_construct(
        loss_fn_output_type=message.loss_fn_output_type.rpartition(":")[2] or "ArrayRecord",
        loss_fn_outputs=rows,
        metrics=dict(message.metrics),
    )


def _rows(record: Any) -> list[dict[str, TensorData]]:
    columns = {
        name: _column(field, f"the output {name!r}")
        for name, field in record.fields.items()
        if field.dtype in CODES
    }
    lengths = {len(column) for column in columns.values()}
    count = record.num_datums or max(lengths, default=0)
    if lengths - {count} or not 0 <= count <= _MAX_ROWS:
        raise MalformedError(f"a record of {count} rows has fields of {sorted(lengths)} rows")
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


_MAX_ROWS = 1 << 20
"""A record without fields may claim any number of rows."""


def _column(field: Any, what: str) -> list[TensorData]:
    code = CODES[field.dtype]
    values = unpack(field.data, code, what=what)
    offsets = unpack(field.offsets, "q", what=f"{what} (offsets)")
    trailing = list(field.trailing_shape)
    width = math.prod(trailing)
    size = len(field.data) // len(values) if values else 1
    is_whole = bool(offsets) and offsets[0] == 0 and offsets[-1] == len(field.data)
    if not is_whole or any(a > b or b % size for a, b in pairwise(offsets)):
        raise MalformedError(f"{what} has wrong offsets")
    column = []
    for start, end in pairwise(offsets):
        part = values[start // size : end // size]
        if min(trailing, default=0) < 0 or (part and (width == 0 or len(part) % width)):
            raise MalformedError(f"{what} has {len(part)} elements in rows of {trailing[:9]}")
        shape = [len(part) // width if width else 0, *trailing]
        column.append(TensorData.model_construct(data=part, dtype=NAMES[field.dtype], shape=shape))
    return column


# --- samples ----------------------------------------------------------------------------------


def encode_sample_response(response: SampleResponse) -> bytes:
    message = SampleMessage(prompt_cache_hit_tokens=response.prompt_cache_hit_tokens or 0)
    for sequence in response.sequences:
        added = message.sequences.add()
        added.stop_reason = _LENGTH if sequence.stop_reason == "length" else 0
        added.tokens = pack(sequence.tokens, "i")
        if sequence.logprobs is not None:
            added.logprobs = pack(sequence.logprobs, "f")
        if sequence.topk_logprobs is not None:
            put_topk(added.topk_sampled_logprobs, sequence.topk_logprobs)
    if response.prompt_logprobs is not None:
        given = [math.nan if p is None else p for p in response.prompt_logprobs]
        message.prompt_logprobs = pack(given, "f")
    if response.topk_prompt_logprobs is not None:
        put_topk(message.topk_prompt_logprobs, response.topk_prompt_logprobs)
    encoded: bytes = message.SerializeToString()
    return encoded


def decode_sample_response(data: bytes) -> SampleResponse:
    """Raises `MalformedError`."""
    message = parsed(SampleMessage, data)
    prompt: list[float | None] | None = None
    if message.HasField("prompt_logprobs"):
        found = unpack(message.prompt_logprobs, "f", what="prompt_logprobs")
        prompt = [None if math.isnan(p) else p for p in found]
    topk = None
    if message.HasField("topk_prompt_logprobs"):
        topk = get_topk(message.topk_prompt_logprobs, what="topk_prompt_logprobs")
    return SampleResponse.model_construct(
        sequences=[_sequence(s, f"sequences[{i}]") for i, s in enumerate(message.sequences)],
        prompt_logprobs=prompt,
        topk_prompt_logprobs=topk,
        prompt_cache_hit_tokens=message.prompt_cache_hit_tokens,
    )


def _sequence(message: Any, what: str) -> SampledSequence:
    tokens = unpack(message.tokens, "i", what=f"{what}.tokens")
    logprobs = topk = None
    if message.HasField("logprobs"):
        logprobs = unpack(message.logprobs, "f", what=f"{what}.logprobs")
        if len(logprobs) != len(tokens):
            raise MalformedError(f"{what} has {len(tokens)} tokens and {len(logprobs)} logprobs")
    if message.HasField("topk_sampled_logprobs"):
        topk = get_topk(message.topk_sampled_logprobs, what=f"{what}.topk")
    stop_reason: Literal["stop", "length"] = "length" if message.stop_reason == _LENGTH else "stop"
    return SampledSequence.model_construct(
        stop_reason=stop_reason, tokens=tokens, logprobs=logprobs, topk_logprobs=topk
    )
