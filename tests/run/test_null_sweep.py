"""A sweep that really trains settings that differ in nothing that matters names no winner."""

from __future__ import annotations

from pathlib import Path

import crucible_tinkex as ct

FILE = Path(__file__).parents[2] / "experiments" / "null_sweep.toml"
SMALLER = {
    "train.max_steps": 3,
    "train.batch_size": 4,
    "evaluation.max_rows": 8,
    "search.reference": False,
    "search.space": {"optimizer.eps": [1e-8, 1e-7, 1e-6]},
    "service.dtype": "fp32",
    "service.threads": 1,
}


def test_settings_that_do_not_matter_are_not_separable(tmp_path: Path) -> None:
    overrides = {**SMALLER, "run.storage": str(tmp_path)}
    sweep = ct.run(ct.Experiment.from_toml(FILE, overrides=overrides))
    assert sweep.leaderboard().num_rows == 9
    found = sweep.conclusion()
    assert "3 of 3 are not separable" in found.verdict and found.kind in ("open", "tie")
    assert len(found.not_separable) == 3 and not any(rival.separable for rival in found.rivals)
    assert all(rival.seeds == 3 and rival.behind_by != 0 for rival in found.rivals), "no evidence"
    by_seed = {row["seed"]: row["eval/nll"] for row in sweep.leaderboard().to_pylist()}
    assert max(by_seed.values()) - min(by_seed.values()) > 0.01, "what seeds do is seen"
