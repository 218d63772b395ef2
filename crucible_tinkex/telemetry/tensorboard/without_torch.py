"""Keeps torch out while another package is imported.

tensorboardX imports torch, where it is installed, only to ask for its version: two seconds and
150 MB in a process that writes log files.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_torch() -> Iterator[None]:
    """`import torch` raises ImportError inside, unless torch is already there."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
