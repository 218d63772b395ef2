"""What the client costs, beside the official SDK: import, memory, and CPU per training step.

One step is a forward_backward of 8 x 64 tokens and an optim_step, sent back to back, then both
awaited; each session has a service client and a model of its own, and all sessions of a case share
one process. The service is the stand-in of `benchmarks.standin`, in its own process. Each case is
a fresh process; `sdk-no-torch` hides torch from the SDK, which imports it where it is installed.
Run: `python -m benchmarks.client_cost`.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.batch import ROWS, TOKENS, datums, tokens

MODES = ("ours", "ours-json", "sdk", "sdk-no-torch")
SESSIONS = (1, 8, 32)
STEPS = 20
IMPORTS = 5
_IMPORTED = {"ours": "crucible_tinkex.client.service", "sdk": "tinker"}

Step = Callable[[], Awaitable[None]]
Close = Callable[[], Awaitable[None]]


# --- one case, in its own process -------------------------------------------------------------


async def _ours(ready: dict[str, str], encoding: Any) -> tuple[Step, Close]:
    client = import_module("crucible_tinkex.client")
    wire = import_module("crucible_tinkex.protocol.wire")
    service = client.TinkexService(
        ready["base_url"],
        api_key_file=ready["api_key_file"],
        settings=client.ClientSettings(policy=client.RetryPolicy(total_s=20.0), encoding=encoding),
    )
    model = await service.create_training(base_model="nano", lora=wire.LoraConfig(rank=8))
    batch = datums()
    adam = wire.AdamParams(learning_rate=1e-4)

    async def step() -> None:
        backward, optim = model.forward_backward(batch), model.optim_step(adam)
        assert len((await backward).loss_fn_outputs[7]["logprobs"].data) == TOKENS
        await optim

    return step, service.close


async def _sdk(ready: dict[str, str]) -> tuple[Step, Close]:
    tinker = import_module("tinker")
    key = Path(ready["api_key_file"]).read_text()
    service = tinker.ServiceClient(base_url=ready["base_url"], api_key=key)
    model = await service.create_lora_training_client("nano", rank=8)
    batch = [
        tinker.Datum(
            model_input=tinker.ModelInput.from_ints(tokens(row)),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData(
                    data=tokens(row + 1), dtype="int64", shape=[TOKENS]
                ),
                "weights": tinker.TensorData(data=[1.0] * TOKENS, dtype="float32", shape=[TOKENS]),
            },
        )
        for row in range(ROWS)
    ]
    adam = tinker.AdamParams(learning_rate=1e-4)

    async def step() -> None:
        backward, optim = model.forward_backward(batch, "cross_entropy"), model.optim_step(adam)
        assert len((await backward).loss_fn_outputs[7]["logprobs"].data) == TOKENS
        await optim

    async def close() -> None:
        await service.close("success")

    return step, close


async def _case(mode: str, sessions: int, ready: dict[str, str]) -> dict[str, float]:
    encoding = "json" if mode == "ours-json" else "auto"
    made = [
        await (_ours(ready, encoding) if mode.startswith("ours") else _sdk(ready))
        for _ in range(sessions)
    ]
    await asyncio.gather(*(step() for step, _ in made))  # connections, first-use costs
    cpu_s, wall_s = time.process_time(), time.perf_counter()

    async def train(step: Step) -> None:
        for _ in range(STEPS):
            await step()

    await asyncio.gather(*(train(step) for step, _ in made))
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    memory_mb = _pss_mb()
    await asyncio.gather(*(close() for _, close in made))
    return {
        "cpu_ms": 1000 * cpu_s / sessions / STEPS,
        "memory_mb": memory_mb,
        "wall_s": wall_s,
    }


def _pss_mb() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith("Pss:"))


def _child(mode: str, sessions: int, ready_file: str) -> dict[str, float]:
    if mode == "sdk-no-torch":
        sys.modules["torch"] = None  # type: ignore[assignment]
    started = time.perf_counter()
    import_module(_IMPORTED[mode.split("-")[0]])
    found = {"import_ms": 1000 * (time.perf_counter() - started), "import_mb": _pss_mb()}
    if sessions:
        found |= asyncio.run(_case(mode, sessions, json.loads(Path(ready_file).read_text())))
    return found


# --- the whole --------------------------------------------------------------------------------


@contextmanager
def _standin() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.standin", folder]
        service = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        ready = Path(folder) / "ready.json"
        while not ready.exists():
            if service.poll() is not None:
                raise RuntimeError("the stand-in did not start")
            time.sleep(0.05)
        try:
            yield ready
        finally:
            assert service.stdin
            service.stdin.close()
            service.wait()


def measure(mode: str, sessions: int, ready: Path) -> dict[str, float]:
    """One case in a fresh process; `sessions` 0 is the import alone."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.client_cost", mode, str(sessions), str(ready)],
        env={**os.environ, "TINKER_TELEMETRY": "0"},
        capture_output=True,
        timeout=300,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{mode} x{sessions} failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run() -> dict[str, dict[str, float]]:
    """Keys are `MODE` for imports and `MODE xN` for N sessions."""
    results: dict[str, dict[str, float]] = {}
    with _standin() as ready:
        for mode in MODES:
            print(f"measuring {mode} ...", file=sys.stderr, flush=True)
            imports = [measure(mode, 0, ready) for _ in range(IMPORTS)]
            results[mode] = {
                name: statistics.median(r[name] for r in imports) for name in imports[0]
            }
            for sessions in SESSIONS:
                results[f"{mode} x{sessions}"] = measure(mode, sessions, ready)
    return results


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown; CPU is per step, memory is the process's proportional set size."""
    heads = [f"{what}, {n} sessions" for n in SESSIONS for what in ("CPU ms", "MB")]
    lines = [
        f"A step is forward_backward ({ROWS} x {TOKENS} tokens) + optim_step:",
        "",
        f"| | import ms | {' | '.join(heads)} |",
        f"|{'---|' * (len(heads) + 2)}",
    ]
    for mode in MODES:
        cells = [mode, f"{results[mode]['import_ms']:.0f}"]
        for sessions in SESSIONS:
            case = results[f"{mode} x{sessions}"]
            cells += [f"{case['cpu_ms']:.2f}", f"{case['memory_mb']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(_child(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
    else:
        print(table(run()))
