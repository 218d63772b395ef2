"""The border of encodings: request bodies to wire models, results to bodies.

JSON only, today; the protocol's other encoding belongs here as well, chosen by `content_type` and
`accept`, and nothing behind this module would notice. NaN and infinity pass as such (JSON's usual
extension), because a diverged loss must be reported, not hidden.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import crucible_tinkex.client.wire as wire
from crucible_tinkex.errors import CrucibleError, ServiceError
from crucible_tinkex.server.checks import refused
from crucible_tinkex.server.operations import (
    Done,
    ForwardOutput,
    ModelReady,
    Outcome,
    SampleOutput,
    Saved,
    StepOutput,
)

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """A forward or forward_backward request, whichever way it was encoded."""

    model_id: str
    seq_id: int | None
    given: wire.ForwardInput
    backward: bool


def decode_forward(body: bytes, content_type: str, *, backward: bool) -> ForwardRequest:
    """Raises pydantic's ValidationError for bad bodies, `RequestRejectedError` for other types."""
    if not content_type.startswith(JSON):
        raise refused(f"content type {content_type!r} is not supported; send {JSON}", 415)
    if backward:
        request = wire.ForwardBackwardRequest.model_validate_json(body)
        return ForwardRequest(
            request.model_id, request.seq_id, request.forward_backward_input, backward
        )
    asked = wire.ForwardRequest.model_validate_json(body)
    return ForwardRequest(asked.model_id, asked.seq_id, asked.forward_input, backward)


def encode(outcome: Outcome, accept: str) -> tuple[bytes, str]:
    """The body of a finished promise, and its content type."""
    return json.dumps(_plain(outcome), separators=(",", ":")).encode(), JSON


def _plain(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case ForwardOutput(logprobs, metrics):
            rows = [
                {"logprobs": {"data": p.tolist(), "dtype": "float32", "shape": [len(p)]}}
                for p in logprobs
            ]
            return {
                "loss_fn_output_type": "logprobs",
                "loss_fn_outputs": rows,
                "metrics": dict(metrics),
            }
        case StepOutput(metrics):
            return {"metrics": dict(metrics)}
        case SampleOutput():
            return _plain_sample(outcome)
        case Saved(path, snapshot_id):
            if path is None:
                return {"type": "save_weights_for_sampler", "sampling_session_id": snapshot_id}
            kind = "save_weights" if path.kind == "weights" else "save_weights_for_sampler"
            return {"type": kind, "path": str(path)}
        case ModelReady(model_id, None):
            return {"type": "create_model", "model_id": model_id}
        case ModelReady(model_id, path):
            return {"type": "load_weights", "model_id": model_id, "path": str(path)}
        case Done():
            return {}
        case CrucibleError():
            category = outcome.category if isinstance(outcome, ServiceError) else "server"
            return {"error": str(outcome), "category": category}
    raise AssertionError(outcome)


def _plain_sample(output: SampleOutput) -> dict[str, Any]:
    body: dict[str, Any] = {
        "type": "sample",
        "sequences": [
            {"stop_reason": s.stop_reason, "tokens": s.tokens, "logprobs": s.logprobs}
            for s in output.sequences
        ],
    }
    if output.prompt_logprobs is not None:
        body["prompt_logprobs"] = output.prompt_logprobs
    if output.topk_prompt_logprobs is not None:
        body["topk_prompt_logprobs"] = output.topk_prompt_logprobs
    return body
