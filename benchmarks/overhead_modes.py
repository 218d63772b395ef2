"""One way to drive a workload against the stand-in, in a process of its own.

`python -m benchmarks.overhead_modes MODE READY_FILE FOLDER WORKLOAD` writes FOLDER/result.json.
Modes: `ours-1`, `ours-16` (sessions per actor), each followed by a second sweep on the warm actors;
`once-16` without the second one; `tune` (Ray Tune, function trainable, same client).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import psutil

from benchmarks.workload import Workload

ROWS = 8
TEXT = "the quick brown fox jumps over the lazy dog"
SETTLED = 200
"""Trials after which everything that is bounded has its size."""


def main(mode: str, ready_file: str, folder: str, workload: str) -> dict[str, float]:
    endpoint = json.loads(Path(ready_file).read_text())
    load = Workload.from_json(workload)
    if mode == "tune":
        return tune(endpoint, Path(folder), load)
    kind, per_actor = mode.split("-")
    names = ("bench", "again") if kind == "ours" else ("bench",)
    return ours(endpoint, Path(folder), load, int(per_actor), names)


class _Memory:
    """Watches the driver's resident memory as the sweep goes on."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.settled_mb = self.most_mb = 0.0

    def __call__(self, view: Any) -> None:
        now_mb = self._process.memory_info().rss / 2**20
        if not self.settled_mb and sum(t.ended for t in view.trials) >= SETTLED:
            self.settled_mb = now_mb
        self.most_mb = max(self.most_mb, now_mb)


def ours(
    endpoint: dict[str, str], folder: Path, load: Workload, per_actor: int, names: tuple[str, ...]
) -> dict[str, float]:
    """A cold sweep, then others on the warm actors."""
    import crucible_tinkex as ct

    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{TEXT} {i}"}) + "\n" for i in range(160)))
    settings = {"max_steps": load.steps, "epochs": 100, "batch_size": ROWS, "checkpoint_every": 0}
    experiment = ct.Experiment.build(
        {
            "name": "bench",
            "service": {k: endpoint[k] for k in ("base_url", "api_key_file")} | {"attest": False},
            "model": {"base": "nano"},
            "data": {"train": str(rows)},
            "train": settings,
            "search": {"metric": "train/nll", "space": {"optimizer.learning_rate": load.rates}},
            "run": {"max_concurrent": load.at_once, "sessions_per_actor": per_actor},
        }
    )
    started = time.perf_counter()
    seconds, memory = [], _Memory()
    with ct.Runtime() as runtime:
        ray_s = time.perf_counter() - started
        for name in names:
            started = time.perf_counter()
            sweep = ct.run(
                experiment, storage=str(folder), name=name, runtime=runtime, observer=memory
            )
            assert sweep.exit_code == 0
            seconds.append(time.perf_counter() - started)
    return {
        "ray_s": ray_s,
        "cold_s": seconds[0],
        "warm_s": seconds[-1] if len(seconds) > 1 else 0.0,
        "settled_mb": memory.settled_mb,
        "most_mb": memory.most_mb,
    }


def tune(endpoint: dict[str, str], folder: Path, load: Workload) -> dict[str, float]:
    """The same trials under Ray Tune with its defaults."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    import ray
    from ray import tune as ray_tune

    started = time.perf_counter()
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    connected = time.perf_counter()

    def trainable(config: dict[str, Any]) -> None:
        asyncio.run(_trial(config, endpoint, load.steps))

    tuner = ray_tune.Tuner(
        ray_tune.with_resources(trainable, {"cpu": 0.001}),
        param_space={"lr": ray_tune.grid_search(load.rates)},
        tune_config=ray_tune.TuneConfig(max_concurrent_trials=load.at_once),
        run_config=ray_tune.RunConfig(storage_path=str(folder), name="tune", verbose=0),
    )
    results = tuner.fit()
    ended = time.perf_counter()
    assert len(results) == load.trials
    assert not results.errors
    return {"ray_s": connected - started, "cold_s": ended - connected}


async def _trial(config: dict[str, Any], endpoint: dict[str, str], steps: int) -> None:
    """The loop of a session, with a report to Tune per step."""
    from ray import tune as ray_tune

    from crucible_tinkex.client.service import TinkexService
    from crucible_tinkex.protocol.wire import (
        AdamParams,
        Datum,
        LoraConfig,
        ModelInput,
        TensorData,
    )

    tokens = list(TEXT.encode())
    row = Datum(
        model_input=ModelInput.from_tokens(tokens),
        loss_fn_inputs={
            "target_tokens": TensorData(data=tokens, dtype="int64", shape=[len(tokens)]),
            "weights": TensorData(data=[1.0] * len(tokens), dtype="float32", shape=[len(tokens)]),
        },
    )
    service = TinkexService(endpoint["base_url"], api_key_file=endpoint["api_key_file"])
    training = await service.create_training(base_model="nano", lora=LoraConfig(rank=8))
    pending: deque[tuple[Any, Any]] = deque()
    for step in range(steps + 1):
        if step < steps:
            backward = training.forward_backward([row] * ROWS)
            pending.append((backward, training.optim_step(AdamParams(learning_rate=config["lr"]))))
        if len(pending) > 1 or step == steps:
            backward, optim = pending.popleft()
            loss = (await backward).metrics["loss:sum"]
            await optim
            ray_tune.report({"loss": loss})
    await training.save_state("final")
    await service.close()


if __name__ == "__main__":
    found = main(*sys.argv[1:])
    (Path(sys.argv[3]) / "result.json").write_text(json.dumps(found))
