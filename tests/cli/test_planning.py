"""`plan` of a search that learns: what is known beforehand, and how much is chosen later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nano_experiment import make_experiment

from crucible_tinkex.cli.planning import describe, show
from crucible_tinkex.datasets import TokenisedDataset
from crucible_tinkex.sweep.preparation import PreparedSweep, prepare
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


def test_nothing_is_chosen_later_where_all_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = describe(prepared(tmp_path, strategy="qmc", trials=12), data(24))
    assert len(found["configurations"]) == 12 and found["chosen_later"] == 0
    show(found)
    assert "more, chosen" not in capsys.readouterr().out


def test_fewer_configurations_than_asked_are_said(tmp_path: Path) -> None:
    asked = prepared(tmp_path, strategy="tpe", trials=40, space={"lora.rank": [1, 2, 4]})
    found = describe(asked, data(24))
    assert found["trials"] == 4
    assert any("the space has only 3 configurations: all run" in w for w in found["warnings"])
