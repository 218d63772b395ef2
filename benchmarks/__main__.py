"""`make bench`: all benchmarks but `sessions` (six minutes, 8 GB), `telemetry` (five minutes),
`replay` (half an hour) and `makespan` (ten minutes), or those named: `python -m benchmarks
engine sampling server sessions client data telemetry overhead throughput scale honesty selection
priors replay makespan`."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping

from benchmarks import (
    client_cost,
    data_memory,
    engine_speed,
    honesty,
    makespan,
    overhead,
    priors,
    recorded_grid,
    replay,
    sampling_speed,
    scale,
    selection,
    server_cost,
    sessions,
    telemetry,
    throughput,
)
from crucible_tinkex.server.bases import known_bases


def _engine() -> Iterator[str]:
    yield engine_speed.run("nano", "fp32")
    yield engine_speed.run("smollm2-135m-instruct")


def _sampling() -> Iterator[str]:
    yield sampling_speed.table([sampling_speed.run(base) for base in known_bases()])


def _scale() -> Iterator[str]:
    yield scale.journals()
    yield scale.growth()


def _replay() -> Iterator[str]:
    yield from replay.tables(1000)
    yield "On the tasks that were held out:"
    yield from replay.tables(1000, recorded_grid.HELD_OUT)


def _one(make: Callable[[], str]) -> Callable[[], Iterator[str]]:
    def tables() -> Iterator[str]:
        yield make()

    return tables


BENCHMARKS: Mapping[str, Callable[[], Iterator[str]]] = {
    "engine": _engine,
    "sampling": _sampling,
    "server": _one(server_cost.run),
    "sessions": _one(sessions.run),
    "client": _one(lambda: client_cost.table(client_cost.run())),
    "data": _one(data_memory.run),
    "telemetry": _one(telemetry.run),
    "overhead": _one(lambda: overhead.table(overhead.run())),
    "throughput": _one(lambda: throughput.table(throughput.run())),
    "scale": _scale,
    "honesty": _one(honesty.run),
    "selection": _one(selection.run),
    "priors": _one(priors.run),
    "replay": _replay,
    "makespan": _one(makespan.run),
}
ONLY_IF_NAMED = {"sessions", "telemetry", "replay", "makespan"}


def main(names: list[str]) -> None:
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        sys.exit(f"there is no benchmark {', '.join(sorted(unknown))}; use {', '.join(BENCHMARKS)}")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    for name in names or [n for n in BENCHMARKS if n not in ONLY_IF_NAMED]:
        for table in BENCHMARKS[name]():
            print(table, flush=True)
            print()


if __name__ == "__main__":
    main(sys.argv[1:])
