"""The seed's adapter: eight callbacks and the extended API, without Ray, on any training service.

Names are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crucible_tinkex.training.adapter.blocking import BlockingSession, LoopThread
    from crucible_tinkex.training.adapter.experiment import AdapterConfig, LoraExperiment
    from crucible_tinkex.training.adapter.protocol import LoraAdapter, load_adapter
    from crucible_tinkex.training.adapter.tinkex import AsyncTinkexAdapter, TinkexAdapter
    from crucible_tinkex.training.tinkex.options import RecoveryPolicy
    from crucible_tinkex.training.tinkex.results import Checkpoint, Completion, TrainResult
    from crucible_tinkex.training.tinkex.session import TinkexSession

__all__ = [
    "AdapterConfig",
    "AsyncTinkexAdapter",
    "BlockingSession",
    "Checkpoint",
    "Completion",
    "LoopThread",
    "LoraAdapter",
    "LoraExperiment",
    "RecoveryPolicy",
    "TinkexAdapter",
    "TinkexSession",
    "TrainResult",
    "load_adapter",
]

_HOMES = {
    "AdapterConfig": "adapter.experiment",
    "AsyncTinkexAdapter": "adapter.tinkex",
    "BlockingSession": "adapter.blocking",
    "Checkpoint": "tinkex.results",
    "Completion": "tinkex.results",
    "LoopThread": "adapter.blocking",
    "LoraAdapter": "adapter.protocol",
    "LoraExperiment": "adapter.experiment",
    "RecoveryPolicy": "tinkex.options",
    "TinkexAdapter": "adapter.tinkex",
    "TinkexSession": "tinkex.session",
    "TrainResult": "tinkex.results",
    "load_adapter": "adapter.protocol",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"crucible_tinkex.training.{_HOMES[name]}"), name)
