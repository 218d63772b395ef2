"""How a sampled sequence chooses its next token and when it stops.

Guarantees: a sequence draws from a generator of its own, seeded by (seed, sample index), so its
tokens do not depend on what else is in the batch; temperature 0 takes the most probable token; the
log-probability reported is the model's own, before temperature, top_k and top_p.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from torch import Tensor

from crucible_tinkex.server.operations import Sample, Sequence


def generator_for(seed: int | None, index: int) -> torch.Generator:
    """The random numbers of sample `index`; without a seed they are different every time."""
    text = f"{secrets.randbits(62) if seed is None else seed}:{index}"
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(number >> 1)


@dataclass(slots=True)
class Sampling:
    """One sequence being sampled."""

    request: Sample
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    topk: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    stop_reason: str | None = None

    def take(self, logits: Tensor, norm: float, vocabulary: Vocabulary) -> None:
        """Choose one token from `logits` [V] (fp32, log-normaliser `norm`) and append it."""
        token = choose(logits, self.request, self.generator)
        self.tokens.append(token)
        self.logprobs.append(float(logits[token]) - norm)
        if self.request.topk_sample_logprobs > 0:
            best = logits.topk(min(self.request.topk_sample_logprobs, len(logits)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            self.topk.append(tuple((i, v - norm) for i, v in pairs))
        if vocabulary.stops(self.tokens, self.request):
            self.stop_reason = "stop"
        elif len(self.tokens) >= self.request.max_tokens:
            self.stop_reason = "length"

    def sequence(self) -> Sequence:
        topk = tuple(self.topk) if self.request.topk_sample_logprobs > 0 else None
        reason = self.stop_reason or "length"
        return Sequence(tuple(self.tokens), tuple(self.logprobs), reason, topk)


def choose(logits: Tensor, request: Sample, generator: torch.Generator) -> int:
    if request.temperature == 0:
        return int(logits.argmax())
    ids: Tensor | None = None
    if 0 < request.top_k < len(logits):
        logits, ids = logits.topk(request.top_k)
    elif request.top_p < 1:
        logits, ids = logits.sort(descending=True)
    mass = (logits.double() / request.temperature).softmax(-1).cumsum(-1)
    if request.top_p < 1:
        mass = mass[: int((mass < request.top_p).sum()) + 1]
    drawn = torch.rand(1, dtype=torch.float64, generator=generator) * mass[-1]
    place = min(int(torch.searchsorted(mass, drawn, right=True)), len(mass) - 1)
    return place if ids is None else int(ids[place])


class Vocabulary:
    """What stopping needs of the tokenizer."""

    def __init__(self, tokenizer: Tokenizer, eos_tokens: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._eos_tokens = eos_tokens

    def stops(self, tokens: list[int], request: Sample) -> bool:
        last = tokens[-1]
        if request.stop_tokens is None:
            if last in self._eos_tokens:
                return True
        elif last in request.stop_tokens:
            return True
        return any(stop in self._tail(tokens, stop) for stop in request.stop_strings)

    def _tail(self, tokens: list[int], stop: str) -> str:
        """The text in which `stop` would end now: a token holds at least one byte of it."""
        tail = tokens[-(len(stop.encode()) + 4) :]
        text: str = self._tokenizer.decode(tail, skip_special_tokens=False)
        return text
