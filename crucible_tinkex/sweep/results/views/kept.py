"""How many checkpoints of a sweep there are, and what became of the others."""

from __future__ import annotations

from crucible_tinkex.registry import SweepState


def checkpoint_counts(state: SweepState) -> dict[str, int]:
    """`kept`; `deleted` by a decision; `being_deleted`: decided, and not yet done; `expire`: the
    service was told to delete them by itself. Keys are only ever added."""
    kept = sum(len(t.all_checkpoints) for t in state.trials.values())
    return {
        "kept": kept,
        "deleted": state.deleted,
        "being_deleted": len(state.buried),
        "expire": sum(e.at is not None for e in state.expiries.values()),
    }


def checkpoint_line(state: SweepState) -> str | None:
    """In words; None where all are kept."""
    counts = checkpoint_counts(state)
    others = [f"{n} {key.replace('_', ' ')}" for key, n in counts.items() if n and key != "kept"]
    return f"checkpoints: {counts['kept']} kept, {', '.join(others)}" if others else None
