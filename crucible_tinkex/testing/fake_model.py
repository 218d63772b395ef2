"""What the fake service trains: a bigram model that learns by counting, exact and cheap.

The probability of a token after another is a mixture: what was seen, and all tokens alike. An
optimizer step adds the batch's pairs to what was seen, so that training lowers the loss of rows
that share pairs with it and of no others. The learning rate says how much: most at `BEST_RATE`,
little far from it; above `DIVERGING_RATE` every loss rises. Rank and seed decide the floor that a
loss cannot pass. Every other setting that is not at its default takes up to a fifth of what a step
teaches. All is a pure function of the base, the adapter's settings and the steps so far.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from crucible_tinkex.protocol.wire import AdamParams, Datum, LoraConfig

BEST_RATE = 1e-3
DIVERGING_RATE = 0.1
VOCABULARY = 264
"""That of the base `nano`. The untrained loss is ln 264 = 5.58 nats per token."""

Pair = tuple[int, int]

USUAL_LORA = LoraConfig(rank=8, seed=0, train_unembed=False)
USUAL_ADAM = AdamParams()
_OF_THEIR_OWN = {"learning_rate", "rank", "seed"}
"""Settings with an effect of their own."""


class FakeRow(NamedTuple):
    """What the fake takes of a datum, by value."""

    pairs: tuple[Pair, ...]
    """Each input token with its target."""
    weights: tuple[float, ...]

    @classmethod
    def of(cls, datum: Datum) -> FakeRow:
        targets = datum.loss_fn_inputs["target_tokens"].data
        given = datum.loss_fn_inputs.get("weights")
        weights = [1.0] * len(targets) if given is None else given.data
        pairs = zip(datum.model_input.tokens(), map(int, targets), strict=True)
        return cls(tuple(pairs), tuple(map(float, weights)))

    def heard(self, ignored: Collection[str]) -> FakeRow:
        """As it is learnt from where loss weights are not applied (`FakeBackend.ignores`)."""
        weights = self.weights
        if "train.token_weights" in ignored:
            weights = tuple(float(w != 0) for w in weights)
        if "train.loss" in ignored:
            weights = tuple(max(w, 0.0) for w in weights)
        return self._replace(weights=weights)


@dataclass(frozen=True)
class FakeWeights:
    """A fake model's whole state; never changed, so that checkpoints share it."""

    base_model: str
    lora: LoraConfig
    step: int = 0
    seen: Mapping[Pair, float] = field(default_factory=dict)
    """How often a token was learnt after another."""
    totals: Mapping[int, float] = field(default_factory=dict)
    """The same, by the token before."""
    excess: float = 0.0
    """Nats per token that divergence has added."""

    def logprob(self, before: int, token: int) -> float:
        share = self._learnt(before)
        known = self.seen.get((before, token), 0.0) / max(self.totals.get(before, 0.0), 1e-12)
        return math.log(share * known + (1 - share) / VOCABULARY) - self.excess

    def logprobs(self, row: FakeRow) -> list[float]:
        """Of the row's targets."""
        return [self.logprob(before, token) for before, token in row.pairs]

    def stepped(self, pairs: Mapping[Pair, float], adam: AdamParams) -> FakeWeights:
        """After an optimizer step on what `pairs_of` found in a batch."""
        rate = adam.learning_rate
        if rate > DIVERGING_RATE:
            return replace(self, step=self.step + 1, excess=min(1.5 * self.excess + 0.5, 1e6))
        distance = math.log(max(rate, 1e-12) / BEST_RATE)
        gain = math.exp(-distance * distance / 4.5) * self._share(adam)
        seen, totals = dict(self.seen), dict(self.totals)
        for (before, token), weight in pairs.items():
            seen[before, token] = seen.get((before, token), 0.0) + gain * weight
            totals[before] = totals.get(before, 0.0) + gain * weight
        return replace(self, step=self.step + 1, seen=seen, totals=totals)

    def _share(self, adam: AdamParams) -> float:
        """What unusual settings leave of a step."""
        given, usual = {**dict(adam), **dict(self.lora)}, {**dict(USUAL_ADAM), **dict(USUAL_LORA)}
        unusual = {k: given[k] for k in given if k not in _OF_THEIR_OWN and given[k] != usual[k]}
        digests = (zlib.crc32(f"{key}={value}".encode()) for key, value in unusual.items())
        return math.prod(1 - 0.2 * uniform(digest) for digest in digests)

    def drawn(self, before: int, chance: float, *, greedy: bool) -> int:
        """The token after `before`: the most probable one, or the one that `chance` (in [0, 1))
        falls on."""
        known = sorted((t, n) for (b, t), n in self.seen.items() if b == before)
        if greedy:
            return max(known, key=lambda pair: (pair[1], -pair[0]), default=(0, 0.0))[0]
        share = self._learnt(before)
        left = chance
        for token, count in known:
            left -= share * count / self.totals[before]
            if left < 0:
                return token
        return int(left / (1 - share) * VOCABULARY) % VOCABULARY

    def _learnt(self, before: int) -> float:
        """How much of the probability follows what was seen."""
        total = self.totals.get(before, 0.0)
        floor = (0.2 + 0.05 * uniform(self.lora.seed or 0)) / (1 + self.lora.rank)
        return (1 - floor) * total / (1 + total)


def pairs_of(rows: Sequence[FakeRow]) -> dict[Pair, float]:
    """What a batch has to teach: its pairs of tokens by the sum of their loss weights."""
    pairs: dict[Pair, float] = {}
    for row in rows:
        for pair, weight in zip(row.pairs, row.weights, strict=True):
            if weight:
                pairs[pair] = pairs.get(pair, 0.0) + abs(weight)
    return pairs


def batch_digest(data: Sequence[Datum]) -> str:
    """Names a batch by its tokens, targets and weights, as the ledger does."""
    return rows_digest([FakeRow.of(datum) for datum in data])


def rows_digest(rows: Sequence[FakeRow]) -> str:
    return hashlib.blake2b(repr(list(map(tuple, rows))).encode(), digest_size=8).hexdigest()


def uniform(*parts: int) -> float:
    """A number in [0, 1) that depends on `parts` only."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
