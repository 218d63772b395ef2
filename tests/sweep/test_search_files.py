"""A search as TOML: read, kept in the sweep's folder, and read from there as the same."""

from __future__ import annotations

from pathlib import Path

from crucible_tinkex.config import Experiment
from crucible_tinkex.search.strategies import configurations
from crucible_tinkex.sweep.preparing.manifest import experiment_text
from crucible_tinkex.sweep.preparing.preparation import prepare

FILE = """
[model]
base = "nano"
[data]
train = "train.jsonl"
[search]
strategy = "tpe"
metric = "train/nll"
trials = 12
zip = [["lora.rank", "train.batch_size"]]
where = ["lora.rank * train.batch_size <= 512", "optimizer.schedule in ('linear', 'constant')"]
enqueue = [{ "lora.rank" = 8, lora.seed = 3 }]
[search.space]
"lora.rank" = [4, 8, 16]
train.batch_size = [64, 32, 16]
"optimizer.learning_rate" = { low = 1e-5, high = 1e-2, log = true }
optimizer.schedule = ["constant", "linear"]
"optimizer.warmup_steps" = { low = 1, high = 4 }
[search.when]
optimizer.warmup_steps = "optimizer.schedule != 'constant'"
"""


def test_what_the_folder_keeps_asks_for_the_same(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 9)
    file = tmp_path / "s.toml"
    file.write_text(FILE)
    experiment = Experiment.from_toml(file)
    first = configurations(experiment)
    assert first[0] == {"lora.rank": 8, "lora.seed": 3}
    assert {v["train.batch_size"] for v in first[1:] if v["lora.rank"] == 8} <= {32}
    for values in first[1:]:
        assert ("optimizer.warmup_steps" in values) == (values["optimizer.schedule"] == "linear")
    prepared = prepare(experiment, storage=str(tmp_path / "runs"))
    kept = prepared.paths.root / "experiment.toml"
    kept.parent.mkdir(parents=True)
    kept.write_text(experiment_text(prepared, experiment.stored(prepared.paths.root)))
    again = Experiment.from_toml(kept)
    assert again.search == experiment.search
    assert configurations(again) == first
    assert again.amendments(experiment) == []
