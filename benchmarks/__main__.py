"""`make bench`: all benchmarks, or those named: `python -m benchmarks engine client overhead`."""

from __future__ import annotations

import os
import platform
import sys

from benchmarks import client_cost, engine_speed, overhead


def main(names: list[str]) -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    if not names or "engine" in names:
        print(engine_speed.table(engine_speed.run()), flush=True)
        print()
    if not names or "client" in names:
        print(client_cost.table(client_cost.run()), flush=True)
        print()
    if not names or "overhead" in names:
        print(overhead.table(overhead.run()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
