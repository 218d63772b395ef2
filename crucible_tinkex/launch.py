"""From a prepared experiment to a finished sweep in one blocking call: server, Ray, signals.

The first SIGINT or SIGTERM drains (running steps finish and are saved), the second ends the
process at once; both leave a sweep that running the same experiment continues.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack

from crucible_tinkex.manifest import write_manifest
from crucible_tinkex.preparation import PreparedSweep
from crucible_tinkex.registry import TERMINAL, SweepState
from crucible_tinkex.runtime.cluster import Runtime
from crucible_tinkex.storage import Lock
from crucible_tinkex.sweep import (
    Observer,
    SweepController,
    SweepResult,
    SweepView,
    connected,
    exit_code,
    ignore,
)

INTERRUPTED_CODE = 130


def launch(
    prepared: PreparedSweep,
    *,
    address: str | None = None,
    runtime: Runtime | None = None,
    observer: Observer = ignore,
) -> SweepResult:
    """Run or continue the sweep. Raises `CrucibleError`; see its `exit_code`."""
    lock = Lock(prepared.paths.lock)
    try:
        write_manifest(prepared)
        finished = _finished(prepared)
        if finished:
            return finished
        return asyncio.run(_launch(prepared, address, runtime, observer))
    finally:
        lock.close()


def _finished(prepared: PreparedSweep) -> SweepResult | None:
    """The result of a sweep in which nothing is left to do."""
    if not prepared.started:
        return None
    state = SweepState.read(prepared.paths)
    ended = state.trials and all(t.state in TERMINAL for t in state.trials.values())
    return SweepResult(state, exit_code(state)) if ended else None


async def _launch(
    prepared: PreparedSweep, address: str | None, runtime: Runtime | None, observer: Observer
) -> SweepResult:
    view = SweepView(prepared.name)
    main = asyncio.current_task()
    assert main is not None
    with _Signals(lambda: main.cancel()) as signals:
        async with AsyncExitStack() as stack:
            _show(observer, view, "starting Ray and the service")
            service = asyncio.create_task(stack.enter_async_context(connected(prepared)))
            if prepared.experiment.service.embedded:
                await asyncio.sleep(0)  # the server process starts loading while Ray starts
            else:
                await service  # starting Ray blocks this loop, and a request would time out
            if runtime is None:
                runtime = stack.enter_context(Runtime(address))
                signals.install()  # Ray has put its own handlers in place
            run = prepared.experiment.run
            runtime.warm(runtime.packing(run, len(prepared.trials)))
            connection = await service
            controller = SweepController(
                prepared, runtime, connection, observer=observer, view=view
            )
            signals.first = controller.request_drain
            return await controller.run()


def _show(observer: Observer, view: SweepView, phase: str) -> None:
    view.phase = phase
    observer(view)


class _Signals:
    """SIGINT and SIGTERM: the first calls `first`, the second ends the process."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, first: Callable[[], object]) -> None:
        self.first = first
        self._count = 0

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in self.NUMBERS:
            loop.add_signal_handler(number, self._received)

    def _received(self) -> None:
        self._count += 1
        if self._count > 1:
            print("stopped at once; run the same command to continue", file=sys.stderr)
            os._exit(INTERRUPTED_CODE)
        print("draining: saving the running trials (again to stop at once)", file=sys.stderr)
        self.first()

    def __enter__(self) -> _Signals:
        self.install()
        return self

    def __exit__(self, *exc: object) -> None:
        loop = asyncio.get_running_loop()
        for number in self.NUMBERS:
            loop.remove_signal_handler(number)
