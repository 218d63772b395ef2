"""`crucible tb`: TensorBoard on one sweep, for as long as this command lives.

Guarantees: whatever ends this process, kill -9 too, ends TensorBoard: it watches a pipe that only
this process holds open. Loopback only.
"""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
import sys
import time
from importlib.util import find_spec

from crucible_tinkex.errors import ConfigError, SweepBusyError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.storage import is_locked, storage_errors
from crucible_tinkex.sweep.orders.hints import sweep_arguments
from crucible_tinkex.sweep.results.views.summary import existing_sweep, read_state

HOST = "127.0.0.1"
PORTS_TRIED = 100
STOP_S = 5.0
_CHILD = """
import os, sys, threading
def end_with_parent():
    sys.stdin.buffer.read()
    os._exit(0)
threading.Thread(target=end_with_parent, daemon=True).start()
from tensorboard.main import run_main
run_main()
"""


def show_tensorboard(sweep: str, *, storage: str, port: int, rebuild: bool = False) -> int:
    """Run TensorBoard until it is interrupted; returns its exit code. Raises `ConfigError` if it
    cannot start, `SweepBusyError` if it is to be rebuilt while the sweep runs."""
    paths = existing_sweep(storage, sweep)
    if find_spec("tensorboard") is None:
        raise ConfigError("TensorBoard is not installed; run: pip install tensorboard")
    _check_port(port, paths)
    if rebuild:
        _rebuild(paths)
    _aggregate(paths)
    command = [sys.executable, "-c", _CHILD, "--logdir", str(paths.tensorboard)]
    command += ["--host", HOST, "--port", str(port), "--reload_multifile", "true"]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            try:
                return process.wait()
            finally:
                _end(process)
    except KeyboardInterrupt:  # also while it starts: without us its input ends, and so does it
        return 0


def _aggregate(paths: SweepPaths) -> None:
    """The configurations' runs, as they are now."""
    from crucible_tinkex.sweep.results.views.aggregates import aggregates
    from crucible_tinkex.telemetry.tensorboard.configurations import write_configurations

    with storage_errors(paths.tensorboard):
        found = aggregates(read_state(paths))
        write_configurations(paths.tensorboard, found, time_s=time.time())


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    process.kill()


def _check_port(port: int, paths: SweepPaths) -> None:
    if port == 0 or _is_free(port):
        return
    free = next((p for p in range(port + 1, port + PORTS_TRIED) if _is_free(p)), 0)
    again = f"crucible tb {sweep_arguments(paths)} --port {free}"
    raise ConfigError(f"port {port} is in use; run: {again}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            return False
    return True


def _rebuild(paths: SweepPaths) -> None:
    from crucible_tinkex.telemetry.recorder import rebuild_tensorboard

    if is_locked(paths.lock):
        name = shlex.quote(paths.root.name)
        raise SweepBusyError(
            f"{name} is running: its TensorBoard files can be rebuilt when it ended"
        )
    for fault in rebuild_tensorboard(paths):
        print(f"warning: {fault}", file=sys.stderr)
