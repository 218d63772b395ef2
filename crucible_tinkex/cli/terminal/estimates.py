"""What a sweep will use, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


def estimate_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """`found`: the summary of an `Estimate`."""
    sweeps = found["sweeps"]
    ground = f"from {sweeps} finished sweep{'s' if sweeps != 1 else ''} of this base"
    ground = "roughly, from the short models of the probe" if found["probed"] else ground
    none = "unknown: no finished sweep of this base in this storage; --probe tells it roughly"
    yield _line("will use", f"{_span(found['steps'], _count)} steps")
    proof = found["proof_tokens"]
    of_proof = f", {_count(proof)} of them to prove what the service applies" if proof else ""
    yield _line("", f"{_span(found['tokens'], _count)} tokens{of_proof}")
    if written := found["sample_tokens"][1]:
        yield _line("", f"  of which sampled: at most {_count(written)}")
    seconds, room, dollars = found["seconds"], found["checkpoint_bytes"], found["dollars"]
    yield _line("time", f"{_span(seconds, _time)}, {ground}" if seconds else none)
    yield _line("cost", _span(dollars, lambda d: f"${d:,.2f}") if dollars else "unknown price")
    if prices := found["prices"]:
        yield _line("", f"by prices of {prices}; verify before you rely on it")
    if room:
        yield _line("checkpoints", f"{_span(room, _bytes)}, all of them")
    if kept := found["kept_bytes"]:
        yield _line("", f"{_span(kept, _bytes)} are left at the end by [checkpoints]")
    if monthly := found["storage_dollars"]:
        yield _line("", f"{_span(monthly, lambda d: f'${d:,.2f}')} a month for what is left")


def _line(name: str, text: str) -> str:
    return f"{name:<16}{text}"


def _span(pair: Sequence[float], shown: Callable[[float], str]) -> str:
    low, high = map(shown, pair)
    return low if low == high else f"{low} to {high}"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
