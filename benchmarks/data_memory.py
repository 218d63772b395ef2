"""What a training file costs before the first step: time and memory to read it and to tokenise it.

Each size is a fresh process; rows are 170 or 20 invented words, about 180 or 25 tokens under the
tokenizer of `smollm2-135m-instruct`. Columns over 64 MiB lie in a temporary file: their pages are
the kernel's to drop, and are not counted. Run: `python -m benchmarks.data_memory`; one size:
`python -m benchmarks.data_memory 1000000 20`.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from crucible_tinkex.datasets import load_tokenizer, open_rows, tokenise
from crucible_tinkex.server.bases import ensure_base

CASES = ((5_000, 170), (50_000, 170), (1_000_000, 20))
"""Rows, and words of each."""
_WORDS = (
    "protein",
    "cell",
    "growth",
    "of",
    "the",
    "in",
    "rate",
    "shows",
    "that",
    "patient",
    "dose",
)


def _write(path: Path, rows: int, length: int) -> None:
    rng = random.Random(0)
    asked = length * 12 // 17
    with path.open("w") as file:
        for i in range(rows):
            words = rng.choices(_WORDS, k=length)
            prompt, completion = " ".join(words[:asked]), " ".join(words[asked:])
            row = {"prompt": f"{i}: {prompt}", "completion": completion}
            file.write(json.dumps(row) + "\n")


def _anonymous_mb() -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def _case(rows: int, length: int) -> dict[str, float]:
    """In a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        _write(path, rows, length)
        tokenizer = load_tokenizer(ensure_base("smollm2-135m-instruct").tokenizer_folder)
        before, peak, done = _anonymous_mb(), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                peak[0] = max(peak[0], _anonymous_mb())

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        found = open_rows([path])
        read = time.perf_counter() - start
        data = tokenise(found, tokenizer)
        total = time.perf_counter() - start
        done.set()
        watcher.join()
        return {
            "rows": rows,
            "tokens": len(data.tokens),
            "read_s": read,
            "tokenise_s": total - read,
            "peak_mb": peak[0] - before,
        }


def run() -> str:
    """The table, in Markdown."""
    lines = ["| rows | tokens | read, s | tokenise, s | peak memory, MB |", "|---|---|---|---|---|"]
    for case_of in CASES:
        command = [sys.executable, "-m", "benchmarks.data_memory", *map(str, case_of)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        case = json.loads(out)
        lines.append(
            f"| {case['rows']:,} | {case['tokens']:,} | {case['read_s']:.1f} "
            f"| {case['tokenise_s']:.1f} | {case['peak_mb']:.0f} |"
        )
    return "\n".join(["Training data:", "", *lines])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(_case(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 170)))
    else:
        print(run())
