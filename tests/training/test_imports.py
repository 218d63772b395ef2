"""What a session's process loads, and what it must not."""

from __future__ import annotations

import subprocess
import sys

FORBIDDEN = {
    *("ray", "torch", "transformers", "pandas", "optuna", "duckdb", "pyarrow", "tokenizers"),
    *("tensorboardX", "typer", "rich", "httpx", "tinker", "scipy"),
}


def test_training_is_light() -> None:
    code = (
        "import sys, crucible_tinkex.training.host; print(*{m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "crucible_tinkex" in loaded
    assert not FORBIDDEN & loaded
