"""One way to drive 64 trials x 20 steps against the stand-in, in a process of its own.

`python -m benchmarks.overhead_modes MODE READY_FILE FOLDER` writes FOLDER/result.json. Modes:
`ours-1`, `ours-16` (sessions per actor), `tune` (Ray Tune, function trainable, same client).
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

TRIALS, STEPS, ROWS = 64, 20, 8
RATES = [1e-5 * 1.1**i for i in range(TRIALS)]
TEXT = "the quick brown fox jumps over the lazy dog"


def main(mode: str, ready_file: str, folder: str) -> dict[str, float]:
    endpoint = json.loads(Path(ready_file).read_text())
    if mode == "tune":
        return tune(endpoint, Path(folder))
    return ours(endpoint, Path(folder), per_actor=int(mode.removeprefix("ours-")))


def ours(endpoint: dict[str, str], folder: Path, *, per_actor: int) -> dict[str, float]:
    """A cold sweep, then a second one on the warm actors."""
    import crucible_tinkex as ct

    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{TEXT} {i}"}) + "\n" for i in range(160)))
    experiment = ct.Experiment.build(
        {
            "name": "bench",
            "service": {k: endpoint[k] for k in ("base_url", "api_key_file")},
            "model": {"base": "nano"},
            "data": {"train": str(rows)},
            "train": {"max_steps": STEPS, "epochs": 100, "batch_size": ROWS, "checkpoint_every": 0},
            "search": {"metric": "train/nll", "space": {"optimizer.learning_rate": RATES}},
            "run": {"max_concurrent": TRIALS, "sessions_per_actor": per_actor},
        }
    )
    started = time.perf_counter()
    with ct.Runtime() as runtime:
        connected = time.perf_counter()
        first = ct.run(experiment, storage=str(folder), runtime=runtime)
        between = time.perf_counter()
        second = ct.run(experiment, storage=str(folder), name="again", runtime=runtime)
        ended = time.perf_counter()
    assert first.exit_code == second.exit_code == 0
    return {
        "ray_s": connected - started,
        "cold_s": between - connected,
        "warm_s": ended - between,
    }


def tune(endpoint: dict[str, str], folder: Path) -> dict[str, float]:
    """The same trials under Ray Tune with its defaults."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    import ray
    from ray import tune as ray_tune

    started = time.perf_counter()
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    connected = time.perf_counter()

    def trainable(config: dict[str, Any]) -> None:
        asyncio.run(_trial(config, endpoint))

    tuner = ray_tune.Tuner(
        ray_tune.with_resources(trainable, {"cpu": 0.001}),
        param_space={"lr": ray_tune.grid_search(RATES)},
        tune_config=ray_tune.TuneConfig(max_concurrent_trials=TRIALS),
        run_config=ray_tune.RunConfig(storage_path=str(folder), name="tune", verbose=0),
    )
    results = tuner.fit()
    ended = time.perf_counter()
    assert len(results) == TRIALS
    assert not results.errors
    return {"ray_s": connected - started, "cold_s": ended - connected}


async def _trial(config: dict[str, Any], endpoint: dict[str, str]) -> None:
    """The loop of a session, with a report to Tune per step."""
    from ray import tune as ray_tune

    from crucible_tinkex.client.service import TinkexService
    from crucible_tinkex.client.wire import (
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
    for step in range(STEPS + 1):
        if step < STEPS:
            backward = training.forward_backward([row] * ROWS)
            pending.append((backward, training.optim_step(AdamParams(learning_rate=config["lr"]))))
        if len(pending) > 1 or step == STEPS:
            backward, optim = pending.popleft()
            loss = (await backward).metrics["loss:sum"]
            await optim
            ray_tune.report({"loss": loss})
    await training.save_state("final")
    await service.close()


if __name__ == "__main__":
    found = main(*sys.argv[1:])
    (Path(sys.argv[3]) / "result.json").write_text(json.dumps(found))
