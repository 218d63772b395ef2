"""Sessions of the adapter on the fake service, with everything that their handlers hear."""

from __future__ import annotations

from typing import Any

from crucible_tinkex.client.http.watch import Observer
from crucible_tinkex.datasets import Tokenizer
from crucible_tinkex.telemetry.bridge import BridgeEvent
from crucible_tinkex.testing import FakeBackend, FakeService
from crucible_tinkex.training.adapter import AsyncTinkexAdapter, LoraExperiment, TinkexSession

ROWS = [{"prompt": f"say {i}", "completion": f" {i * i}"} for i in range(10)]
CONFIG = {"base_model": "nano", "lora_config": {"rank": 4}, "optimizer": {"learning_rate": 1e-3}}


class Desk:
    """An adapter on a fake service, and all events that its handlers were given."""

    def __init__(self, tokenizer: Tokenizer, **options: Any) -> None:
        self.backend = FakeBackend()
        self.events: list[BridgeEvent] = []
        self.adapter = AsyncTinkexAdapter(self.connect, tokenizer=tokenizer, **options)
        self.adapter.attach("test", self.events.append)

    def connect(self, observer: Observer) -> FakeService:
        return FakeService(self.backend, observer=observer)

    def experiment(self, **config: Any) -> LoraExperiment:
        return self.adapter.create_experiment(name="e", config={**CONFIG, **config})

    def session(self, **config: Any) -> TinkexSession:
        return self.adapter.session(self.experiment(**config))

    def names(self, *wanted: str) -> list[str]:
        return [e.name for e in self.events if not wanted or e.name in wanted]
