"""Budgets: kept from real spends, resumable, and refused where they mean nothing."""

from __future__ import annotations

import asyncio
import tomllib
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from local_sweeps import Bench, MortalHost, make_experiment, numbers
from sweep_states import Journal

from crucible_tinkex.config import BudgetSection, budget_text, parse_budget
from crucible_tinkex.errors import ConfigError, SessionLostError
from crucible_tinkex.names import SweepPaths
from crucible_tinkex.protocol.wire import AdamParams
from crucible_tinkex.registry import (
    DONE,
    PAUSED,
    RUNNING,
    STOPPED,
    Decision,
    Registry,
    Spent,
    Used,
)
from crucible_tinkex.registry.records import declared
from crucible_tinkex.sweep.attesting import check_affordable
from crucible_tinkex.sweep.deciding.budget import Budget, more_budget
from crucible_tinkex.sweep.deciding.planner import Planner
from crucible_tinkex.sweep.deciding.prices import TABLE as TABLE_OF_OURS
from crucible_tinkex.sweep.deciding.prices import Price, checked_price, price_of
from crucible_tinkex.sweep.orders.hints import going_on, surer
from crucible_tinkex.sweep.results.conclusion import conclusion
from crucible_tinkex.sweep.results.leaderboard import exit_code
from crucible_tinkex.testing import FakeBackend
from crucible_tinkex.training.attempt.allowance import Allowance, Purse
from crucible_tinkex.training.attempt.meter import Meter
from crucible_tinkex.training.recipes.recipe import Update

PRICE = Price(2.0, 1.0, 4.0, "a test", date.today())
ONE = {"space": {"lora.rank": [4]}, "reference": False}


def spent(journal: Journal, trial_id: str, **used: Any) -> None:
    trial = journal.state.trials[trial_id]
    if trial.state != RUNNING:
        journal._tell("attempt", trial_id=trial_id, attempt=trial.attempt + 1)
    journal._tell("spent", trial_id=trial_id, spent=vars(Spent(**used)))


def capped(price: Price | None = None, **caps: Any) -> Journal:
    journal = Journal(search={"space": {"lora.rank": [1, 2, 3, 4]}})
    journal.policy.budget = Budget(BudgetSection(**caps), price)
    journal.fresh_policy = lambda: journal.policy  # type: ignore[method-assign]
    journal.decide(slots=2)
    return journal


@pytest.mark.parametrize(
    ("caps", "used"),
    [
        ({"steps": 10}, {"steps": 6}),
        ({"tokens": 1000}, {"train_tokens": 200, "prefill_tokens": 200, "sample_tokens": 200}),
        ({"dollars": 0.01}, {"train_tokens": 2000, "sample_tokens": 500}),
    ],
)
def test_nothing_new_is_decided_once_a_cap_is_reached(
    caps: dict[str, Any], used: dict[str, int]
) -> None:
    journal = capped(PRICE, **caps)
    first, second = journal.pending
    spent(journal, first, **used)
    assert journal.decide(slots=3) and len(journal.pending) == 3, "not reached yet"
    spent(journal, second, **used)
    decided = journal.decide(slots=3)
    assert {(d.kind, d.by) for d in decided} == {("pause", "budget")} and len(decided) == 3
    (end,) = journal.decide(slots=3)
    (key,) = caps
    assert (end.kind, end.by) == ("end", "budget") and f"budget.{key}" in end.reason
    assert exit_code(journal.state) == 3
    assert journal.policy.resume(journal.state) == [], "a resumed sweep decides the same"
    journal.policy.budget = Budget(BudgetSection())
    assert {d.kind for d in journal.policy.resume(journal.state)} == {"advance"}


def test_spends_of_all_attempts_count_once_each() -> None:
    journal = capped(steps=10)
    first, _ = journal.pending
    for steps in (2, 4, 4):
        spent(journal, first, steps=steps)
    journal._tell("attempt", trial_id=first, attempt=2)
    spent(journal, first, steps=3)
    assert journal.state.spent.steps == journal.state.trials[first].spent.steps == 7


def test_what_proofs_took_counts_once(tmp_path: Path) -> None:
    def proved(tokens: int) -> dict[str, Any]:
        used = Spent(tokens, tokens, seconds=1800.0, steps=6)
        return {**journal.state.meta, "attested": {"findings": {}, "spent": vars(used)}}

    journal = capped(tokens=1000, steps=10, hours=1)
    for tokens in (100, 100, 300):
        journal._tell("amended", meta=proved(tokens), changed=["attested"])
    assert journal.state.spent.tokens == journal.state.proofs.tokens == 600
    assert journal.state.spent.steps == 0, "no step of a trial"
    reached = journal.policy.budget.reached
    assert reached(journal.state, 1700.0) is None
    assert "budget.hours" in (reached(journal.state, 1900.0) or "")
    first, _ = journal.pending
    spent(journal, first, train_tokens=400)
    assert "budget.tokens: 1000 of 1000" in (reached(journal.state, 0.0) or "")


def test_a_proof_that_refused_counts_and_stays_counted() -> None:
    journal = capped(tokens=1000)
    before, total = journal.state.meta, vars(Spent(300, 200, seconds=9.0))
    for _ in range(2):
        journal._tell("proof", spent=total)
    journal._tell("amended", meta=before, changed=["service.attest"])
    assert journal.state.spent.tokens == journal.state.proofs.tokens == 500
    journal._tell("amended", meta={"attested": {"spent": vars(Spent(600, 200))}}, changed=[])
    assert journal.state.spent.tokens == 800


@pytest.mark.parametrize("caps", [{"tokens": 999}, {"dollars": 0.0009, "prices": True}])
def test_a_cap_that_the_proof_would_pass_is_refused(tmp_path: Path, caps: dict[str, Any]) -> None:
    table = tmp_path / "prices.toml"
    table.write_text(TABLE.format(date=date.today()))
    caps = {**caps, "prices": str(table)} if "prices" in caps else caps
    asked = make_experiment(budget=caps)
    (key, *_) = caps
    with pytest.raises(ConfigError, match=rf"budget.{key} .* proof .* service.attest = false"):
        check_affordable(asked, Spent(500, 500), Spent())
    check_affordable(asked, Spent(), Spent(500, 500))
    check_affordable(asked, Spent(100, 100), Spent(100, 100))
    with pytest.raises(ConfigError, match="are left"):
        check_affordable(asked, Spent(200, 200), Spent(400, 400))


def test_wall_time_counts_earlier_runs() -> None:
    journal = capped(hours=1)
    journal._tell("sweep", state="interrupted", wall_s=3000.0)
    decide = journal.policy.decide
    assert not [d for d in decide(journal.state, slots=2, wall_s=500) if d.by]
    assert {d.by for d in decide(journal.state, slots=2, wall_s=601)} == {"budget"}


def test_a_trial_that_used_its_own_budget_is_stopped_and_others_go_on() -> None:
    journal = capped(trial={"steps": 5})
    first, second = journal.pending
    spent(journal, first, steps=5)
    (stop,) = journal.decide(slots=2)
    assert (stop.kind, stop.trial_id, stop.by) == ("stop", first, "budget")
    assert journal.state.trials[first].state == STOPPED
    assert [d.kind for d in journal.decide(slots=2)] == ["start"] and second in journal.pending


def test_no_more_trials_start_than_allowed() -> None:
    journal = capped(trials=3)
    while not journal.state.ended:
        for trial_id in journal.pending:
            journal.train(trial_id, 1.0)
        journal.decide(slots=2)
    assert len(journal.state.trials) == 3 and journal.state.ended_by == "budget"
    journal.policy.budget = Budget(BudgetSection(trials=4))
    journal._tell("run", run="run-2")
    assert [d.kind for d in journal.decide()] == ["start"]


def test_a_budget_that_is_enough_changes_nothing() -> None:
    journal = capped(trials=4, steps=10_000, hours=5)
    while not journal.state.ended:
        for trial_id in journal.pending:
            journal.train(trial_id, 1.0)
        journal.decide(slots=2)
    assert journal.state.ended_by == "" and exit_code(journal.state) == 0


def test_a_sweep_ends_within_what_was_in_flight_and_goes_on_when_extended(tmp_path: Path) -> None:
    whole = Bench(tmp_path / "whole").run()
    bench = Bench(tmp_path / "capped", budget={"steps": 30})
    state = bench.run()
    sent = bench.backend.calls.count("optim_step")
    assert sent == 30, "the step that reaches the cap is the last"
    assert (exit_code(state), state.ended_by, state.spent.steps) == (3, "budget", sent)
    assert {t.state for t in state.open.values()} == {PAUSED}
    before = len(bench.backend.calls)
    assert exit_code(bench.run()) == 3
    assert len(bench.backend.calls) == before, "nothing is spent by trying again"
    bench.experiment = make_experiment(budget={"steps": 1000})
    state = bench.run(changed=["budget.steps"])
    assert numbers(state) == numbers(whole) and exit_code(state) == 0
    assert state.spent.steps == 48


@pytest.mark.parametrize("concurrent", [1, 6])
@pytest.mark.parametrize("ahead", [0, 3])
def test_tokens_pass_a_cap_by_one_step_and_one_evaluation(
    tmp_path: Path, concurrent: int, ahead: int
) -> None:
    """The driver looks every half second; here a step takes a hundredth of one."""
    cap, step, evaluation = 500, 4 * 6, 5 * 6
    bench = Bench(
        tmp_path,
        backend=FakeBackend(delay_s=0.001),
        budget={"tokens": cap},
        train={"submit_ahead": ahead},
        run={"max_concurrent": concurrent, "verify_resume": False},
    )
    state = bench.run()
    assert (exit_code(state), state.ended_by) == (3, "budget")
    assert cap <= state.spent.tokens < cap + step + evaluation
    trained = bench.backend.calls.count("forward_backward") * step
    assert trained <= state.spent.train_tokens <= trained + concurrent * step, "never too few"


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("room", [1, 31, 101])
def test_evaluations_are_decided_on_before_they_begin(
    tmp_path: Path, room: int, generate: bool
) -> None:
    """Six trials come to their first evaluation at once, when the cap leaves `room` tokens. One
    reads 30, and where it is to write completions, at most 20 more, and writes 15."""
    steps, evaluation = 6 * 4 * 6, 65 if generate else 30
    bench = Bench(
        tmp_path,
        backend=FakeBackend(delays={"forward": 0.05, "sample": 0.05}),
        budget={"tokens": steps + room},
        train={"eval_every": 1, "submit_ahead": 0},
        evaluation={"generate": generate},
        search={"space": {"lora.rank": [1, 2, 3, 4, 5, 6]}, "reference": False},
        run={"max_concurrent": 6, "verify_resume": False},
    )
    state = bench.run(per_actor=6)
    assert (exit_code(state), state.ended_by) == (3, "budget")
    assert bench.backend.calls.count("forward") <= 1 + room // 30, "one more than there is room for"
    assert steps + room <= state.spent.tokens < steps + room + evaluation


def test_nobody_waits_for_the_evaluation_of_a_lost_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trial gets no other host, while the one that waits for it holds its slot."""
    bench = Bench(
        tmp_path,
        backend=FakeBackend(delays={"forward": 5.0}),
        budget={"tokens": 2 * 4 * 6 + 30},
        train={"eval_every": 1, "submit_ahead": 0},
        search={"space": {"lora.rank": [1, 2]}, "reference": False},
        run={"max_concurrent": 2, "verify_resume": False},
    )

    async def never(host: MortalHost) -> None:
        await asyncio.Event().wait()

    async def kill(bench: Bench) -> None:
        while bench.backend.calls.count("forward") < 1:
            await asyncio.sleep(0.1)
        await asyncio.sleep(2.0)  # the other waits
        monkeypatch.setattr(MortalHost, "ready", never)
        bench.hosts[1].die()  # that evaluates
        await asyncio.sleep(60.0)
        assert bench.controller
        bench.controller.request_drain()

    state = bench.run(meanwhile=kill)
    assert state.ended_by == "budget"
    assert bench.backend.calls.count("forward") == 2


def test_what_an_evaluation_may_write_keeps_others_waiting_and_no_longer() -> None:
    allowance = Allowance(BudgetSection(tokens=100), None)
    used = Used(Spent(train_tokens=60), Spent(), Spent(prefill_tokens=10, sample_tokens=30))
    assert allowance.postpones(used) and not allowance.refuses(Spent(), used)
    assert not allowance.postpones(used._replace(announced=Spent(prefill_tokens=10)))


def test_a_trials_own_cap_counts_its_evaluations(tmp_path: Path) -> None:
    step, evaluation = 4 * 6, 5 * 6
    bench = Bench(
        tmp_path,
        budget={"trial": {"tokens": 100}},
        train={"eval_every": 1},
        run={"verify_resume": False},
        search={"reference": False},
    )
    state = bench.run()
    assert {t.state for t in state.trials.values()} == {STOPPED}
    spent = [t.spent.tokens for t in state.trials.values()]
    assert min(spent) >= 100 and max(spent) < 100 + step + evaluation


async def test_a_step_that_is_refused_is_not_used(tmp_path: Path) -> None:
    experiment = make_experiment(budget={"steps": 1})
    plan = Planner(experiment, rows=20, fingerprint="f").plan({"lora.rank": 4}, 0, index=1)
    registry = Registry(SweepPaths.of(tmp_path, "s"), "run-1")
    meter, drain = Meter(float), asyncio.Event()
    await registry.create({"sweep": "s"})
    await registry.decide([Decision("start", plan.trial_id, 8, 8, "next", declared(plan))], "op")
    await registry.start_attempt(plan.trial_id)
    purse = Purse(plan, registry, meter, drain, lambda state: None)
    step = Update([], AdamParams(), 1.0, "cross_entropy")
    assert await purse.may_step(1, step)
    meter.steps += 1
    assert not await purse.may_step(1, step) and drain.is_set()
    reached = Budget(experiment.budget).reached(registry.state, 0.0)
    assert reached == "budget.steps: 1 of 1 are used"
    registry.shut()


def test_a_trial_ends_at_its_own_cap_exactly(tmp_path: Path) -> None:
    bench = Bench(tmp_path, backend=FakeBackend(delay_s=0.001), budget={"trial": {"steps": 5}})
    state = bench.run()
    trained = [t for t in state.trials.values() if not t.reference]
    assert {(t.state, t.spent.steps, t.step) for t in trained} == {(STOPPED, 5, 5)}
    assert bench.backend.calls.count("optim_step") == 5 * len(trained)


def test_a_sweep_is_not_stopped_from_measuring_by_a_cap_on_steps() -> None:
    allowance = Allowance(BudgetSection(steps=5, tokens=100, dollars=1.0), (1e4, 1e4, 1e4))
    step = Spent(train_tokens=24, steps=1)

    def used(**sums: int) -> Used:
        return Used(Spent(**sums), Spent())

    assert not allowance.refuses(step, used(train_tokens=24 * 5, steps=5)), "it reaches the cap"
    assert allowance.refuses(step, used(train_tokens=24, steps=6))
    assert not allowance.refuses(Spent(), used(steps=6)), "an evaluation is no step"
    assert allowance.refuses(Spent(), used(prefill_tokens=100))
    assert not allowance.refuses(Spent(), used(prefill_tokens=99))
    dollars = Allowance(BudgetSection(dollars=0.9), (1e4, 1e4, 1e4))
    assert dollars.refuses(Spent(), used(sample_tokens=90))


def test_what_is_repeated_after_a_loss_counts(tmp_path: Path) -> None:
    gone = [("optim_step", 7, SessionLostError("gone"))]
    backend = FakeBackend(delay_s=0.1, failures=gone)
    bench = Bench(tmp_path, backend=backend, search=ONE, budget={"steps": 100})
    state = bench.run()
    assert Counter(t.state for t in state.trials.values()) == {DONE: 1}
    assert state.spent.steps > 8


def test_hours_end_a_sweep_whose_service_only_waits(tmp_path: Path) -> None:
    bench = Bench(tmp_path, backend=FakeBackend(delay_s=10.0), search=ONE, budget={"hours": 0.01})
    bench.clock = lambda: asyncio.get_running_loop().time()
    assert exit_code(bench.run()) == 3


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("5usd", {"budget.dollars": 5.0}),
        ("$5.5 usd", {"budget.dollars": 5.5}),
        ("2h", {"budget.hours": 2.0}),
        ("90min", {"budget.hours": 1.5}),
        ("1e6tok", {"budget.tokens": 1_000_000}),
        ("20trials", {"budget.trials": 20}),
    ],
)
def test_budgets_are_written_with_their_unit(text: str, settings: dict[str, Any]) -> None:
    assert parse_budget(text) == settings


@pytest.mark.parametrize("text", ["", "5", "usd", "5 apples", "-5usd", "1..2h", "0min", "0usd"])
def test_a_budget_without_a_meaning_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget"):
        parse_budget(text)


@pytest.mark.parametrize("amount", [0.000042, 0.004, 0.05, 0.99, 1.0, 3.14, 12.0, 999.5, 4089.0])
@pytest.mark.parametrize("key", ["dollars", "hours", "tokens", "steps", "trials"])
def test_a_budget_is_said_as_it_is_read_and_is_enough(key: str, amount: float) -> None:
    [(name, read)] = parse_budget(budget_text(key, amount)).items()
    assert name == f"budget.{key}"
    assert amount <= read + 1e-9 and read <= 1.2 * amount + 1.0


@pytest.mark.parametrize("caps", [{"steps": 20}, {"tokens": 1}, {"hours": 0.01}, {"dollars": 1e-5}])
def test_what_is_proposed_after_a_cap_is_more_of_the_same(caps: dict[str, float]) -> None:
    journal = capped(PRICE, **caps)
    spent(journal, next(iter(journal.state.trials)), train_tokens=30, steps=45)
    reached = journal.policy.budget.reached(journal.state, 100.0)
    assert reached
    more = Budget(BudgetSection(**{**caps, **_caps(more_budget(reached, 4))}), PRICE)
    assert more.reached(journal.state, 100.0) is None


@pytest.mark.parametrize("words", ["12 are started", "no more for the confirmation"])
def test_what_is_proposed_after_a_cap_on_trials_is_more_trials(words: str) -> None:
    assert more_budget(f"budget.trials: {words}", 12) == "24trials"


def test_a_sweep_without_room_for_its_confirmation_says_how_it_goes_on(tmp_path: Path) -> None:
    search = {"space": {"lora.rank": [1, 2]}, "confirm": 2, "confirm_top": 2}
    journal = Journal(search=search)
    journal.policy.budget = Budget(BudgetSection(trials=2))
    journal.fresh_policy = lambda: journal.policy  # type: ignore[method-assign]
    journal.decide(slots=4)
    for trial_id in list(journal.state.trials):
        journal.train(trial_id, 1.0)
    journal.decide(slots=4)
    paths = SweepPaths.of(tmp_path, "mine")
    assert going_on(journal.state, paths).endswith("--budget 4trials")


def test_a_sweep_with_one_seed_each_says_how_its_leaders_are_told_apart(tmp_path: Path) -> None:
    paths = SweepPaths.of(tmp_path, "mine")
    state = Bench(tmp_path).run()
    command = surer(state, paths)
    assert command and command.startswith(f"crucible extend mine --storage {tmp_path} --set ")
    extend, resume = command.split(" && ")
    _, _, setting = extend.rpartition(" ")
    assert resume == f"crucible resume mine --storage {tmp_path}"
    confirmed = {setting.partition("=")[0].removeprefix("search."): setting.partition("=")[2]}
    more = Bench(tmp_path / "more", search={**confirmed, "confirm_top": 2}).run()
    assert surer(more, paths) is None and any(t.phase == "confirm" for t in more.trials.values())


def test_it_is_said_of_what_two_seeds_leave_open_too_and_not_of_one_configuration(
    tmp_path: Path,
) -> None:
    paths = SweepPaths.of(tmp_path, "mine")
    two = Bench(tmp_path / "two", search={"seeds": [0, 1]}).run()
    assert conclusion(two).kind == "open" and surer(two, paths)
    one = Bench(tmp_path / "one", search={"space": {"lora.rank": [4]}}).run()
    assert surer(one, paths) is None


def _caps(text: str) -> dict[str, Any]:
    return {key.removeprefix("budget."): value for key, value in parse_budget(text).items()}


@pytest.mark.parametrize("caps", [{"steps": 0}, {"dollars": -1}, {"hours": 0}, {"moons": 3}])
def test_a_cap_of_nothing_is_refused(caps: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="budget"):
        make_experiment(budget=caps)


TABLE = """
date = {date}
source = "a page"
[models."nano"]
train = 2.0
prefill = 0.5
sample = 1
"""


def priced(folder: Path, text: str, **caps: Any) -> Any:
    (folder / "prices.toml").write_text(text)
    budget = {"dollars": 5, "prices": str(folder / "prices.toml"), **caps}
    return make_experiment(budget=budget)


def test_dollars_follow_the_users_table(tmp_path: Path) -> None:
    found = price_of(priced(tmp_path, TABLE.format(date=date.today())))
    assert found and found.source == "a page"
    assert found.of(Spent(1_000_000, 2_000_000, 500_000)) == 2.0 + 1.0 + 0.5


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("date = 1", "'date' is missing or wrong"),
        ("date = 2026-01-01\n[models]", "'source' is missing or wrong"),
        ("x", "not valid TOML"),
        (TABLE.replace("2.0", "-2.0"), "needs train"),
        (TABLE.replace("sample = 1", ""), "needs sample"),
        (TABLE.replace("2.0", "nan"), "needs train"),
        (TABLE.replace("2.0", "inf"), "needs train"),
        (TABLE.replace("{date}", "{date}T10:00:00"), "'date' is missing or wrong"),
        (TABLE.replace("{date}", "2999-01-01"), "which is yet to come"),
        (TABLE.replace("nano", "other"), "no price is known for 'nano'"),
    ],
)
def test_a_table_that_says_nothing_certain_is_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        checked_price(priced(tmp_path, text.replace("{date}", str(date.today()))))


def test_our_table_is_of_hosted_tinker_alone_and_grows_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    hosted = make_experiment(model={"base": "Qwen/Qwen3-8B"}, budget={"dollars": 5})
    found = checked_price(hosted)
    assert found and found.source.startswith("https://") and found.storage
    assert min(found.per_million) > 0
    for base in tomllib.loads(TABLE_OF_OURS.read_text(encoding="utf-8"))["models"]:
        price = price_of(make_experiment(model={"base": base}), today=found.dated)
        assert price and 0 < price.prefill < price.train and price.prefill < price.sample, base
    assert price_of(hosted, today=found.dated + timedelta(days=400)) is None
    elsewhere = {"base_url": "https://example.org"}
    assert price_of(make_experiment(model={"base": "Qwen/Qwen3-8B"}, service=elsewhere)) is None
    monkeypatch.setenv("TINKER_BASE_URL", "https://example.org")
    assert price_of(hosted) is None
    assert price_of(make_experiment(model={"base": "nano"})) is None


def test_an_old_table_is_refused_and_so_is_an_unknown_price(tmp_path: Path) -> None:
    old = TABLE.format(date=date.today() - timedelta(days=400))
    with pytest.raises(ConfigError, match="more than a year old"):
        checked_price(priced(tmp_path, old))
    with pytest.raises(ConfigError, match="no price is known"):
        checked_price(make_experiment(budget={"dollars": 5}))
    with pytest.raises(ConfigError, match="cannot read"):
        checked_price(make_experiment(budget={"prices": str(tmp_path / "none.toml")}))
    assert checked_price(make_experiment()) is None
    with pytest.raises(ConfigError, match="needs storage"):
        text = TABLE.format(date=date.today()).replace("[models", 'storage = "a lot"\n[models')
        checked_price(priced(tmp_path, text))
    embedded = make_experiment(service={"base_url": "embedded"}, budget={"dollars": 5})
    assert checked_price(embedded) is not None
