"""The seed's usage example, step by step, on the embedded server.

    python experiments/seed_example.py

Creates an experiment, trains it by a harness, analyses the training, registers the best model, and
asks it something. Takes about a minute on two cores and needs no account. Everything that it leaves
is in `runs/seed-example`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import crucible_tinkex as ct
from crucible_tinkex.bench import analyze
from crucible_tinkex.training import harness

DATA = Path(__file__).parent / "data"
FOLDER = Path("runs/seed-example")


def load(split: str) -> list[dict[str, Any]]:
    """2. The sample in SciFact's shape."""
    lines = (DATA / f"scifact_sample_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    registry = ct.ModelRegistry.open(FOLDER)
    with (
        ct.embedded_server("nano", data_dir=FOLDER / ".service") as server,
        ct.TinkexAdapter(server, storage=FOLDER, model_registry=registry) as adapter,
    ):
        # 1. Create experiment
        experiment = adapter.create_experiment(
            name="SciFact Fine-tuning v2",
            config={
                "api_key": os.environ.get("TINKEX_API_KEY"),
                "base_model": "nano",
                "lora_config": {"rank": 16, "alpha": 32},
                "optimizer": {"learning_rate": 5e-3},
            },
        )
        print("not applied by Tinker:", ", ".join(experiment.not_applied))

        # 2. Load dataset
        dataset, held_out = load("train"), load("eval")

        # 3. Start training session
        session = adapter.start_session(experiment)

        # 4. Run training with harness orchestration
        results = harness.run(
            experiment,
            lambda plan: harness.register_training_step(
                plan,
                epochs=3,
                batch_size=8,
                checkpoint_every=10,
                eval_every=10,
                eval_dataset=held_out,
                loss_fn="cross_entropy",
            ),
            session=session,
            dataset=dataset,
            folder=FOLDER / "harness",
        )
        if results.failed:
            sys.exit(str(results.failed[0].error))
        losses = [{"step": row["step"], "loss": row["loss"]} for row in results.rows]
        print(f"loss {losses[0]['loss']:.3f} -> {losses[-1]['loss']:.3f} nats per token")

        # 5. Analyze results
        analysis = analyze(losses, tests=["normality", "trend"], visualize=True)
        for test, finding in analysis.metrics["loss"].items():
            print(f"{test}: {finding['about']}")
        (FOLDER / "loss.svg").write_text(analysis.plots["loss"], encoding="utf-8")

        # 6. Register best model
        best = results.best_checkpoint
        assert best is not None
        model = session.model_registry.register_model(
            "scifact-v2",
            {
                "experiment_id": experiment.id,
                "checkpoint_path": best.sampler_path,
                "base_model": experiment.config.base_model,
                # The seed gives the final metrics, which are the best checkpoint's only by chance.
                "metrics": dict(best.metrics),
                "step": best.step,
                "tags": ("scifact",),
            },
        )
        print("registered:", model.id, dict(model.entry.metrics))

        # What the seed only names: quality, sampling, and what telemetry remembers.
        found = adapter.evaluate(session, held_out, checkpoint=best)
        print(adapter.validate_quality(found.metrics, {"eval/nll": 2.0})["summary"])
        (written,) = adapter.infer(
            session, held_out[0]["prompt"], checkpoint=best, temperature=0.0, max_tokens=60
        )
        print("it writes:", repr(written.text))
        session.close()

    steps = ct.Telemetry(FOLDER).query(
        experiment_id=experiment.id, event_type="training_step", name="train/nll"
    )
    print(f"{steps.num_rows} training steps are in the event log")


if __name__ == "__main__":
    main()
