"""What importing the client loads, and what it must not."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"numpy", "torch", "tinker", "httpx", "pyarrow", "ray"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("crucible_tinkex.protocol.wire", HEAVY | {"httpcore", "google", "ssl"}),
        ("crucible_tinkex.protocol.capabilities", HEAVY | {"httpcore", "google", "ssl"}),
        ("crucible_tinkex.protocol.proto", HEAVY | {"httpcore", "ssl"}),
        ("crucible_tinkex.client.service", HEAVY),
        ("crucible_tinkex.client.resolved", HEAVY),
    ],
)
def test_imports_stay_light(module: str, forbidden: set[str]) -> None:
    code = f"import sys, {module}; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not forbidden & set(done.stdout.split())
