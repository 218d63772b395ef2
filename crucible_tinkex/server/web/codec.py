"""The border of encodings: request bodies to wire models, results to bodies.

Training requests come as JSON or as protobuf (maybe zstd-compressed), by their content type;
results of forward passes and samples go out as protobuf if the poll accepts it, because newer
clients accept nothing else. NaN and infinity pass as such (JSON's usual extension), because a
diverged loss must be reported, not hidden.
Guarantees: a compressed body never grows beyond the limit that it is given.
"""

from __future__ import annotations

import json
from typing import Any

import zstandard

import crucible_tinkex.protocol.proto as proto
import crucible_tinkex.protocol.wire as wire
from crucible_tinkex.errors import CrucibleError, ServiceError, StorageError
from crucible_tinkex.protocol.proto.malformed import parsed
from crucible_tinkex.protocol.proto.messages import ForwardBackwardRequest as Message
from crucible_tinkex.server.operations import (
    Done,
    ForwardOutput,
    ModelReady,
    Outcome,
    SampleOutput,
    Saved,
    StepOutput,
    refused,
)
from crucible_tinkex.server.sessions.models import ForwardRequest
from crucible_tinkex.server.sessions.promises import digest

JSON = "application/json"
_SAVED_TYPES = {
    "weights": "save_weights",
    "sampler_weights": "save_weights_for_sampler",
    "external_weights": "save_weights_external",
}


# --- requests --------------------------------------------------------------------------------


def decompress(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """Undo a Content-Encoding. Raises `RequestRejectedError`."""
    if encoding in ("", "identity"):
        return body
    if encoding != "zstd":
        raise refused(f"content encoding {encoding!r} is not supported; send zstd or none", 415)
    reader = zstandard.ZstdDecompressor(max_window_size=limit_bytes).stream_reader(
        body, read_across_frames=True
    )
    try:
        out = reader.read(limit_bytes + 1)
    except zstandard.ZstdError as e:
        raise refused(f"the body is not zstd: {e}") from None
    if len(out) > limit_bytes:
        raise refused(f"the body is larger than {limit_bytes} bytes", 413)
    return out


def decode_forward(body: bytes, content_type: str, *, backward: bool) -> ForwardRequest:
    """Raises pydantic's ValidationError or `MalformedError` for bad bodies,
    `RequestRejectedError` for other types. In protobuf the body says whether to go backward."""
    if content_type.startswith(proto.CONTENT_TYPE):
        call = proto.decode_forward_backward(body)
        canonical = parsed(Message, body).SerializeToString(deterministic=True)
        goes_back = backward and not call.forward_only
        return ForwardRequest(
            call.model_id, call.seq_id or None, call.given, goes_back, digest(canonical)
        )
    if not content_type.startswith(JSON):
        raise refused(f"content type {content_type!r} is not supported; send {JSON}", 415)
    if backward:
        whole = wire.ForwardBackwardRequest.model_validate_json(body)
        place, given = (whole.model_id, whole.seq_id), whole.forward_backward_input
    else:
        asked = wire.ForwardRequest.model_validate_json(body)
        place, given = (asked.model_id, asked.seq_id), asked.forward_input
    return ForwardRequest(*place, given, backward, digest(body))


def place_of(body: bytes, content_type: str) -> tuple[str, int] | None:
    """The model_id and seq_id of a body that could not be understood otherwise."""
    try:
        if content_type.startswith(proto.CONTENT_TYPE):
            message = parsed(Message, body)
            model_id, seq_id = message.model_id, message.seq_id
        else:
            fields = json.loads(body)
            model_id, seq_id = fields["model_id"], fields["seq_id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if isinstance(model_id, str) and type(seq_id) is int and seq_id > 0:
        return model_id, seq_id
    return None


# --- results ---------------------------------------------------------------------------------


def encode(outcome: Outcome, accept: str) -> tuple[bytes, str]:
    """The body of a finished promise, and its content type."""
    if proto.CONTENT_TYPE in accept:
        if isinstance(outcome, ForwardOutput):
            rows = [{"logprobs": _tensor(p)} for p in outcome.logprobs]
            metrics = outcome.metrics
            return proto.encode_forward_backward_output(rows, metrics), proto.CONTENT_TYPE
        if isinstance(outcome, SampleOutput):
            fields = _sample(outcome)  # Not validated: the engine made it.
            made = [wire.SampledSequence.model_construct(**s) for s in fields.pop("sequences")]
            response = wire.SampleResponse.model_construct(sequences=made, **fields)
            return proto.encode_sample_response(response), proto.CONTENT_TYPE
    return json.dumps(_plain(outcome), separators=(",", ":")).encode(), JSON


def _tensor(values: Any) -> wire.TensorData:
    return wire.TensorData.model_construct(data=values, dtype="float32", shape=list(values.shape))


def _sample(output: SampleOutput) -> dict[str, Any]:
    sequences = [
        {
            "stop_reason": s.stop_reason,
            "tokens": s.tokens,
            "logprobs": s.logprobs,
            "topk_logprobs": s.topk_logprobs,
        }
        for s in output.sequences
    ]
    scores = output.prompt
    return {
        "type": "sample",
        "sequences": sequences,
        "prompt_logprobs": scores.logprobs,
        "topk_prompt_logprobs": scores.topk,
    }


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _plain(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case ForwardOutput(logprobs, metrics):
            tensors = [
                {"data": p.ravel().tolist(), "dtype": "float32", "shape": list(p.shape)}
                for p in logprobs
            ]
            rows = [{"logprobs": tensor} for tensor in tensors]
            kind = {"loss_fn_output_type": "logprobs"}
            return {**kind, "loss_fn_outputs": rows, "metrics": dict(metrics)}
        case StepOutput(metrics):
            return {"metrics": dict(metrics)}
        case SampleOutput():
            fields = _sample(outcome)
            fields["sequences"] = [_present(s) for s in fields["sequences"]]
            return _present(fields)
        case Saved(path, sampler_id, size_bytes):
            if path is None:
                return {"type": "save_weights_for_sampler", "sampling_session_id": sampler_id}
            return {"type": _SAVED_TYPES[path.kind], "path": str(path), "size_bytes": size_bytes}
        case ModelReady(model_id, None):
            return {"type": "create_model", "model_id": model_id}
        case ModelReady(model_id, path):
            return {"type": "load_weights", "model_id": model_id, "path": str(path)}
        case Done():
            return {}
        case CrucibleError():
            category = outcome.category if isinstance(outcome, ServiceError) else "server"
            failed: dict[str, Any] = {"error": str(outcome), "category": category}
            # Ours, and passed over by others: whose fault it is, as a refusal's status says it.
            return failed | ({"status_code": 507} if isinstance(outcome, StorageError) else {})
    raise AssertionError(outcome)
