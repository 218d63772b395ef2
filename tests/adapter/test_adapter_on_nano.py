"""The adapter on the embedded server: real training, checkpoints, sampling and events."""

from __future__ import annotations

from pathlib import Path

import pytest

import crucible_tinkex as ct
from crucible_tinkex.errors import CrucibleError

ROWS = [{"prompt": f"say {c}", "completion": f" {c}{c}"} for c in "abcdefgh"]


def test_train_save_load_evaluate_infer_and_remember(tmp_path: Path) -> None:
    with (
        ct.embedded_server("nano", data_dir=tmp_path / "service") as server,
        ct.TinkexAdapter(server, storage=tmp_path / "runs") as adapter,
    ):
        config = {"base_model": "nano", "optimizer": {"learning_rate": 1e-2}}
        experiment = adapter.create_experiment(name="e", config=config)
        with adapter.start_session(experiment) as session:
            untrained = adapter.evaluate(session, ROWS).metrics["eval/nll"]
            trained = adapter.train(
                session, ROWS, epochs=6, batch_size=2, accumulate=2, checkpoint_every=6,
                eval_dataset=ROWS, gradient_hooks=["norm"],
            )  # fmt: skip
            assert trained.final_metrics["eval/nll"] < untrained / 2
            first = trained.results[0]
            assert first["grad_norm"] == first["gradients"]["norm"]["grad_norm"] > 0
            early = adapter.evaluate(session, ROWS, checkpoint=trained.checkpoints[0])
            adapter.load_checkpoint(session, trained.checkpoints[0])
            assert session.step == 6
            again = adapter.evaluate(session, ROWS)
            assert again.metrics["eval/nll"] == pytest.approx(early.metrics["eval/nll"], rel=1e-4)
            custom = adapter.train(session, ROWS, max_steps=2, loss_fn={"nll": 1.0, "focal": 0.5})
            assert custom.results[0]["metrics"]["train/loss/focal"] > 0
            texts = adapter.infer(session, "say a", checkpoint=trained.best_checkpoint, seed=1)
            assert texts[0].tokens
    steps = ct.Telemetry(tmp_path / "runs").query(
        experiment_id=experiment.id, event_type="training_step", name="train/nll"
    )
    # What was trained after step 6 is replaced by what was trained from its checkpoint.
    assert steps["step"].to_pylist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert session.status == "completed"


def test_a_base_that_there_is_not_starts_no_server(tmp_path: Path) -> None:
    with (
        pytest.raises(CrucibleError, match="could not start"),
        ct.embedded_server("nanoo", data_dir=tmp_path),
    ):
        pass
