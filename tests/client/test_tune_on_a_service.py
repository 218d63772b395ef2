"""`tune` on a service in another process, reached by its address with a key, as a hosted one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import crucible_tinkex as ct
from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import AuthenticationError, ConfigError
from crucible_tinkex.registry import SweepState


def wished(ready: dict[str, str], folder: Path, **more: Any) -> dict[str, Any]:
    lines = [json.dumps({"prompt": f"{i:03}>", "completion": f"{i:03}"[::-1]}) for i in range(40)]
    (folder / "digits.jsonl").write_text("\n".join(lines))
    given = {"base": "nano", "service": ready["base_url"], "storage": folder / "runs"}
    return {"data": folder / "digits.jsonl", "executor": "local", **given, **more}


@pytest.mark.timeout(300)
def test_it_proves_trains_and_exports(
    ready: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRUCIBLE_API_KEY_FILE", ready["api_key_file"])
    told: list[str] = []
    wishes = wished(ready, tmp_path, budget="60steps")
    sweep = ct.tune(**wishes, explain=told.append)
    assert sweep.exit_code == 0
    assert any("no price is known" in line for line in told)
    state = SweepState.read(sweep.paths)
    findings = state.meta["attested"]["findings"]
    assert {f["verdict"] for f in findings.values()} == {"applied"} and "lora.rank" in findings
    assert state.proofs.tokens > 0 and state.spent.steps <= 60
    assert list((sweep.paths.root / "adapter").glob("*.safetensors"))
    # The key is nowhere in what was written.
    key = Path(ready["api_key_file"]).read_text().strip()
    written = [p for p in (tmp_path / "runs").rglob("*") if p.is_file()]
    assert not [p for p in written if key.encode() in p.read_bytes()]
    file = tmp_path / "runs" / "tune-digits.toml"
    assert Experiment.from_toml(file).service.base_url == ready["base_url"]
    # Again: nothing is proved or trained twice.
    assert ct.tune(**wishes).exit_code == 0
    assert SweepState.read(sweep.paths).spent == state.spent


def test_a_wrong_key_and_a_budget_in_dollars_without_a_price_are_refused(
    ready: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-wrong")
    with pytest.raises(AuthenticationError):
        ct.tune(**wished(ready, tmp_path))
    with pytest.raises(ConfigError, match="no price is known"):
        ct.tune(**wished(ready, tmp_path, budget="1usd"))
    assert not (tmp_path / "runs" / "tune-digits.toml").exists()
