"""A model from a checkpoint on a service that cannot make one in a single call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crucible_tinkex.errors import RequestRejectedError, ServiceError
from crucible_tinkex.protocol.wire import LoadWeightsRequest, LoraConfig

if TYPE_CHECKING:
    from crucible_tinkex.client.model.training_client import TinkexTraining
    from crucible_tinkex.client.service import TinkexService

_NOT_UNDERSTOOD = 422


async def create_then_load(
    service: TinkexService, request: LoadWeightsRequest, refusal: RequestRejectedError
) -> TinkexTraining:
    """A new model like the checkpoint's, and its weights into it.

    `refusal` is what the single call was answered with. Raises it, unless it is about the call
    and not about the checkpoint.
    """
    try:
        info = await service.rest.weights_info(request.path)
    except ServiceError as problem:
        raise (problem if refusal.status == _NOT_UNDERSTOOD else refusal) from None
    if info.lora_rank is None:
        raise refusal
    trained = {"train_unembed", "train_mlp", "train_attn"}
    lora = LoraConfig(rank=info.lora_rank, **info.model_dump(include=trained, exclude_none=True))
    training = await service.create_training(base_model=info.base_model, lora=lora)
    await training.load_state(request.path, optimizer=request.optimizer)
    return training
