"""The Tinkex client: `TinkexService` talks to any Tinker-compatible service over HTTP.

```
async with TinkexService("https://...", api_key_file="key") as service:
    model = await service.create_training(base_model="nano", lora=LoraConfig(rank=8))
    loss = model.forward_backward(batch)        # both are sent before either is awaited
    step = model.optim_step(AdamParams(learning_rate=1e-4))
    print((await loss).metrics, await step, await model.save_state("done"))
```

Names are resolved on first use, so that a part of it can be imported without an HTTP library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crucible_tinkex.client.http.exchange import Limits
    from crucible_tinkex.client.http.retry import Clock, RetryPolicy
    from crucible_tinkex.client.http.watch import Observer, QueueState, RequestRecord
    from crucible_tinkex.client.interface import (
        EndReason,
        SamplingClient,
        TrainingClient,
        TrainingService,
    )
    from crucible_tinkex.client.service import TinkexService
    from crucible_tinkex.client.session.settings import ClientSettings

__all__ = [
    "ClientSettings",
    "Clock",
    "EndReason",
    "Limits",
    "Observer",
    "QueueState",
    "RequestRecord",
    "RetryPolicy",
    "SamplingClient",
    "TinkexService",
    "TrainingClient",
    "TrainingService",
]

_HOMES = {
    "ClientSettings": "session.settings",
    "Clock": "http.retry",
    "EndReason": "interface",
    "Limits": "http.exchange",
    "Observer": "http.watch",
    "QueueState": "http.watch",
    "RequestRecord": "http.watch",
    "RetryPolicy": "http.retry",
    "SamplingClient": "interface",
    "TinkexService": "service",
    "TrainingClient": "interface",
    "TrainingService": "interface",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
