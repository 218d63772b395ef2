"""Starting the torch engine: threads, computing dtype, base model.

Not imported by `serve` at its top, because torch must come after the OpenMP settings.
"""

from __future__ import annotations

import logging
import os
import time

import torch

from crucible_tinkex.errors import ConfigError
from crucible_tinkex.server import bases
from crucible_tinkex.server.engine.engine import TOKEN_CAP, TorchEngine
from crucible_tinkex.server.store.store import Store

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GPU_TOKEN_CAP = 16 * 1024
_PROBE_S = 0.02
WORTH_THREADS = 256
"""Hidden size from which a layer is large enough to be shared."""
_log = logging.getLogger(__name__)


def torch_engine(
    model: str,
    store: Store,
    *,
    dtype: str,
    device: str = "cpu",
    threads: int | None,
    memory_bytes: int | None = None,
) -> TorchEngine:
    """Fetch and load `model` and start its engine. Raises `ConfigError`."""
    place = chosen_device(device)
    base = bases.ensure_base(model)
    torch.set_num_threads(threads or fitting_threads(bases.hidden_size(base)))
    chosen = fastest_dtype(place) if dtype == "auto" else DTYPES[dtype]
    memory_bytes = memory_bytes or ram_bytes() // 4
    engine = TorchEngine(
        base,
        store,
        dtype=chosen,
        device=place,
        token_cap=TOKEN_CAP if place.type == "cpu" else GPU_TOKEN_CAP,
        memory_bytes=memory_bytes,
    )
    about = bases.KNOWN.get(base.name, str(base.folder))
    threads = torch.get_num_threads()
    _log.info("base %s (%s) in %s on %s, %d threads", base.name, about, chosen, place, threads)
    return engine


def fitting_threads(hidden_size: int) -> int:
    """One where a layer is done before a second thread is awake: of a whole sweep on `nano` (128)
    of 26 seconds, two threads made 32. Else all cores. By size and not by the clock, because
    digits may depend on it, and a sweep that is resumed must not get others."""
    return own_cores() if hidden_size >= WORTH_THREADS else 1


def own_cores() -> int:
    """The cores that this process may use; all of them where the system does not say (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def chosen_device(name: str) -> torch.device:
    """The one place where the device is chosen: "cpu", "cuda", or "auto", which is CUDA where there
    is one. Raises `ConfigError` if there is none. CUDA was never run: no GPU was at hand."""
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ConfigError("torch sees no CUDA device here; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and has_cuda) else "cpu")


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bf16 on a GPU, or if this CPU multiplies it faster than fp32, which has more digits."""
    if device.type != "cpu":
        return torch.bfloat16
    return min((torch.float32, torch.bfloat16), key=_seconds)


def _seconds(dtype: torch.dtype) -> float:
    x, w = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
    torch.nn.functional.linear(x, w)
    best, end = float("inf"), time.perf_counter() + _PROBE_S
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        best = min(best, time.perf_counter() - start)
    return best
