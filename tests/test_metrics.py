"""The catalogue of metrics: every name that is recorded, and help with one that is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import crucible_tinkex
from crucible_tinkex.errors import ConfigError
from crucible_tinkex.metrics import CATALOGUE, OBJECTIVES, metric, objective, told_first

PACKAGE = Path(crucible_tinkex.__file__).parent


def test_a_known_metric_has_unit_and_direction() -> None:
    assert metric("eval/accuracy").direction == "max"
    assert metric("eval/nll").direction == "min"
    assert metric("optim/lr").direction is None
    assert all(m.unit and m.about for m in CATALOGUE.values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eval/acc", "unknown metric 'eval/acc'; did you mean 'eval/accuracy'\\? known: eval/nll"),
        ("eval_nll", "did you mean 'eval/nll'"),
        ("", "unknown metric ''; known"),
        ("x" * 10_000, "unknown metric 'xx"),
    ],
)
def test_an_unknown_metric_is_refused_with_a_hint(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        metric(name)


def test_an_objective_is_part_of_every_result() -> None:
    assert {"eval/nll", "eval/accuracy", "train/nll", "eval/exact_match"} <= set(OBJECTIVES)
    assert objective("train/nll").direction == "min"
    with pytest.raises(ConfigError, match="'perf/eval_s' cannot rank trials; choose one of eval"):
        objective("perf/eval_s")


def test_a_table_shows_first_what_ranks() -> None:
    names = ["eval/bpb", "eval/accuracy", "mine", "eval/nll", "eval/score/mine"]
    assert told_first(names) == ["eval/nll", "eval/accuracy", "eval/bpb", "eval/score/mine", "mine"]
    assert told_first(names, first="mine")[:2] == ["mine", "eval/nll"]


def test_every_objective_knows_its_direction() -> None:
    assert all(CATALOGUE[name].direction for name in OBJECTIVES)


def test_what_the_package_records_is_in_the_catalogue() -> None:
    written = re.compile(r"[\"']((?:eval|train|perf|optim)/[a-z0-9_]+)[\"']")
    found = {name for path in PACKAGE.rglob("*.py") for name in written.findall(path.read_text())}
    assert found >= set(OBJECTIVES)
    assert found <= set(CATALOGUE)
