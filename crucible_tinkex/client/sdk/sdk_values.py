"""Our wire models to the official SDK's values, and back. Copies throughout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tinker

from crucible_tinkex.client.model import custom_loss
from crucible_tinkex.protocol.wire import (
    Datum,
    ForwardBackwardOutput,
    SampledSequence,
    SampleResponse,
    TensorData,
)


def to_input(tokens: Sequence[int]) -> tinker.ModelInput:
    return tinker.ModelInput.from_ints(list(tokens))


def to_datum(datum: Datum) -> tinker.Datum:
    return tinker.Datum(
        model_input=to_input(datum.model_input.tokens()),
        loss_fn_inputs={n: _tensor(t) for n, t in datum.loss_fn_inputs.items()},
    )


def _tensor(tensor: TensorData) -> tinker.TensorData:
    sparse = {}
    if tensor.sparse_crow_indices is not None:
        sparse["sparse_crow_indices"] = list(tensor.sparse_crow_indices)
        sparse["sparse_col_indices"] = list(tensor.sparse_col_indices or [])
    shape = list(tensor.shape) if tensor.shape is not None else [len(tensor.data)]
    return tinker.TensorData(data=list(tensor.data), dtype=tensor.dtype, shape=shape, **sparse)


def from_output(output: Any) -> ForwardBackwardOutput:
    rows = [
        {
            name: TensorData.model_construct(
                data=tensor.data,
                dtype=tensor.dtype,
                shape=list(tensor.shape) if tensor.shape is not None else None,
            )
            for name, tensor in row.items()
        }
        for row in output.loss_fn_outputs
    ]
    return ForwardBackwardOutput.model_construct(
        loss_fn_output_type=output.loss_fn_output_type,
        loss_fn_outputs=rows,
        metrics=dict(output.metrics),
    )


def from_sample(response: Any) -> SampleResponse:
    return SampleResponse(
        sequences=[
            SampledSequence(
                stop_reason=s.stop_reason,
                tokens=list(s.tokens),
                logprobs=list(s.logprobs) if s.logprobs is not None else None,
                topk_logprobs=getattr(s, "topk_logprobs", None),
            )
            for s in response.sequences
        ],
        prompt_logprobs=response.prompt_logprobs,
        topk_prompt_logprobs=response.topk_prompt_logprobs,
        prompt_cache_hit_tokens=getattr(response, "prompt_cache_hit_tokens", None),
    )


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
