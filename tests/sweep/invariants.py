"""Judges a sweep by the service's ledger and the journal: the invariants I1 to I11.

What the weights and the batches of a step must be is worked out here from the data and the seed
alone, without a session (`oracle`).
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from random_faults import BATCH, DATA, RATES, Asked, World, play

from crucible_tinkex.datasets import batch_indices
from crucible_tinkex.protocol.wire import AdamParams, LoraConfig
from crucible_tinkex.registry import DONE, FAILED, LOST, STOPPED, SweepState, TrialRecord
from crucible_tinkex.registry.journal import read_records
from crucible_tinkex.sweep.results.leaderboard import best, configurations, exit_code
from crucible_tinkex.testing.fake_model import FakeRow, FakeWeights, pairs_of, rows_digest
from crucible_tinkex.training.recipes.datums import datum

RANKS, SEEDS, STEPS = (2, 8, 32), (0, 1, 10_000), 6
TRAINED = BATCH * 6
"""Tokens of a batch."""
SCORED = 2 * 6


@cache
def batch(seed: int, step: int) -> tuple[FakeRow, ...]:
    rows = batch_indices(len(DATA.train), seed=seed, step=step, batch_size=BATCH)
    return tuple(FakeRow.of(datum(DATA.train, row)) for row in rows)


@cache
def step_of(seed: int, digest: str) -> int:
    """The step whose batch it is; 0 if it is nobody's."""
    return next((s for s in range(1, STEPS + 1) if rows_digest(batch(seed, s)) == digest), 0)


@cache
def oracle(rank: int, seed: int, rates: tuple[float, ...]) -> FakeWeights:
    """The weights after steps with these learning rates."""
    if not rates:
        return FakeWeights("nano", LoraConfig(rank=rank, seed=seed, train_unembed=False))
    before = oracle(rank, seed, rates[:-1])
    return before.stepped(pairs_of(batch(seed, len(rates))), AdamParams(learning_rate=rates[-1]))


def rates(state: SweepState, trial: TrialRecord, step: int) -> tuple[float, ...]:
    """Of the steps of a trial, of which a fork's first ones are its parent's."""
    origin, rate = trial.origin, trial.values.get("optimizer.learning_rate", RATES[0])
    if origin is None or not origin.warm:
        return (rate,) * step
    inherited = rates(state, state.trials[origin.parent], origin.step)
    return (*inherited, *(rate,) * (step - origin.step))


@cache
def measured() -> Mapping[tuple[str, int], Mapping[str, float]]:
    """Of every trial and step, what an undisturbed sweep measures."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), random.Random(0))
        world.asked = Asked(RANKS, SEEDS, STEPS, "none", 4, 0, 1, 0)
        assert world.run() is None
        trials = world.state.trials.values()
        return {(t.trial_id, s): m for t in trials for s, m in t.results.items()}


def check(world: World) -> SweepState:
    """Everything that must hold at any time; what the journal says."""
    records = list(read_records(world.paths.journal))
    state = SweepState().fold(records)
    for trial in state.trials.values():
        _trial(world, state, trial)
    _ledger(world)
    _acknowledged(world, state, records)
    _known(world, state, records)
    _spend(world, state)
    epochs = [r["epoch"] for r in records]
    assert epochs == sorted(epochs), "I11: two epochs effective at once"
    return state


def _trial(world: World, state: SweepState, trial: TrialRecord) -> None:
    for step, metrics in () if trial.origin else trial.results.items():
        assert metrics == measured()[trial.trial_id, step], f"I5: {trial.run_name} at {step}"
    rank = trial.values.get("lora.rank", 0)
    for checkpoint in trial.checkpoints:
        if checkpoint.path in world.backend.gone:
            continue
        assert checkpoint.path in world.backend.checkpoints, f"I4: {checkpoint.path}"
        found, wanted = (
            world.backend.checkpoints[checkpoint.path],
            oracle(rank, trial.seed, rates(state, trial, checkpoint.step)),
        )
        same = (found.step, found.seen, found.totals) == (wanted.step, wanted.seen, wanted.totals)
        assert same, f"I1: {checkpoint.path} is not what {checkpoint.step} steps give"
    for decision in trial.decisions:
        assert decision.reason, "a decision without a reason"


def _ledger(world: World) -> None:
    """I2: each model saw the batches of its seed, in order, none twice."""
    at = {model: weights.step for model, weights in world.backend.models.items()}
    for effect in world.backend.ledger:
        if effect.operation == "forward_backward":
            weights = world.backend.models[effect.model_id]
            step = step_of(weights.lora.seed or 0, effect.batch)
            assert step > at[effect.model_id], f"I2: {effect} after step {at[effect.model_id]}"
            at[effect.model_id] = step


def _acknowledged(world: World, state: SweepState, records: Sequence[Mapping[str, Any]]) -> None:
    """I1, I11: what a driver was told is remembered is remembered."""
    saved = {r["checkpoint"]["path"] for r in records if r["type"] == "checkpoint"}
    results = {(r["trial_id"], r["step"]) for r in records if r["type"] == "result"}
    for method, args in world.acknowledged:
        if method == "commit_checkpoint":
            assert args[0].path in saved, f"I1: {args[0].path} was acknowledged and is forgotten"
        elif method == "record_result":
            assert (args[0], args[2]) in results, f"I1: result {args} is forgotten"
        elif method in ("decide", "set_sweep", "amend"):
            op = args[1] if method != "amend" else args[2]
            assert op in state.ops, f"I11: {method} {op} is forgotten"
    attempts: dict[str, int] = {}
    for record in records:
        if record["type"] == "attempt":
            trial_id, attempt = record["trial_id"], record["attempt"]
            assert attempt > attempts.get(trial_id, 0), "I11: an attempt was granted twice"
            attempts[trial_id] = attempt
        elif record["type"] == "checkpoint":
            by = record["checkpoint"]
            assert by["attempt"] == attempts[by["trial_id"]], "I11: an old attempt saved"


def _known(world: World, state: SweepState, records: Sequence[Mapping[str, Any]]) -> None:
    """I4: the service keeps no checkpoint that the journal does not know of."""
    known = {r["checkpoint"]["path"] for r in records if r["type"] == "checkpoint"}
    known |= {path for t in state.trials.values() for path in t.intents.values()}
    assert set(world.backend.checkpoints) <= known, "I4: orphans"


def _spend(world: World, state: SweepState) -> None:
    spent = [t.spent for t in state.trials.values()]
    trained, scored = sum(s.train_tokens for s in spent), sum(s.prefill_tokens for s in spent)
    asked = Counter(world.backend.asked)
    # Under a budget an operation counts before it is sent: an attempt that dies there has one more.
    asked["forward_backward"] += sum(t.attempt for t in state.trials.values())
    assert trained <= asked["forward_backward"] * TRAINED, "I6: spent more than was asked for"
    assert scored <= asked["forward"] * SCORED, "I6: spent more than was asked for"
    if not world.disturbed:
        ledger = world.backend.ledger
        billed = sum(e.tokens for e in ledger if e.operation == "forward_backward")
        scores = sum(e.tokens for e in ledger if e.operation == "forward")
        assert (trained, scored) == (billed, scores), "I6: spend is not the ledger's"


def check_finished(world: World, state: SweepState, error: Exception | None) -> None:
    """What must hold after an undisturbed run."""
    assert error is None, f"an undisturbed run raised {error!r}"
    states = Counter(t.state for t in state.trials.values())
    assert not state.open and state.ended, f"I7, I10: nothing disturbed it, and it left {states}"
    assert state.state == DONE
    assert LOST not in states, "I7: nothing disturbed it, and trials are lost"
    assert exit_code(state) == (1 if FAILED in states else 0), "I7: exit code"
    if not world.told_failed:
        failed = [t for t in state.trials.values() if t.state == FAILED]
        blamed = [t for t in failed if t.origin is None or t.origin.path not in world.backend.gone]
        assert not blamed, f"I7: nobody is to blame for {blamed}"
    own = [t for t in state.trials.values() if not t.reference]
    asked = [t for t in own if t.phase == "search" and t.origin is None]
    wanted = len(world.asked.ranks) * len(world.asked.seeds)
    assert len(asked) == wanted, f"I7: {len(asked)} trials of {wanted}"
    for trial in own:
        if trial.state == DONE:
            assert trial.step == world.asked.steps == trial.metrics_step, f"I7: {trial}"
    assert set(states) <= {DONE, STOPPED, FAILED}, f"I7: left {states}"
    by_a_person = any(t.hold for t in state.trials.values())
    simple = not (world.commanded or world.asked.confirm or world.asked.halving)
    if simple and not world.told_failed and STOPPED not in states:
        _winner(world, state)
    if any(t.state == STOPPED for t in asked) and not by_a_person:
        assert any(t.state == DONE for t in own), "I10: nobody was trained to the end"
    fresh = [t for t in own if t.phase == "confirm"]
    complete = any(c.complete and not c.reference for c in configurations(state, confirmed=False))
    if asked and FAILED not in states and not by_a_person:
        assert complete, "I10: no configuration has all its seeds"
    assert len(fresh) >= world.asked.confirm * complete, "the leader was not confirmed"


def _winner(world: World, state: SweepState) -> None:
    def mean(rank: int) -> float:
        trials = [t for t in state.trials.values() if t.values.get("lora.rank") == rank]
        losses = [measured()[t.trial_id, world.asked.steps]["eval/nll"] for t in trials]
        return sum(losses) / len(losses)

    winner = best(state)
    assert winner and winner.values["lora.rank"] == min(world.asked.ranks, key=mean), "I5: winner"


def check_nothing_repeated(world: World, before: SweepState, after: SweepState, steps: int) -> None:
    """An undisturbed run trains each step that is missing once, and none that is safe."""
    if world.asked.halving:
        return
    missing = 0
    for trial in after.trials.values():
        if trial.reference or trial.state != DONE:
            continue
        old = before.trials.get(trial.trial_id)
        saved = old.checkpoints if old else []
        usable = [c.step for c in saved if c.path not in world.backend.gone]
        done = old is not None and old.state == DONE and old.total_steps >= trial.total_steps
        missing += 0 if done else trial.total_steps - max(usable, default=trial.first_step)
    failed = sum(t.state == FAILED for t in after.trials.values())
    assert failed or steps <= missing, f"I1: {steps} steps trained, {missing} were missing"


def live(folder: Path, rng: random.Random) -> World:
    """A whole life of a sweep: disturbed runs, then one undisturbed, judged after each part."""
    world = play(folder, rng)
    before, trained = check(world), world.backend.calls.count("optim_step")
    world.asked = world.asked._replace(budget=None)
    error = world.run()
    after = check(world)
    check_finished(world, after, error)
    steps = world.backend.calls.count("optim_step") - trained
    check_nothing_repeated(world, before, after, steps)
    return world
