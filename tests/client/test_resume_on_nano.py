"""Resuming a trial on the real server: the same digits, also where checkpoints were destroyed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

from crucible_tinkex.client import Observer, TinkexService
from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import PromptCompletion, load_tokenizer, tokenise
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.registry import DONE, Decision, Registry
from crucible_tinkex.registry.records import declared
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.host import SessionHost
from crucible_tinkex.training.outcome import Verdict
from crucible_tinkex.training.plan import TrialPlan

STEPS = 12


class Sink:
    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def emit(self, kind: str, **fields: Any) -> None:
        if fields.get("name") == "train/nll":
            self.losses[fields["step"]] = fields["value"]

    async def flush(self) -> None:
        return None


class Trial:
    """One trial on the server, over as many hosts as a test wants."""

    def __init__(self, ready: dict[str, str], folder: Path, trial_id: str) -> None:
        self._ready = ready
        draw = random.Random(0)
        words = ["".join(draw.choices("abcd", k=4)) for _ in range(40)]
        rows = [PromptCompletion("x", i, f"{w}>", w[::-1]) for i, w in enumerate(words)]
        experiment = Experiment.build(
            {
                "name": "s",
                "model": {"base": "nano"},
                "data": {"train": "x", "eval": "y"},
                "optimizer": {"learning_rate": 5e-3},
                "train": {"batch_size": 4, "checkpoint_every": 2, "eval_every": 4},
            }
        )
        self._rows = rows
        self.plan = TrialPlan(trial_id, 0, "run", {}, 0, STEPS, experiment)
        self.registry = Registry(SweepPaths.of(folder, trial_id), "run-1")
        self.sink = Sink()

    async def begin(self) -> None:
        service = self._connect(Observer())
        tokenizer_id = (await service.capabilities()).supported_models[0].tokenizer_id
        await service.close()
        assert tokenizer_id is not None
        tokenizer = load_tokenizer(tokenizer_id)
        train, held_out = tokenise(self._rows[:30], tokenizer), tokenise(self._rows[30:], tokenizer)
        self.data = SweepData(train, held_out, "f", tokenizer_id)
        start = Decision("start", self.plan.trial_id, STEPS, STEPS, trial=declared(self.plan))
        await self.registry.create({"name": "s"})
        await self.registry.decide([start], "op")

    def _connect(self, observer: Observer) -> TinkexService:
        ready = self._ready
        return TinkexService(
            ready["base_url"], api_key_file=ready["api_key_file"], observer=observer
        )

    async def run(self, to_step: int) -> Verdict:
        host = SessionHost(
            connect=self._connect,
            registry=self.registry,
            sink=self.sink,
            data=self.data,
            sweep="s",
        )
        outcome = await host.advance(self.plan, to_step)
        await host.aclose()
        return outcome.verdict

    @property
    def record(self) -> Any:
        return self.registry.state.trial(self.plan.trial_id)


def cut(folder: Path) -> None:
    file = folder / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_optimizer(folder: Path) -> None:
    (folder / "optimizer.safetensors").unlink()


async def test_destroyed_checkpoints_cost_steps_and_no_digit(
    ready: dict[str, str], tmp_path: Path
) -> None:
    whole, broken = Trial(ready, tmp_path, "whole"), Trial(ready, tmp_path, "broken")
    await whole.begin()
    assert await whole.run(STEPS) is Verdict.ADVANCED
    await broken.begin()
    await broken.run(7)
    data = Path(ready["api_key_file"]).parent
    newest = [c.path for c in reversed(broken.record.checkpoints)]
    for path, destroy in zip(newest, (shutil.rmtree, cut, without_optimizer), strict=False):
        (folder,) = data.rglob(f"checkpoints/**/{path.rsplit('/', 1)[1]}")
        destroy(folder)
    assert await broken.run(STEPS) is Verdict.ADVANCED
    assert broken.record.state == DONE
    left = [c.step for c in broken.record.checkpoints if c.attempt == 1]
    assert (left, len(newest)) == ([2], 4)
    assert broken.sink.losses == whole.sink.losses
    assert broken.record.metrics == whole.record.metrics
    for trial in (whole, broken):
        await trial.registry.close()
