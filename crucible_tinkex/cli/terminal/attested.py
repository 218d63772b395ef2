"""What a service was proved to apply, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from crucible_tinkex.sweep.deciding.prices import Price
from crucible_tinkex.training.attest.judging import Finding
from crucible_tinkex.training.attest.probing import Attestation


def described(proof: Attestation, price: Price | None) -> dict[str, Any]:
    """`dollars` is None where the price is unknown."""
    return {
        "findings": [_described(finding) for finding in proof.findings],
        "noise": proof.noise,
        "models": proof.models,
        "spent": asdict(proof.spent),
        "dollars": None if price is None else price.of(proof.spent),
    }


def _described(finding: Finding) -> dict[str, Any]:
    return {
        "key": finding.key,
        "asked": list(finding.asked),
        "probed": list(finding.probed),
        "verdict": finding.verdict,
        "why": finding.why,
        "varies": finding.varies,
    }


def print_attested(found: Mapping[str, Any]) -> None:
    """One line a setting, then the cost."""
    print("\nwhat the service applies")
    width = max((len(finding["key"]) for finding in found["findings"]), default=0) + 2
    for finding in found["findings"]:
        asked = ", ".join(map(_shown, finding["asked"]))
        print(
            f"  {finding['key']:<{width}}{_cut(asked):<26}{finding['verdict']:<15}{finding['why']}"
        )
    spent, dollars = found["spent"], found["dollars"]
    cost = "price unknown" if dollars is None else f"{dollars:.2g} dollars"
    tokens = spent["train_tokens"] + spent["prefill_tokens"]
    print(
        f"  by {found['models']} models of two steps: {tokens:,} tokens, "
        f"{spent['seconds']:.1f} s, {cost}"
    )
    print("  (`plan` keeps no journal: no budget counts this)")


def _shown(value: Any) -> str:
    """The numbers of a loss are pairs of name and value."""
    pairs = isinstance(value, tuple) and all(isinstance(part, tuple) for part in value)
    return ", ".join(str(number) for _, number in value) if pairs else str(value)


def _cut(text: str, width: int = 24) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
