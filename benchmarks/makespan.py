"""From a question to its answer: a live sweep of 60 configurations, beside peft and Optuna.

    python -m benchmarks makespan                                     # both sides whole
    python -m benchmarks.makespan --peft-trials 12 --rounds 2         # a part of theirs, in turns

Both train base `nano` on the same rows of a recorded task, over the same 60 points (learning rate x
rank x batch size x schedule), each side a process of its own from its start to its answer, imports,
server and checkpoints included, each with the threads that torch takes by itself. Ours is one sweep
in which few go on (`topk`), on the embedded server. Theirs is what a script does without a runner:
Optuna's TPE proposes, peft trains to the end, one after the other. "To our quality" is when theirs
first had a configuration within half a percent of ours. CPU seconds are of the process and its
children: on a busy machine they say more than the wall.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.record_curves import SPACE, STEPS, experiment
from benchmarks.recorded_grid import WITHIN

TASK = "classify"
TRIALS = 60
RUNGS, KEEP = (4, 12), (6, 3)
"""A twentieth of the way, where six pass, as `auto` does it; and a sixth."""
AT_ONCE = 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Side:
    """One run of one side. `seconds` and `losses`: after each finished trial, from the start."""

    wall_s: float
    cpu_s: float
    best: float
    trials: int
    seconds: Sequence[float] = ()
    losses: Sequence[float] = ()

    def reaches(self, loss: float) -> float | None:
        """Seconds until a trial ended within half a percent of `loss`; None: none did."""
        pairs = zip(self.seconds, self.losses, strict=True)
        return next((s for s, found in pairs if found <= loss * (1 + WITHIN)), None)


# --- the two sides, each in a process -------------------------------------------------------------


def ours(folder: Path, trials: int) -> dict[str, Any]:
    """One sweep; its best configuration's loss."""
    import crucible_tinkex as ct
    from crucible_tinkex.config import Experiment
    from crucible_tinkex.registry import SweepState
    from crucible_tinkex.sweep.results.leaderboard import best

    declared = experiment(TASK, folder, seeds=(0,)).model_dump(mode="json", exclude_unset=True)
    declared["train"] |= {"eval_every": 0}
    declared["search"] |= {"stopping": {"rule": "topk", "rungs": RUNGS, "keep": KEEP}}
    declared["search"] |= {"strategy": "random", "trials": trials} if trials < TRIALS else {}
    declared["run"] |= {"max_concurrent": AT_ONCE}
    del declared["service"]["threads"]
    sweep = ct.run(Experiment.build(declared))
    state = SweepState.read(sweep.paths)
    winner = best(state)
    assert sweep.exit_code == 0 and winner is not None and winner.mean is not None
    return {"best": winner.mean, "trials": len(state.trials)}


def theirs(folder: Path, trials: int) -> dict[str, Any]:
    """Optuna asks, peft trains; the loss of every trial and when it was known."""
    began = time.perf_counter()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    work = _Script(folder)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    seconds: list[float] = []
    losses: list[float] = []
    for _ in range(trials):
        trial = study.ask()
        values = {key: trial.suggest_categorical(key, axis) for key, axis in SPACE.items()}
        losses.append(work.train(values))
        study.tell(trial, losses[-1])
        seconds.append(time.perf_counter() - began)
    return {"best": min(losses), "trials": trials, "seconds": seconds, "losses": losses}


class _Script:
    """What somebody writes who has peft and no runner; the rows are tokenised as ours are."""

    def __init__(self, folder: Path) -> None:

        from crucible_tinkex.datasets import load_tokenizer
        from crucible_tinkex.server import bases
        from crucible_tinkex.sweep.preparing.preparation import prepare

        self._base = bases.ensure_base("nano")
        prepared = prepare(experiment(TASK, folder, seeds=(0,)))
        tokenizer = load_tokenizer(str(self._base.tokenizer_folder))
        data = prepared.tokenised(tokenizer, "peft")
        assert data.eval is not None
        self._train, self._eval = data.train, data.eval

    def train(self, values: Mapping[str, Any]) -> float:
        """A new adapter, trained to the end and saved; its held-out loss per learnt token."""
        import peft
        import torch

        from crucible_tinkex.datasets import batch_indices
        from crucible_tinkex.server import bases

        torch.manual_seed(0)  # as our trials of one seed begin alike
        rank, size = values["lora.rank"], values["train.batch_size"]
        config = peft.LoraConfig(r=rank, lora_alpha=32, target_modules=TARGETS, lora_dropout=0.0)
        model: Any = peft.get_peft_model(bases.load_model(self._base, torch.float32), config)
        weights = [p for p in model.parameters() if p.requires_grad]
        rate = values["optimizer.learning_rate"]
        optimizer = torch.optim.AdamW(
            weights, lr=rate, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0
        )
        decays = values["optimizer.schedule"] == "cosine"
        for step in range(1, STEPS + 1):
            share = 0.5 * (1 + math.cos(math.pi * (step - 1) / STEPS)) if decays else 1.0
            optimizer.param_groups[0]["lr"] = rate * share
            rows = batch_indices(len(self._train), seed=0, step=step, batch_size=size)
            self._loss(model, self._train, rows)[0].backward()
            optimizer.step()
            optimizer.zero_grad()
        with tempfile.TemporaryDirectory() as adapter:
            model.save_pretrained(adapter)
        with torch.inference_mode():
            loss, learnt = self._loss(model, self._eval, range(len(self._eval)))
        return float(loss) / learnt if math.isfinite(float(loss)) else math.inf

    @staticmethod
    def _loss(model: Any, data: Any, rows: Sequence[int]) -> tuple[Any, float]:
        """The sum over the learnt tokens of a padded batch, and how many they are."""
        import torch

        found = [data.inputs(row) for row in rows]
        longest = max(len(row.targets) for row in found)

        def padded(values: Sequence[Any], dtype: Any) -> Any:
            full = np.zeros((len(values), longest), dtype)
            for line, value in zip(full, values, strict=True):
                line[: len(value)] = value
            return torch.from_numpy(full)

        tokens = padded([row.model_input for row in found], np.int64)
        targets = padded([row.targets for row in found], np.int64)
        learnt = padded([row.weights for row in found], np.float32)
        logp = model(input_ids=tokens).logits.log_softmax(-1)
        chosen = logp.gather(-1, targets[..., None])[..., 0]
        return -(chosen * learnt).sum(), float(learnt.sum())


# --- measuring ------------------------------------------------------------------------------------


def measured(side: str, trials: int) -> Side:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.makespan", "--side", side]
        command += ["--trials", str(trials), "--folder", folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Side(wall, cpu, **json.loads(done.stdout.splitlines()[-1]))


def run(trials: int = TRIALS, peft_trials: int = TRIALS, rounds: int = 1) -> str:
    """Both sides in turns, so that a busy machine is busy for both."""
    pairs = [(measured("ours", trials), measured("theirs", peft_trials)) for _ in range(rounds)]
    return table(pairs, trials)


def table(pairs: Sequence[tuple[Side, Side]], trials: int) -> str:
    """Medians over the rounds. Where theirs trained a part only, the rest is taken to be alike."""
    lines = [
        "| | trials | wall s | CPU s | best eval NLL | wall s to our quality |",
        "|---|---|---|---|---|---|",
        *_lines(pairs),
    ]
    scaled = [(o, t, trials / t.trials) for o, t in pairs]
    wall = median(t.wall_s * k / o.wall_s for o, t, k in scaled)
    cpu = median(t.cpu_s * k / o.cpu_s for o, t, k in scaled)
    lines += ["", f"all {trials} configurations: {wall:.1f} x faster by the wall, {cpu:.1f} by CPU"]
    reached = [s / o.wall_s for o, t in pairs if (s := t.reaches(o.best)) is not None]
    if len(reached) == len(pairs):
        lines.append(f"to the same quality: {median(reached):.1f} x faster")
    else:
        lines.append("to the same quality: theirs did not reach ours in the trials that were run")
    return "\n".join(lines)


def _lines(pairs: Sequence[tuple[Side, Side]]) -> Iterator[str]:
    """Ours is at its quality when it ends."""
    ours_, theirs_ = [o for o, _ in pairs], [t for _, t in pairs]
    ends = [o.wall_s for o in ours_]
    finds = [t.reaches(o.best) for o, t in pairs]
    for name, sides, reached in (("crucible", ours_, ends), ("peft + Optuna", theirs_, finds)):
        known = [r for r in reached if r is not None]
        cells = [
            name,
            str(sides[0].trials),
            f"{median(s.wall_s for s in sides):.0f}",
            f"{median(s.cpu_s for s in sides):.0f}",
            f"{median(s.best for s in sides):.4f}",
            f"{median(known):.0f}" if len(known) == len(sides) else "not reached",
        ]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=TRIALS, help="configurations of our sweep")
    parser.add_argument("--peft-trials", type=int, default=None, help="by default as many")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        work = {"ours": ours, "theirs": theirs}[options.side]
        print(json.dumps(work(options.folder, options.trials)))
    else:
        print(run(options.trials, options.peft_trials or options.trials, options.rounds))


if __name__ == "__main__":
    main()
