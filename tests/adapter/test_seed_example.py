"""The seed's usage example runs from top to bottom as it stands, on a quarter of its rows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "experiments" / "seed_example.py"
ROWS = {"train": 16, "eval": 4}
PRINTED = (
    r"not applied by Tinker: lora_config\.alpha",
    r"loss \d+\.\d{3} -> \d+\.\d{3} nats per token",
    r"normality: .+",
    r"trend: .+",
    r"registered: scifact-v2\S* \{.*'eval/nll': \d+\.\d+.*\}",
    r".*eval/nll.*",
    r"it writes: .+",
    r"6 training steps are in the event log",
)


def test_it_prints_what_it_promises(tmp_path: Path) -> None:
    script = tmp_path / "experiments" / EXAMPLE.name
    (script.parent / "data").mkdir(parents=True)
    shutil.copy(EXAMPLE, script)
    for split, count in ROWS.items():
        name = f"scifact_sample_{split}.jsonl"
        rows = (EXAMPLE.parent / "data" / name).read_text(encoding="utf-8").splitlines()
        (script.parent / "data" / name).write_text("\n".join(rows[:count]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(PRINTED), done.stdout
    for line, pattern in zip(lines, PRINTED, strict=True):
        assert re.fullmatch(pattern, line), line
    first, last = map(float, re.findall(r"\d+\.\d{3}", lines[1]))
    assert last < first
    folder = tmp_path / "runs" / "seed-example"
    assert "<svg" in (folder / "loss.svg").read_text(encoding="utf-8")
    assert list((folder / ".models").iterdir())
