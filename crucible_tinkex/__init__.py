"""Parallel, crash-safe LoRA experiments over the Tinker API.

```python
import crucible_tinkex as ct
sweep = ct.run(ct.Experiment.from_toml("experiments/quickstart.toml"))
sweep.leaderboard()
```

Names are resolved on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from crucible_tinkex.version import VERSION

if TYPE_CHECKING:
    from crucible_tinkex.api import RunningSweep, Sweep, open_sweep, run, start, tune
    from crucible_tinkex.config import Experiment
    from crucible_tinkex.embedded import embedded_server
    from crucible_tinkex.registry.models import ModelRegistry
    from crucible_tinkex.runtime.cluster import Runtime
    from crucible_tinkex.telemetry.history import Telemetry
    from crucible_tinkex.training import harness as harness
    from crucible_tinkex.training.adapter import LoraAdapter, TinkexAdapter
    from crucible_tinkex.weights.checkpoints import CheckpointManager

__version__ = VERSION
__all__ = [
    "CheckpointManager",
    "Experiment",
    "LoraAdapter",
    "ModelRegistry",
    "RunningSweep",
    "Runtime",
    "Sweep",
    "Telemetry",
    "TinkexAdapter",
    "__version__",
    "embedded_server",
    "harness",
    "open_sweep",
    "query",
    "run",
    "start",
    "tune",
]

_HOMES = {
    "CheckpointManager": "crucible_tinkex.weights.checkpoints",
    "Experiment": "crucible_tinkex.config",
    "LoraAdapter": "crucible_tinkex.training.adapter",
    "ModelRegistry": "crucible_tinkex.registry.models",
    "RunningSweep": "crucible_tinkex.api",
    "Runtime": "crucible_tinkex.runtime.cluster",
    "Sweep": "crucible_tinkex.api",
    "Telemetry": "crucible_tinkex.telemetry.history",
    "TinkexAdapter": "crucible_tinkex.training.adapter",
    "embedded_server": "crucible_tinkex.embedded",
    "open_sweep": "crucible_tinkex.api",
    "query": "crucible_tinkex.api",
    "run": "crucible_tinkex.api",
    "start": "crucible_tinkex.api",
    "tune": "crucible_tinkex.api",
}


def __getattr__(name: str) -> Any:
    if name == "harness":
        return import_module("crucible_tinkex.training.harness")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
