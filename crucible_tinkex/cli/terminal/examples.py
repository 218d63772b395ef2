"""What the training rows look like, on a terminal: their lengths, and a few of them in full, with
the tokens that are learnt marked (by colour, and where there is none, by [[ ]])."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

LONGEST = 600
"""Characters of a part; a longer one loses its middle."""


def print_lengths(row_tokens: Mapping[str, Any]) -> None:
    """`row_tokens`: the fields of `LengthStatistics`."""
    found = row_tokens
    print(
        f"{'row tokens':<16}p50 {found['p50']}, p90 {found['p90']}, p99 {found['p99']}, longest "
        f"{found['longest']}; {found['learnt'] / found['tokens']:.0%} learnt; padding of a batch "
        f"{found['padding']:.0%}"
    )
    for key in ("truncated", "dropped"):
        if found[key]:
            print(f"{key:<16}{found[key]}")


def print_examples(examples: Sequence[Mapping[str, Any]]) -> None:
    """`examples`: the fields of `ShownRow`, for each row."""
    console = Console(highlight=False, soft_wrap=True)
    if examples:
        console.print("\nrows as the model sees them, with what is learnt marked", style="dim")
    for example in examples:
        console.print(f"\n{example['id']}, {example['tokens']} tokens", style="bold", markup=False)
        console.print(_marked(example["parts"], colour=console.color_system is not None))


def _marked(parts: Sequence[tuple[str, bool]], *, colour: bool) -> Text:
    text = Text()
    for part, learnt in parts:
        part = shortened(part)
        if not learnt:
            text.append(part, style="dim")
        else:
            text.append(part if colour else f"[[{part}]]", style="bold green")
    return text


def shortened(text: str) -> str:
    """The text without its middle, which is counted, if it is long."""
    left_out = len(text) - LONGEST
    if left_out <= 0:
        return text
    half = LONGEST // 2
    return f"{text[:half]} ... {left_out} characters ... {text[-half:]}"
