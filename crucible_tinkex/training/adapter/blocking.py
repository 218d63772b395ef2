"""The same session for code without an event loop: plain scripts, and notebooks, whose own loop is
left alone. One thread holds the loop on which the session lives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import wait
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from crucible_tinkex.datasets import Tokenizer
from crucible_tinkex.errors import SessionStateError
from crucible_tinkex.metrics import Direction
from crucible_tinkex.registry import Spent
from crucible_tinkex.telemetry.bridge import Bridge
from crucible_tinkex.training.adapter.experiment import AdapterConfig, LoraExperiment
from crucible_tinkex.training.adapter.protocol import LoraAdapter
from crucible_tinkex.training.tinkex.keeping import SessionCheckpoints
from crucible_tinkex.training.tinkex.results import Checkpoint, StepRow
from crucible_tinkex.training.tinkex.session import TinkexSession
from crucible_tinkex.training.tinkex.states import State

L = TypeVar("L")
P = ParamSpec("P")
T = TypeVar("T")


class LoopThread:
    """An event loop in a thread of its own. `close` ends both."""

    def __init__(self, name: str = "tinkex") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def run(
        self, work: Coroutine[Any, Any, T], *, on_interrupt: Callable[[], object] | None = None
    ) -> T:
        """What `work` returns or raises. Ctrl-C cancels it, or calls `on_interrupt` and waits for
        its end. Raises `SessionStateError` on the loop's own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread or self._loop.is_closed():
            work.close()
            raise SessionStateError(
                "this session cannot be used here: it is closed, or this is one of its callbacks"
            )
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            if on_interrupt is None:
                future.cancel()
            else:
                self._loop.call_soon_threadsafe(on_interrupt)
                wait([future])
            raise

    def close(self) -> None:
        if self._loop.is_closed():
            return
        ended = self._loop.shutdown_default_executor()
        asyncio.run_coroutine_threadsafe(ended, self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Blocking(Generic[L]):
    """What lives on a loop, for code that has none."""

    def __init__(self, live: L, loop: LoopThread) -> None:
        self.live = live
        self.loop = loop


def _blocking(
    operation: Callable[Concatenate[L, P], Coroutine[Any, Any, T]],
    on_interrupt: Callable[[L], object] | None = None,
) -> Callable[Concatenate[_Blocking[L], P], T]:
    """The operation with its signature and words, returning when it is done."""

    @wraps(operation)
    def blocking(own: _Blocking[L], /, *args: P.args, **how: P.kwargs) -> T:
        interrupted = None if on_interrupt is None else partial(on_interrupt, own.live)
        return own.loop.run(operation(own.live, *args, **how), on_interrupt=interrupted)

    return blocking


class BlockingCheckpoints(_Blocking[SessionCheckpoints]):
    """See `SessionCheckpoints`. To sample, give a checkpoint to `infer`."""

    def list_checkpoints(self) -> list[Checkpoint]:
        return self.live.list_checkpoints()

    def get_best_checkpoint(self, metric: str, direction: Direction | None = None) -> Checkpoint:
        return self.live.get_best_checkpoint(metric, direction)

    prune_checkpoints = _blocking(SessionCheckpoints.prune_checkpoints)
    delete = _blocking(SessionCheckpoints.delete)


class BlockingSession(_Blocking[TinkexSession]):
    """A `TinkexSession` whose operations return when they are done; `live` is that session."""

    @property
    def experiment(self) -> LoraExperiment:
        return self.live.experiment

    @property
    def checkpoint_manager(self) -> BlockingCheckpoints:
        return BlockingCheckpoints(self.live.checkpoint_manager, self.loop)

    @property
    def experiment_id(self) -> str:
        return self.live.experiment_id

    @property
    def config(self) -> AdapterConfig:
        return self.live.config

    @property
    def adapter(self) -> LoraAdapter:
        return self.live.adapter

    @property
    def status(self) -> State:
        return self.live.status

    @property
    def is_closed(self) -> bool:
        return self.live.is_closed

    @property
    def step(self) -> int:
        return self.live.step

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return self.live.checkpoints

    @property
    def metrics(self) -> list[StepRow]:
        return self.live.metrics

    @property
    def spent(self) -> Spent:
        return self.live.spent

    @property
    def tokenizer(self) -> Tokenizer:
        return self.live.tokenizer

    @property
    def telemetry(self) -> Bridge:
        """`attach` and `detach` handlers here; they are called in the loop's thread."""
        return self.live.bridge

    @property
    def model_registry(self) -> Any:
        return self.live.model_registry

    train = _blocking(TinkexSession.train, on_interrupt=TinkexSession.stop)
    """Ctrl-C finishes what was sent and saves, then raises."""
    evaluate = _blocking(TinkexSession.evaluate)
    infer = _blocking(TinkexSession.infer)
    forward_backward = _blocking(TinkexSession.forward_backward)
    optim_step = _blocking(TinkexSession.optim_step)
    save_checkpoint = _blocking(TinkexSession.save_checkpoint)
    load_checkpoint = _blocking(TinkexSession.load_checkpoint)
    recover = _blocking(TinkexSession.recover)
    close = _blocking(TinkexSession.close)

    def stop(self) -> None:
        """From another thread, or from a callback of `train`: see `TinkexSession.stop`."""
        self.live.stop()

    def __enter__(self) -> BlockingSession:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.loop.run(self.live.__aexit__(kind, error, trace))
