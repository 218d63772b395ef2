"""`plan` of a search that learns: what is known beforehand, and how much is chosen later."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nano_experiment import make_experiment

from crucible_tinkex.cli.sweeps.planning import describe, plan_file, show
from crucible_tinkex.config import BudgetSection, ServiceSection
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.sweep.preparing.manifest import experiment_text
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep, prepare
from crucible_tinkex.training.data import SweepData

SPACE = {"optimizer.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}}


def prepared(folder: Path, **search: Any) -> PreparedSweep:
    experiment = make_experiment(folder)
    changed = {**experiment.search.model_dump(), "space": SPACE, **search}
    section = type(experiment.search).model_validate(changed)
    return prepare(experiment.model_copy(update={"search": section}))


def data(rows: int) -> SweepData:
    tokens = TokenisedDataset(
        tokens=np.ones(rows * 5, np.int32),
        mask=np.ones(rows * 5, np.uint8),
        offsets=np.arange(rows + 1, dtype=np.int64) * 5,
        prompt_lengths=np.full(rows, 2, np.int32),
        eos_id=0,
        truncated=0,
        has_prompts=True,
        fingerprint="x",
    )
    return SweepData(tokens, tokens, "f", None)


def test_the_first_ones_are_shown_and_the_rest_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = prepared(tmp_path, strategy="tpe", trials=40, seeds=[0, 1])
    found = describe(asked, data(24))
    assert len(found["configurations"]) == 10 and found["chosen_later"] == 30
    assert (found["trials"], found["steps"]) == (81, 40 * 2 * 4)
    assert found["train_tokens"] == 40 * 2 * 4 * 4 * data(24).train.positions / 24
    show(found)
    assert "and 30 more, chosen as results come in" in capsys.readouterr().out


@pytest.mark.parametrize("confirm", [0, 3, "auto"])
def test_nothing_is_chosen_later_where_all_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], confirm: int | str
) -> None:
    """Fresh seeds of the leaders are no further configurations."""
    found = describe(prepared(tmp_path, strategy="qmc", trials=12, confirm=confirm), data(24))
    assert len(found["configurations"]) == 12 and found["chosen_later"] == 0
    show(found)
    assert "more, chosen" not in capsys.readouterr().out


def test_a_large_grid_does_not_hide_what_comes_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"lora.rank": [1, 2, 4, 8, 16], "optimizer.learning_rate": [1e-5, 1e-4, 1e-3, 1e-2, 1]}
    found = describe(prepared(tmp_path, strategy="grid", space=space), data(24))
    assert len(found["configurations"]) == 25
    show(found)
    said = capsys.readouterr().out
    assert said.count("lora.rank = ") == 20 and "  and 5 more (--json has all)\n" in said


def test_fewer_configurations_than_asked_are_said(tmp_path: Path) -> None:
    asked = prepared(tmp_path, strategy="tpe", trials=40, space={"lora.rank": [1, 2, 4]})
    found = describe(asked, data(24))
    assert found["trials"] == 4
    assert any("the space has only 3 configurations: all run" in w for w in found["warnings"])


def test_the_proof_of_a_paid_service_is_planned_and_must_be_paid_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = prepared(tmp_path, strategy="tpe", trials=4)
    assert describe(local, data(24))["estimate"]["proof_tokens"] == 0

    def hosted(**budget: Any) -> PreparedSweep:
        sections = {
            "service": ServiceSection(base_url="https://example.org"),
            "budget": BudgetSection(**budget),
        }
        return replace(local, experiment=local.experiment.model_copy(update=sections))

    found = describe(hosted(), data(24))
    proof = found["estimate"]["proof_tokens"]
    assert proof > 0
    show(found)
    assert f"{proof} of them to prove what the service applies" in capsys.readouterr().out
    assert describe(hosted(tokens=proof), data(24))["estimate"]["tokens"] == [proof, proof]
    with pytest.raises(ConfigError, match=rf"budget.tokens = {proof - 1} does not pay"):
        describe(hosted(tokens=proof - 1), data(24))


def test_a_probe_shows_what_the_service_applies_and_what_it_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = make_experiment(tmp_path)
    (tmp_path / "small.toml").write_text(experiment_text(prepare(asked), asked.stored(tmp_path)))
    given = {"name": None, "storage": str(tmp_path / "runs"), "probe": True}
    plan_file(tmp_path / "small.toml", ["train.max_steps=2"], json=False, **given)
    shown = capsys.readouterr().out
    assert "optimizer.learning_rate  0.001, 0.003              applied" in shown
    assert "by 5 models of two steps:" in shown and "0 dollars" in shown
    assert "roughly, from the short models of the probe" in shown and "no budget counts" in shown
    plan_file(tmp_path / "small.toml", [], json=True, losses=["dro"], **given)
    found = json.loads(capsys.readouterr().out)["attested"]
    assert {f["key"]: f["verdict"] for f in found["findings"]} == {
        "optimizer.learning_rate": "applied",
        "lora.rank": "applied",
        "two steps": "applied",
        "loss dro": "applied",
        "loss dro: beta": "applied",
    }
    with pytest.raises(ConfigError, match="unknown loss 'grpo'"):
        plan_file(tmp_path / "small.toml", [], json=True, losses=["grpo"], **given)
    assert not (tmp_path / "runs").exists()
