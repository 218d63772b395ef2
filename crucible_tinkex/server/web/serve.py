"""The server's process: socket, key, base model, engine, uvicorn, and a clean end.

Guarantees: it listens on loopback unless a key file is given; it is the only one on its port and
its data folder; the port answers only once the model is loaded, and then the ready file appears;
SIGTERM and SIGINT end it within seconds; with `exit_with_parent` it ends when its standard input
does, so that a killed driver leaves nothing behind. The key is never logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import json
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import uvicorn

from crucible_tinkex.errors import ConfigError, SweepBusyError
from crucible_tinkex.names import SERVER_LOCK
from crucible_tinkex.protocol.traceparent import Hear
from crucible_tinkex.server.operations import Engine
from crucible_tinkex.server.sessions.limits import Limits
from crucible_tinkex.server.store.store import Store
from crucible_tinkex.server.web.app import App
from crucible_tinkex.storage import Lock, storage_errors, write_atomic

Dtype = Literal["auto", "fp32", "bf16"]
Device = Literal["cpu", "cuda", "auto"]
DEFAULT_BASE = "smollm2-135m-instruct"
_FORCED_EXIT_S = 15.0
FOLDER_WAIT_S = _FORCED_EXIT_S + 5
"""How long a new server waits for one on the same folder that is about to end."""
SILENT_S = 1.0
"""The first part of it, of which nothing is said."""
_BACKLOG = 2048
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How to run the embedded server."""

    data_dir: Path
    """Where checkpoints and, unless `api_key_file` is given, the generated key lie."""
    model: str | None = None
    """A known base, the path of a Hugging Face model folder, or its id on the hub; None: that of
    the checkpoints in `data_dir`, and `DEFAULT_BASE` where there are none."""
    host: str = "127.0.0.1"
    """Any other than a loopback address needs `api_key_file`."""
    port: int = 0
    """0: any free port; `ready_file` says which."""
    api_key_file: Path | None = None
    ready_file: Path | None = None
    """Written when the server answers: {"base_url", "api_key_file", "pid"}."""
    dtype: Dtype = "auto"
    """auto: bf16 where this CPU multiplies it faster than fp32."""
    device: Device = "cpu"
    """auto: CUDA where there is one."""
    threads: int | None = None
    """Threads of torch; None: the number of cores."""
    exit_with_parent: bool = False
    """End when standard input ends."""
    limits: Limits = field(default_factory=Limits)
    """How many sessions, models and requests."""
    memory_bytes: int | None = None
    """Of models and snapshots, the rest of which lies in `data_dir`; None: a quarter of the RAM."""
    client_flags: Mapping[str, object] = field(default_factory=dict)
    """Added to what `client/config` tells clients."""


def serve(options: ServeOptions, *, hear: Hear | None = None) -> None:
    """Run until a signal; `hear` is the App's. Raises `ConfigError` or `StorageError` if it cannot
    start."""
    level = logging.WARNING if options.exit_with_parent else logging.INFO
    logging.basicConfig(
        stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s"
    )
    key_file = _key_file(options)
    key = _read_key(key_file)
    if options.exit_with_parent:
        threading.Thread(target=_exit_with_stdin, name="parent-watch", daemon=True).start()
    with (
        contextlib.closing(_own(options)),
        contextlib.closing(_bind(options.host, options.port)) as listener,
    ):
        store = Store(options.data_dir)
        engine = load_engine(options, store)
        try:
            serve_engine(
                engine,
                store,
                key,
                key_file,
                listener,
                options.ready_file,
                limits=options.limits,
                client_flags=options.client_flags,
                hear=hear,
            )
        finally:
            engine.close()


def load_engine(options: ServeOptions, store: Store) -> Engine:
    """The real engine. torch is imported here and not above, because its OpenMP reads these once:
    spinning threads cost a factor of ten when other processes want the cores.

    The garbage collector never looks at what is loaded here, a million objects that stay: it did
    so again and again while they were imported, in every full collection, and at the end, for a
    third of the CPU time of a server that lives shortly.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    with _uncollected():
        return _torch_engine(options, store)


def _torch_engine(options: ServeOptions, store: Store) -> Engine:
    from crucible_tinkex.server.engine.launch import torch_engine

    return torch_engine(
        options.model or base_of(store),
        store,
        dtype=options.dtype,
        device=options.device,
        threads=options.threads,
        memory_bytes=options.memory_bytes,
    )


def base_of(store: Store) -> str:
    """That on which the checkpoints were trained: on another, none of them could be used."""
    found = sorted({manifest.base_model for manifest in store.list()})
    if len(found) > 1:
        raise ConfigError(
            f"{store.data_dir} has checkpoints of {', '.join(found)}: choose one with --base"
        )
    return found[0] if found else DEFAULT_BASE


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """What is made in its context is left out of all garbage collections."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def serve_engine(
    engine: Engine,
    store: Store,
    key: str,
    key_file: Path,
    listener: socket.socket,
    ready_file: Path | None,
    *,
    limits: Limits | None = None,
    client_flags: Mapping[str, object] | None = None,
    hear: Hear | None = None,
) -> None:
    """Serve any engine on a bound socket until a signal comes."""
    app = App(engine, store, key, limits=limits, client_flags=client_flags, hear=hear)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        backlog=_BACKLOG,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=75,
    )
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    ready = {"base_url": url, "api_key_file": str(key_file), "pid": os.getpid()}
    server = _Server(config)
    config.load()
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_run(server, app, listener, ready, ready_file))


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are `_run`'s: uvicorn would raise them again after its shutdown."""
        yield


async def _run(
    server: uvicorn.Server,
    app: App,
    listener: socket.socket,
    ready: dict[str, object],
    ready_file: Path | None,
) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.should_exit = True
        app.service.promises.close()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not task.done():
        await asyncio.sleep(0.005)
    if not task.done():
        _log.info(
            "serving; for the official SDK, and for crucible:\n"
            'export TINKER_BASE_URL=%s\nexport TINKER_API_KEY="$(cat %s)"\n'
            "for the recipes of tinker-cookbook: model_name=%s",
            ready["base_url"],
            shlex.quote(str(ready["api_key_file"])),
            shlex.quote(app.service.engine.base.tokenizer_id),
        )
        if ready_file is not None:
            write_atomic(ready_file, json.dumps(ready).encode())
    await task


def _own(options: ServeOptions) -> Lock:
    """The lock of the data folder. Raises `ConfigError` if another process keeps it."""
    path = options.data_dir / SERVER_LOCK
    try:
        return Lock(path, wait_s=SILENT_S)
    except SweepBusyError as e:
        _log.warning("%s; waiting up to %.0f s for its end", e, FOLDER_WAIT_S)
    try:
        return Lock(path, wait_s=FOLDER_WAIT_S)
    except SweepBusyError as e:
        remedy = "stop that process, or choose another --data-dir"
        if options.exit_with_parent:  # of a command that was asked for something else
            remedy = "another command works with what was saved there; try again when it has ended"
        raise ConfigError(f"{e}; {remedy}") from e


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket, because two sockets can be bound to a port, but only one can listen.
    Who connects before the model is loaded waits for an answer."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as e:
        listener.close()
        raise ConfigError(
            f"cannot listen on port {port} of {host}: {e.strerror or e}; choose another --port"
        ) from e
    return listener


def _key_file(options: ServeOptions) -> Path:
    if options.api_key_file is not None:
        return options.api_key_file
    if not _is_loopback(options.host):
        raise ConfigError(
            f"host {options.host} can be reached from other machines; "
            "give a key of your own with --api-key-file"
        )
    path = options.data_dir / "api_key"
    if not path.exists():
        write_atomic(path, f"tml-{secrets.token_urlsafe(32)}\n".encode(), mode=0o600)
    return path


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_key(path: Path) -> str:
    with storage_errors(path):
        key = path.read_text().strip()
    if len(key) < 8:
        raise ConfigError(f"{path} holds no key of at least 8 characters")
    return key


def _exit_with_stdin() -> None:
    """Ask for a clean end when standard input ends, and insist."""
    with contextlib.suppress(OSError, ValueError):
        while os.read(0, 65536):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_FORCED_EXIT_S)
    os._exit(1)
