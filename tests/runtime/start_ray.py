"""`python start_ray.py CASE [ADDRESS]`: starts a runtime in one of several ways."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from typing import Any

import psutil
import ray

from crucible_tinkex.errors import CrucibleError
from crucible_tinkex.runtime.cluster import Runtime


async def count_turns(turns: list[float]) -> None:
    """When the event loop came round, for ever."""
    while True:
        await asyncio.sleep(0.01)
        turns.append(time.monotonic())


async def start_and_close(address: str | None) -> None:
    turns: list[float] = []
    counting = asyncio.create_task(count_turns(turns))
    runtime = await Runtime.start(address)
    counting.cancel()
    print(json.dumps({"turns": len(turns)}), flush=True)
    pid = await runtime.registry.pid.remote()
    assert psutil.pid_exists(pid)
    runtime.close()
    assert not psutil.Process().children(recursive=True)


class Knot:
    """Only the garbage collector ends it, and with it a reference of Ray's."""

    def __init__(self) -> None:
        self.itself = self
        self.reference: Any = ray.put(None)


async def close_while_another_thread_makes_garbage(address: str | None) -> None:
    runtime = await Runtime.start(address)
    await runtime.registry.pid.remote()
    knots = [Knot() for _ in range(5000)]

    def litter() -> None:
        while knots:
            knots.pop()
            [[] for _ in range(2000)]
            time.sleep(0.0005)

    threading.Thread(target=litter, daemon=True).start()
    runtime.close()
    print(json.dumps({"left": len(knots)}), flush=True)


async def cancelled(address: str | None) -> None:
    starting = asyncio.create_task(Runtime.start(address))
    await asyncio.sleep(0.1)  # Ray holds the interpreter for seconds, once it is at it
    began = time.monotonic()
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    print(json.dumps({"cancel_s": time.monotonic() - began}), flush=True)
    while any(is_forked(child) for child in psutil.Process().children()):
        time.sleep(0.001)
    os._exit(0)


def is_forked(child: psutil.Process) -> bool:
    """And no more yet: Ray has its processes ask for the end with their parent just before they
    become what they are; one whose parent ends in between is left, whoever started it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return child.cmdline() == psutil.Process().cmdline()
    return False


async def too_late(address: str | None) -> None:
    await Runtime.start(address, deadline_s=2.0)


if __name__ == "__main__":
    case = {
        "start": start_and_close,
        "litter": close_while_another_thread_makes_garbage,
        "cancel": cancelled,
        "deadline": too_late,
    }[sys.argv[1]]
    try:
        asyncio.run(case(sys.argv[2] if len(sys.argv) > 2 else None))
    except CrucibleError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
        os._exit(e.exit_code)
