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
    from crucible_tinkex.client.http.exchange import Limits as Limits
    from crucible_tinkex.client.http.retry import Clock as Clock
    from crucible_tinkex.client.http.retry import RetryPolicy as RetryPolicy
    from crucible_tinkex.client.http.settings import ClientSettings as ClientSettings
    from crucible_tinkex.client.http.watch import Observer as Observer
    from crucible_tinkex.client.http.watch import QueueState as QueueState
    from crucible_tinkex.client.http.watch import RequestRecord as RequestRecord
    from crucible_tinkex.client.interface import EndReason as EndReason
    from crucible_tinkex.client.interface import SamplingClient as SamplingClient
    from crucible_tinkex.client.interface import TrainingClient as TrainingClient
    from crucible_tinkex.client.interface import TrainingService as TrainingService
    from crucible_tinkex.client.service import TinkexService as TinkexService

_HOMES = {
    "http.exchange": ("Limits",),
    "http.retry": ("Clock", "RetryPolicy"),
    "http.watch": ("Observer", "QueueState", "RequestRecord"),
    "interface": ("EndReason", "SamplingClient", "TrainingClient", "TrainingService"),
    "service": ("TinkexService",),
    "http.settings": ("ClientSettings",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
