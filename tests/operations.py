"""What something costs, counted in lines of code, which a busy machine does not change."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


def lines_of(
    work: Callable[[], object], rooms: Sequence[str] = ("/crucible_tinkex/",)
) -> Counter[str]:
    """How many lines of each function were executed, of files whose path has one of `rooms`."""
    counts: Counter[CodeType] = Counter()

    def line(frame: FrameType, event: str, _: object) -> Any:
        counts[frame.f_code] += event == "line"
        return line

    def call(frame: FrameType, event: str, _: object) -> Any:
        return line if any(room in frame.f_code.co_filename for room in rooms) else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        work()
    finally:
        sys.settrace(before)
    found: Counter[str] = Counter()
    for code, count in counts.items():
        found[f"{Path(code.co_filename).name}:{code.co_qualname}"] += count
    return found
