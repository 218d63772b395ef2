"""`analyze` on series as trainings make them, and on bad ones."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from crucible_tinkex import bench
from crucible_tinkex.errors import ConfigError

RNG = np.random.default_rng(5)
CURVE = 2 + 2 * np.exp(-np.arange(200) / 15) + RNG.normal(0, 0.02, size=200)


def test_a_training_curve() -> None:
    rows = [{"step": 10 * i, "train/nll": v, "note": "x"} for i, v in enumerate(CURVE)]
    rows[150]["train/nll"] = 4.0
    found = bench.analyze(rows, visualize=True)
    assert set(found.metrics) == {"train/nll"}
    tests = found.metrics["train/nll"]
    assert tests["normality"]["normal"] is False
    assert tests["trend"]["direction"] == "falling" and tests["trend"]["slope"] < 0
    assert 400 <= tests["convergence"]["step"] <= 900, "2 exp(-i / 15) is below .06 at 530"
    assert 1500.0 in tests["outliers"]["steps"]
    image = ET.fromstring(found.plots["train/nll"])
    assert image.tag.endswith("svg") and len(found.plots["train/nll"]) < 30_000


def test_what_still_falls_has_not_converged() -> None:
    found = bench.analyze(list(np.linspace(3, 1, 50)), tests=["convergence"])
    assert found.metrics["value"]["convergence"]["step"] is None
    assert "still falling" in found.metrics["value"]["convergence"]["about"]


def test_noise_has_no_trend() -> None:
    seen = [
        bench.analyze(list(RNG.normal(size=20)), tests=["trend"]).metrics["value"]["trend"]
        for _ in range(200)
    ]
    assert sum(f["direction"] != "flat" for f in seen) <= 20


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0], [3.0] * 20, [1.0, math.nan, math.inf]])
def test_few_or_constant_numbers_are_said_in_words(values: list[float]) -> None:
    found = bench.analyze(values, visualize=True)
    for finding in found.metrics["value"].values():
        assert finding["about"]
        assert math.isnan(finding.get("p", math.nan))
    assert None in (found.to_dict()["value"]["normality"]["p"],)


def test_one_test_may_be_named_alone() -> None:
    alone = bench.analyze([1.0, 2.0, 3.0], tests="trend")
    assert alone == bench.analyze([1.0, 2.0, 3.0], tests=["trend"])


def test_nothing_to_analyze() -> None:
    with pytest.raises(ConfigError, match="nothing to analyze"):
        bench.analyze([{"step": 1, "name": "a"}])
    with pytest.raises(ConfigError, match="no test 'normal'; use normality, trend"):
        bench.analyze([1.0, 2.0], tests=["normal"])


def test_single_values_are_no_series() -> None:
    with pytest.raises(ConfigError, match="'mean_loss' is one value"):
        bench.analyze({"mean_loss": 2.5, "total_steps": 23})  # type: ignore[dict-item]
