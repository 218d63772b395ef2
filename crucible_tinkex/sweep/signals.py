"""Ctrl-C and SIGTERM of a run: the first drains, the second ends the process at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable

INTERRUPTED_CODE = 130


class Signals:
    """SIGINT and SIGTERM: the first calls `first`, the second `last` and ends the process. Only the
    main thread may have handlers; elsewhere (a notebook's worker) `Launch.stop` is the way."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(
        self, first: Callable[[], object], last: Callable[[], object] = lambda: None
    ) -> None:
        self._first = first
        self._last = last
        self._count = 0

    def install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in self.NUMBERS:
                loop.add_signal_handler(number, self._received)

    def _received(self) -> None:
        self._count += 1
        if self._count > 1:
            try:
                self._last()
                print("stopped at once; run the same command to continue", file=sys.stderr)
            finally:
                os._exit(INTERRUPTED_CODE)
        print("draining: saving the running trials (again to stop at once)", file=sys.stderr)
        self._first()

    def __enter__(self) -> Signals:
        self.install()
        return self

    def __exit__(self, *exc: object) -> None:
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number in self.NUMBERS:
                loop.remove_signal_handler(number)
