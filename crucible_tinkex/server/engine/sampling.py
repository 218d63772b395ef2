"""A batch of sampling requests: one prefill of their prompts, then one token per row and step.

Requests of a batch have the same prompt bucket, so the k-th new token of every row goes to the same
cache slot and a step sees an extent that depends on the bucket and k only. Rows lie grouped by
adapter; the adapters' products get a multiple of 16 rows each. A request for many samples is cut
(`split`), so that the keys and values of a batch keep within a budget.
Guarantees: a request's tokens and log-probabilities depend neither on the rest of the batch nor on
how it was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from crucible_tinkex.server.engine.choosing import Sampling, Vocabulary, generator_for
from crucible_tinkex.server.engine.scoring import score
from crucible_tinkex.server.model.adapters import FrozenAdapter
from crucible_tinkex.server.model.attention import BUCKET, Block, DecodePlan, PackedPlan, round_up
from crucible_tinkex.server.model.base_model import MIN_TOKENS, BaseModel
from crucible_tinkex.server.model.lora import Segment, Stack, stacked
from crucible_tinkex.server.operations import Outcome, PromptScores, Sample, SampleOutput

EXTENT = 16
"""The cache grows by this many slots."""

Ticket = TypeVar("Ticket")


def prompt_bucket(request: Sample) -> int:
    return max(round_up(len(request.prompt)), MIN_TOKENS)


def cache_extent(request: Sample) -> int:
    """The slots that a sequence of it takes in the cache at most."""
    return prompt_bucket(request) + round_up(request.max_tokens, EXTENT)


def split(request: Sample, most: int) -> list[Sample]:
    """Requests of at most so many samples each that together are the same; the first one asks
    about the prompt."""
    pieces = []
    for first in range(0, request.num_samples, most):
        count = min(most, request.num_samples - first)
        pieces.append(replace(request, num_samples=count, first_sample=first))
        request = replace(request, prompt_logprobs=False, topk_prompt_logprobs=0)
    return pieces


class Joined:
    """Reports once what several pieces of a request bring: all of it, or the first failure."""

    def __init__(self, done: Callable[[Outcome], None], count: int) -> None:
        self._done = done
        self._parts: list[SampleOutput | None] = [None] * count
        self.failed = False

    def report(self, piece: int) -> Callable[[Outcome], None]:
        """What to call with the outcome of this piece."""

        def take(outcome: Outcome) -> None:
            if self.failed:
                return
            if not isinstance(outcome, SampleOutput):
                self.failed = True
                self._done(outcome)
                return
            self._parts[piece] = outcome
            parts = [p for p in self._parts if p is not None]
            if len(parts) == len(self._parts):
                sequences = tuple(s for p in parts for s in p.sequences)
                self._done(SampleOutput(sequences, parts[0].prompt))

        return take


@dataclass(slots=True)
class Prompt(Generic[Ticket]):
    """One request in a batch; `ticket` is the caller's."""

    ticket: Ticket
    request: Sample
    adapter: FrozenAdapter | None
    rows: list[Sampling] = field(default_factory=list)
    scores: PromptScores = field(default_factory=PromptScores)
    reported: bool = False

    def output(self) -> SampleOutput:
        return SampleOutput(tuple(r.sequence() for r in self.rows), self.scores)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a row's past lies (prompt number, then row number after the first layout)."""

    source: int
    length: int
    row: Sampling


class SampleBatch(Generic[Ticket]):
    """Call `advance` until it says that nothing is left."""

    def __init__(
        self, model: BaseModel, vocabulary: Vocabulary, prompts: Sequence[Prompt[Ticket]]
    ) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._prompts = sorted(prompts, key=lambda p: id(p.adapter))
        self._bucket = prompt_bucket(self._prompts[0].request)
        self._steps = 0
        self._cache: list[tuple[Tensor, Tensor]] = []
        self._places: list[_Place] = []
        self._filling = 0
        """Rows that a step has beyond the places, for the sake of its products."""
        self._segments: list[Segment] = []
        self._stacks: list[Stack] = []

    @property
    def size(self) -> int:
        """The number of its requests, finished or not."""
        return len(self._prompts)

    def pending(self) -> list[Prompt[Ticket]]:
        return [p for p in self._prompts if not p.reported]

    @torch.inference_mode()
    def advance(self, steps: int) -> tuple[list[Prompt[Ticket]], bool]:
        """Generate up to `steps` tokens per row; returns the complete requests that are not
        reported yet, and whether they are all that was left."""
        for _ in range(steps):
            self._decode() if self._steps else self._prefill()
            self._steps += 1
            if all(p.row.stop_reason for p in self._places):
                break
        pending = self.pending()
        done = [p for p in pending if all(r.stop_reason for r in p.rows)]
        return done, len(done) == len(pending)

    def _prefill(self) -> None:
        count, bucket = len(self._prompts), self._bucket
        tokens = torch.zeros(count, bucket, dtype=torch.long)
        for i, p in enumerate(self._prompts):
            tokens[i, : len(p.request.prompt)] = torch.from_numpy(p.request.prompt)
        owners = [p.adapter for p in self._prompts]
        plan = PackedPlan([Block(0, count * bucket, count, None, None)], keep_cache=True)
        positions = torch.arange(bucket).repeat(count)
        segments = _segments(owners, bucket)
        hidden = self._model.hidden(
            tokens.view(-1), positions, plan, stacked(segments), backward=False
        ).view(count, bucket, -1)
        for i, p in enumerate(self._prompts):
            segment = p.adapter.segment(0, bucket) if p.adapter else None
            p.scores = score(self._model.head, segment, p.request, tokens[i], hidden[i])
            p.rows = [
                Sampling(p.request, generator_for(p.request.seed, p.request.first_sample + n))
                for n in range(p.request.num_samples)
            ]
        self._cache = plan.cache
        self._lay_out(
            [
                (_Place(i, len(p.request.prompt), row), p.adapter)
                for i, p in enumerate(self._prompts)
                for row in p.rows
            ]
        )
        last = torch.tensor([p.length - 1 for p in self._places])
        source = torch.tensor([p.source for p in self._places])
        chosen = hidden[source.to(hidden.device), last.to(hidden.device)]
        self._choose(F.pad(chosen, (0, 0, 0, self._filling)))

    def _lay_out(self, rows: list[tuple[_Place, FrozenAdapter | None]]) -> None:
        """Arrange rows, given by adapter, and bring the cache into that order."""
        self._places = [place for place, _ in rows]
        self._filling = max(round_up(len(rows)), MIN_TOKENS) - len(rows)
        self._segments = _segments([adapter for _, adapter in rows], 1)
        self._stacks = stacked(self._segments, MIN_TOKENS)
        order = torch.tensor([p.source for p in self._places], device=self._model.device)
        self._renew_cache(lambda x: x.index_select(0, order))

    def _renew_cache(self, change: Callable[[Tensor], Tensor]) -> None:
        """Layer by layer: two caches as a whole would be too much memory."""
        for layer, (k, v) in enumerate(self._cache):
            self._cache[layer] = change(k), change(v)

    def _compact(self) -> None:
        """Drop finished rows once that at least halves the batch."""
        alive = [i for i, p in enumerate(self._places) if p.row.stop_reason is None]
        if len(alive) * 2 > len(self._places):
            return
        owner = {id(r): p.adapter for p in self._prompts for r in p.rows}
        self._lay_out(
            [
                (_Place(i, self._places[i].length, row), owner[id(row)])
                for i in alive
                for row in (self._places[i].row,)
            ]
        )

    def _decode(self) -> None:
        self._compact()
        at = self._bucket + self._steps - 1
        if self._cache[0][0].shape[2] <= at:
            self._renew_cache(_grow)
        lengths = torch.tensor([p.length for p in self._places])
        slots = torch.arange(self._cache[0][0].shape[2])
        unseen = (slots >= lengths[:, None]) & (slots < self._bucket) | (slots > at)
        newest = torch.tensor([p.row.tokens[-1] for p in self._places])
        hidden = self._model.hidden(
            F.pad(newest, (0, self._filling)),
            F.pad(lengths + self._steps - 1, (0, self._filling)),
            DecodePlan(self._cache, at, unseen[:, None, None, :].to(self._model.device)),
            self._stacks,
            backward=False,
        )
        self._choose(hidden)

    def _choose(self, hidden: Tensor) -> None:
        logits = self._model.head.logits_of(hidden, self._segments).cpu()
        norms = logits.logsumexp(-1).tolist()
        for place, row_logits, norm in zip(self._places, logits, norms, strict=False):
            if place.row.stop_reason is None:
                place.row.take(row_logits, norm, self._vocabulary)


def _segments(owners: Sequence[FrozenAdapter | None], width: int) -> list[Segment]:
    """Stretches of one adapter, where `owners` has one entry per `width` tokens."""
    out: list[Segment] = []
    first = 0
    for _, group in groupby(owners, key=id):
        members = list(group)
        if members[0] is not None:
            out.append(members[0].segment(first * width, (first + len(members)) * width))
        first += len(members)
    return out


def _grow(x: Tensor) -> Tensor:
    b, g, s, d = x.shape
    extent = s - s % BUCKET + EXTENT
    out = x.new_zeros(b, g, extent, d)
    out[:, :, :s] = x
    return out
