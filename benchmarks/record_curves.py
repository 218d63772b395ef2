"""Make `benchmarks/recorded/`: real learning curves of small tasks on `nano`, by our runner.

    nice -n 15 python -m benchmarks.record_curves     # about 20 minutes of one core
    nice -n 15 python -m benchmarks.record_curves --held-out     # about 10

A grid of learning rate x rank x batch size x schedule, from far too low a rate to one that
diverges, every configuration with three seeds, evaluated every few steps. Running it again goes on
where it stopped. `curves.parquet` has one row per evaluation, `rows.parquet` what every held-out
row got there; `held_out.parquet` is a `curves.parquet` of the held-out tasks.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import crucible_tinkex as ct
from benchmarks.recorded_tasks import HELD_OUT, TASKS, write
from crucible_tinkex.registry import SweepState

HERE = Path(__file__).parent / "recorded"
STEPS = 72
EVERY = 4
SPACE: Mapping[str, Sequence[Any]] = {
    "optimizer.learning_rate": (3e-4, 1e-3, 3e-3, 1e-2, 1e-1),
    "lora.rank": (2, 8, 32),
    "train.batch_size": (4, 16),
    "optimizer.schedule": ("constant", "cosine"),
}
SEEDS = (0, 1, 2)

CURVES = pa.schema(
    [
        ("task", pa.string()),
        ("trial", pa.int16()),
        ("learning_rate", pa.float64()),
        ("rank", pa.int16()),
        ("batch_size", pa.int16()),
        ("schedule", pa.string()),
        ("seed", pa.int8()),
        ("step", pa.int16()),
        ("tokens", pa.int32()),
        ("eval_nll", pa.float64()),
        ("train_nll", pa.float64()),
    ]
)
"""`tokens`: training tokens up to that step, an equal share for every step."""
ROWS = pa.schema(
    [
        ("task", pa.string()),
        ("trial", pa.int16()),
        ("step", pa.int16()),
        ("example", pa.int16()),
        ("nll", pa.float32()),
        ("tokens", pa.int8()),
    ]
)
"""`nll`: nats per completion token of that held-out row; `trial` is that of `curves.parquet`."""


def experiment(
    task: str, work: Path, space: Mapping[str, Any] = SPACE, seeds: Sequence[int] = SEEDS
) -> ct.Experiment:
    """The sweep over the whole grid of one task."""
    return ct.Experiment.build(
        {
            "name": task,
            "service": {"base_url": "embedded", "threads": 1},
            "model": {"base": "nano"},
            "data": {p: str(write(task, p, work / "data")) for p in ("train", "eval")},
            "evaluation": {"generate": False},
            "train": {
                "max_steps": STEPS,
                "eval_every": EVERY,
                "checkpoint_every": 0,
                "max_length": 64,
            },
            "search": {"space": dict(space), "seeds": list(seeds), "reference": False},
            "run": {"executor": "local", "max_concurrent": 8, "storage": str(work / "runs")},
        }
    )


def curves(task: str, state: SweepState) -> Iterator[dict[str, Any]]:
    for trial in state.trials.values():
        short = {key.rsplit(".", 1)[-1]: value for key, value in trial.values.items()}
        per_step = trial.spent.train_tokens / trial.total_steps
        for step, metrics in sorted(trial.results.items()):
            yield {
                "task": task,
                "trial": trial.index,
                **short,
                "seed": trial.seed,
                "step": step,
                "tokens": round(per_step * step),
                "eval_nll": metrics["eval/nll"],
                "train_nll": metrics["train/nll"],
            }


def rows(task: str, sweep: ct.Sweep, state: SweepState) -> pa.Table:
    """The held-out rows, narrow: the trial's number, the example's number."""
    found = sweep.evaluations()
    examples = {name: i for i, name in enumerate(sorted(set(found["example_id"].to_pylist())))}
    trials = {trial.trial_id: trial.index for trial in state.trials.values()}
    columns = [
        [task] * found.num_rows,
        [trials[t] for t in found["trial_id"].to_pylist()],
        found["step"].to_pylist(),
        [examples[e] for e in found["example_id"].to_pylist()],
        found["nll"].to_pylist(),
        found["tokens"].to_pylist(),
    ]
    arrays = [pa.array(c, type=f.type) for c, f in zip(columns, ROWS, strict=True)]
    order = [(name, "ascending") for name in ("trial", "step", "example")]
    return pa.table(arrays, schema=ROWS).sort_by(order)


def save(table: pa.Table, name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name, compression="zstd", compression_level=19)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/recorded"), help="sweeps and data")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the Parquet files")
    parser.add_argument("--held-out", action="store_true", help="the held-out tasks instead")
    options = parser.parse_args()
    tasks = HELD_OUT if options.held_out else [task for task in TASKS if task not in HELD_OUT]
    found: list[dict[str, Any]] = []
    examples = []
    began = time.monotonic()
    for task in tasks:
        sweep = ct.run(experiment(task, options.work.absolute()))
        if sweep.exit_code:
            sys.exit(f"{task} did not end in order ({sweep.exit_code}); run this again to go on")
        state = SweepState.read(sweep.paths)
        found += curves(task, state)
        examples.append(rows(task, sweep, state))
        print(f"{task}: {len(state.trials)} trials after {time.monotonic() - began:.0f} s")
    table = pa.Table.from_pylist(found, schema=CURVES)
    if options.held_out:
        save(table, "held_out.parquet", options.out)
    else:
        save(table, "curves.parquet", options.out)
        save(pa.concat_tables(examples), "rows.parquet", options.out)
    used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"CPU: {sum(u.ru_utime + u.ru_stime for u in used):.0f} s")


if __name__ == "__main__":
    main()
