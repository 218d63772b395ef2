"""Steps of one's own on a trained trial: results, hooks, whose fault an error is, what is again."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from trial_bench import DATA, STEPS, Bench, make_plan

from crucible_tinkex import user_calls
from crucible_tinkex.config import Experiment
from crucible_tinkex.config.sweep.steps import StepsSection
from crucible_tinkex.errors import ConfigError, ServiceError, TrialFailedError
from crucible_tinkex.registry import DONE, FAILED
from crucible_tinkex.training.harness import Hooks, Plan, StepContext, register_training_step
from crucible_tinkex.training.outcome import Outcome, Verdict
from crucible_tinkex.training.plan import TrialPlan, trial_identity
from crucible_tinkex.training.trial_steps import check_steps

MODULE = "steps_of_the_test"


@pytest.fixture
def steps() -> Iterator[ModuleType]:
    """The user's module; a test puts its functions there."""
    module = ModuleType(MODULE)
    sys.modules[MODULE] = module
    yield module
    del sys.modules[MODULE]


def planned(*names: str, reference: bool = False, **section: Any) -> TrialPlan:
    after = tuple(f"{MODULE}:{name}" for name in names)
    plan = make_plan(reference=reference)
    return changed(plan, steps=StepsSection(after=after, **section))


def changed(plan: TrialPlan, **sections: Any) -> TrialPlan:
    return replace(plan, experiment=plan.experiment.model_copy(update=sections))


async def ran(plan: TrialPlan) -> tuple[Bench, Outcome]:
    bench = Bench()
    bench.plan = plan
    return bench, await bench.run()


def stages(bench: Bench) -> list[tuple[str, Any]]:
    return [(e["name"], e["extra"].get("result")) for e in bench.sink.of_kind("stage")]


async def test_they_see_the_trained_trial_and_what_they_find_is_told(steps: ModuleType) -> None:
    seen: list[StepContext] = []

    async def look(ctx: StepContext) -> dict[str, Any]:
        seen.append(ctx)
        return {"right": 3, "share": 0.5, "text": "fine"}

    def think(ctx: StepContext) -> float:
        assert threading.current_thread() is not threading.main_thread()
        return ctx.results["look"]["share"] * 2

    steps.look, steps.think = look, think  # type: ignore[attr-defined]
    bench, outcome = await ran(planned("look", "think"))
    assert (outcome.verdict, bench.trial.state) == (Verdict.ADVANCED, DONE)
    assert stages(bench) == [("look", {"right": 3, "share": 0.5, "text": "fine"}), ("think", 1.0)]
    assert bench.sink.curve("step/look/share") == {STEPS: 0.5}
    assert bench.sink.curve("step/look/right") == {STEPS: 3.0}
    assert bench.sink.curve("step/think/value") == {STEPS: 1.0}
    (ctx,) = seen
    assert (ctx.session.trial_id, ctx.session.step) == (bench.plan.trial_id, STEPS)
    assert (ctx.trace_id, ctx.seed) == (f"{bench.plan.trial_id}-1", 0)
    assert ctx.dataset is bench.data
    training = ctx.results["tinkex_training"]
    assert (training["total_steps"], training["trace_id"]) == (STEPS, ctx.trace_id)
    assert training["final_metrics"] == bench.trial.results[STEPS]


async def test_they_wait_for_the_last_step_and_its_checkpoint(steps: ModuleType) -> None:
    bench = Bench()
    called: list[int] = []

    def look(ctx: StepContext) -> None:
        called.append(bench.trial.checkpoints[-1].step)

    steps.look = look  # type: ignore[attr-defined]
    bench.plan = planned("look")
    host = bench.host()
    await host.advance(bench.plan, 4)
    assert called == []
    await host.advance(bench.plan, STEPS)
    assert called == [STEPS]


async def test_the_untrained_base_has_none(steps: ModuleType) -> None:
    steps.look = lambda ctx: 1 / 0  # type: ignore[attr-defined]
    bench, outcome = await ran(planned("look", reference=True))
    assert outcome.verdict is Verdict.ADVANCED
    assert stages(bench) == []


def hangs(ctx: StepContext) -> None:
    while True:
        pass


async def waits(ctx: StepContext) -> None:
    await asyncio.Event().wait()


def exits(ctx: StepContext) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (hangs, "'look' did not return within 0.2 s"),
        (waits, "'look' did not return within 0.2 s"),
        (exits, "unexpected KeyboardInterrupt"),
    ],
)
async def test_one_that_hangs_or_exits_fails_its_trial(
    steps: ModuleType, step: Any, said: str
) -> None:
    steps.look = step  # type: ignore[attr-defined]
    plan = planned("look")
    run = plan.experiment.run.model_copy(update={"step_timeout_s": 0.2})
    bench, outcome = await ran(changed(plan, run=run))
    assert (outcome.verdict, bench.trial.state) == (Verdict.FAILED, FAILED)
    assert said in str(outcome.error)


ROWS = [{"prompt": f"say {i}", "completion": f" {i}"} for i in range(4)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of one that knows bytes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {c: i for i, c in enumerate([*sorted(ByteLevel.alphabet()), "<end>"])}
    made = tokenizers.Tokenizer(BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    made.add_special_tokens(["<end>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return str(folder)


async def test_of_one_that_ran_out_of_its_time_nothing_works_on(
    steps: ModuleType, tokenizer: str
) -> None:
    """What it waits for is ended, then its thread is; one that holds on is given no more."""
    bench = Bench(data=replace(DATA, tokenizer=tokenizer))
    ends: list[BaseException] = []
    ended = threading.Event()

    def look(ctx: StepContext) -> None:
        bench.backend.hold()
        for _ in range(2):
            try:
                ctx.session.evaluate(ROWS)
            except (CancelledError, TrialFailedError, SystemExit) as end:
                ends.append(end)
        ended.set()

    steps.look = look  # type: ignore[attr-defined]
    plan = planned("look")
    bench.plan = changed(plan, run=plan.experiment.run.model_copy(update={"step_timeout_s": 0.2}))
    outcome = await bench.run()
    assert "'look' did not return within 0.2 s" in str(outcome.error)
    assert await asyncio.to_thread(ended.wait, 10)
    assert isinstance(ends[0], CancelledError | SystemExit)
    assert "the step has ended" in str(ends[1])


# --- errors and hooks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fails", "on_error", "state", "calls"),
    [
        (1, "abort", FAILED, 1),
        (1, "skip", DONE, 1),
        (2, "retry", DONE, 3),
        (99, "retry", FAILED, 4),
    ],
)
async def test_a_step_that_raises_harms_its_trial_at_most(
    steps: ModuleType, fails: int, on_error: str, state: str, calls: int
) -> None:
    attempts: list[int] = []

    def flaky(ctx: StepContext) -> int:
        attempts.append(ctx.attempt)
        if len(attempts) <= fails:
            raise ValueError("not yet")
        return 7

    steps.flaky = flaky  # type: ignore[attr-defined]
    steps.last = lambda ctx: list(ctx.results)[1:]  # type: ignore[attr-defined]
    bench = Bench()
    host, other = bench.host(), make_plan(seed=1, index=1)
    bench.plan = planned("flaky", "last", on_error=on_error)
    outcome, beside = await asyncio.gather(
        host.advance(bench.plan, STEPS), host.advance(other, STEPS)
    )
    assert len(attempts) == calls
    assert bench.trial.state == state
    assert (beside.verdict, bench.registry.trial(other.trial_id).state) == (Verdict.ADVANCED, DONE)
    if state == FAILED:
        assert outcome.verdict is Verdict.FAILED
        assert "step flaky: ValueError: not yet" in str(outcome.error)
        assert "crucible retry" in str(outcome.error)
    else:
        assert stages(bench)[-1] == ("last", [] if on_error == "skip" else ["flaky"])
    errors = [e["extra"]["error"] for e in bench.sink.of_kind("stage") if "error" in e["extra"]]
    assert errors == ["ValueError: not yet"] * min(fails, calls)


async def test_hooks_are_called_around_steps_and_decide(steps: ModuleType) -> None:
    heard: list[Any] = []

    def hooks() -> Hooks:
        return Hooks(
            before=lambda ctx, name: heard.append(("before", name)),
            after=lambda ctx, name, result: heard.append(("after", name, result)),
            on_error=lambda error, ctx, name: "skip",
        )

    def bad(ctx: StepContext) -> None:
        raise ValueError("no")

    steps.hooks, steps.bad, steps.good = hooks, bad, lambda ctx: 1  # type: ignore[attr-defined]
    bench, _ = await ran(planned("bad", "good", hooks=f"{MODULE}:hooks"))
    assert heard == [("before", "bad"), ("before", "good"), ("after", "good", 1)]
    assert bench.trial.state == DONE


async def test_hooks_wait_in_threads_and_have_a_session_as_steps_have(
    steps: ModuleType, tokenizer: str
) -> None:
    heard: list[float] = []
    loop = asyncio.get_running_loop()

    def before(ctx: StepContext, name: str) -> None:
        """Which the loop would wait for in vain, if this were its thread."""
        heard.append(ctx.session.evaluate(ROWS).metrics["eval/nll"])
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(5)

    async def after(ctx: StepContext, name: str, result: Any) -> None:
        heard.append((await ctx.session.evaluate(ROWS)).metrics["eval/nll"])

    steps.hooks = lambda: Hooks(before=before, after=after)  # type: ignore[attr-defined]
    steps.look = lambda ctx: 1  # type: ignore[attr-defined]
    bench = Bench(data=replace(DATA, tokenizer=tokenizer))
    bench.plan = planned("look", hooks=f"{MODULE}:hooks")
    await bench.run()
    assert bench.trial.state == DONE
    assert heard[0] == heard[1] > 0


@pytest.mark.parametrize("which", ["before", "after", "on_error"])
async def test_a_hook_that_takes_too_long_fails_its_trial(
    steps: ModuleType, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.setattr(user_calls, "DEADLINE_S", 0.2)

    def hooks() -> Hooks:
        return Hooks(**{which: lambda *about: time.sleep(30)})

    steps.hooks = hooks  # type: ignore[attr-defined]
    steps.look = lambda ctx: 1 / 0 if which == "on_error" else 1  # type: ignore[attr-defined]
    bench, outcome = await ran(planned("look", hooks=f"{MODULE}:hooks"))
    assert (outcome.verdict, bench.trial.state) == (Verdict.FAILED, FAILED)
    assert f"hook {which} did not return within 0.2 s" in str(outcome.error)


async def test_the_infrastructures_fault_is_tried_again_by_the_next_attempt(
    steps: ModuleType,
) -> None:
    calls: list[str] = []

    async def look(ctx: StepContext) -> int:
        calls.append(ctx.trace_id)
        if len(calls) == 1:
            raise ServiceError("out of reach")
        return 1

    steps.look = look  # type: ignore[attr-defined]
    bench = Bench()
    bench.plan = planned("look", on_error="skip")
    outcome = await bench.run()
    assert outcome.verdict is Verdict.RETRY
    assert (await bench.run()).verdict is Verdict.ADVANCED
    assert calls == [f"{bench.plan.trial_id}-1", f"{bench.plan.trial_id}-2"]
    assert len(bench.sink.curve("train/nll")) == STEPS
    starts = [e["extra"]["resumed_step"] for e in bench.sink.of_kind("session_start")]
    assert starts == [0, STEPS], "nothing is trained again"


async def test_a_step_that_is_cut_off_by_a_drain_runs_again(steps: ModuleType) -> None:
    calls: list[int] = []

    async def slow(ctx: StepContext) -> int:
        calls.append(1)
        if len(calls) == 1:
            host.drain()
            await asyncio.sleep(60)
        return 1

    steps.slow = slow  # type: ignore[attr-defined]
    bench = Bench()
    bench.plan = planned("slow")
    host = bench.host(drain_s=0.0)
    assert (await host.advance(bench.plan, STEPS)).verdict is Verdict.DRAINED
    assert (await bench.run()).verdict is Verdict.ADVANCED
    assert len(calls) == 2
    assert stages(bench) == [("slow", 1)]


async def test_results_that_json_cannot_hold_fail_the_trial(steps: ModuleType) -> None:
    steps.odd = lambda ctx: {"x": object()}  # type: ignore[attr-defined]
    _, outcome = await ran(planned("odd"))
    assert "step 'odd' gave what JSON cannot hold" in str(outcome.error)


# --- a harness's plan ----------------------------------------------------------------------------


def planned_by(name: str, **section: Any) -> TrialPlan:
    return changed(make_plan(), steps=StepsSection(plan=f"{MODULE}:{name}", **section))


async def test_a_plan_that_only_trains_is_done_when_it_has(steps: ModuleType) -> None:
    steps.define = register_training_step  # type: ignore[attr-defined]
    bench, outcome = await ran(planned_by("define"))
    assert (outcome.verdict, bench.trial.state, bench.trial.error) == (Verdict.ADVANCED, DONE, None)
    assert stages(bench) == []


async def test_a_plan_names_the_steps_as_for_the_harness(steps: ModuleType) -> None:
    def define(plan: Plan) -> None:
        register_training_step(plan, batch_size=4)
        plan.add_step("look", lambda ctx: ctx.results["tinkex_training"]["total_steps"])
        plan.add_step("think", think, {"factor": 2})

    async def think(ctx: StepContext) -> int:
        return 2 * int(ctx.results["look"])

    steps.define = define  # type: ignore[attr-defined]
    bench, outcome = await ran(planned_by("define"))
    assert outcome.verdict is Verdict.ADVANCED
    assert stages(bench) == [("look", STEPS), ("think", 2 * STEPS)]
    assert bench.sink.curve("step/think/value") == {STEPS: 2.0 * STEPS}


async def test_a_plan_may_be_an_object_with_hooks_that_decide(steps: ModuleType) -> None:
    heard: list[str] = []
    hooks = Hooks(
        before=lambda ctx, name: heard.append(name), on_error=lambda error, ctx, name: "skip"
    )
    steps.plan = Plan("p", hooks=hooks).add_step("bad", lambda ctx: 1 / 0)  # type: ignore[attr-defined]
    steps.plan.add_step("good", lambda ctx: 1)
    bench, _ = await ran(planned_by("plan"))
    assert heard == ["bad", "good"]
    assert stages(bench)[-1] == ("good", 1)
    assert bench.trial.state == DONE


async def test_a_plans_steps_and_hooks_are_of_one_call_of_its_function(steps: ModuleType) -> None:
    def define(plan: Plan) -> Plan:
        told: list[str] = []
        hooks = Hooks(before=lambda ctx, name: told.append(name))
        return Plan("p", hooks=hooks).add_step("look", lambda ctx: list(told))

    steps.define = define  # type: ignore[attr-defined]
    bench, _ = await ran(planned_by("define"))
    assert stages(bench) == [("look", ["look"])]


def _plans() -> dict[str, Any]:
    """What is refused, by what is said of it."""

    def before(plan: Plan) -> None:
        plan.add_step("early", len)
        register_training_step(plan)

    def twice(plan: Plan) -> None:
        register_training_step(plan)
        register_training_step(plan, name="again")

    def trains(**options: Any) -> Any:
        return lambda plan: register_training_step(plan, **options)

    return {
        "no step stands before": before,
        "trains once": twice,
        "is called 'tinkex_training'": trains(name="t"),
        "batch_size = 7, but train.batch_size = 4": trains(batch_size=7),
        "adam_params, but .optimizer. says another": trains(adam_params={"lr": 0.5}),
        "no eval_dataset; data.eval says it": trains(eval_dataset=[]),
        "no on_step_end": trains(on_step_end=print),
        "train has no option 'epoch'": trains(epoch=1),
        "a step 'a' already": lambda plan: plan.add_step("a", len).add_step("a", len),
        "it raised ZeroDivisionError": lambda plan: 1 / 0,
        "a Plan, or a function": 3,
        "repeats search.seeds": Plan("p", repeats=2),
        "search.space or search.configs": Plan("p", {"low": {}, "high": {}}),
    }


@pytest.mark.parametrize("message", list(_plans()))
def test_a_plan_that_no_trial_can_run_is_refused(steps: ModuleType, message: str) -> None:
    steps.wrong = _plans()[message]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=f"steps.plan '{MODULE}:wrong': .*{message}"):
        check_steps(planned_by("wrong").experiment)


def test_a_varied_setting_is_not_the_plans_to_say(steps: ModuleType) -> None:
    steps.plan = lambda plan: register_training_step(plan, batch_size=4)  # type: ignore[attr-defined]
    experiment = planned_by("plan").experiment
    check_steps(experiment)
    search = experiment.search.model_copy(update={"space": {"train.batch_size": (4, 8)}})
    with pytest.raises(ConfigError, match=r"the search varies train\.batch_size"):
        check_steps(experiment.model_copy(update={"search": search}))


def test_hooks_have_one_place(steps: ModuleType) -> None:
    steps.plan = Plan("p", hooks=Hooks(before=print)).add_step("a", len)  # type: ignore[attr-defined]
    steps.hooks = Hooks  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"steps\.hooks: the plan has hooks already"):
        check_steps(planned_by("plan", hooks=f"{MODULE}:hooks").experiment)


def test_functions_may_be_given_themselves_where_others_can_import_them() -> None:
    section = StepsSection.model_validate({"plan": register_training_step, "hooks": Hooks})
    assert section.plan == "crucible_tinkex.training.harness.training:register_training_step"
    assert section.hooks == "crucible_tinkex.training.harness.plan:Hooks"
    assert StepsSection.model_validate({"after": [check_steps]}).after == (
        "crucible_tinkex.training.trial_steps:check_steps",
    )
    for local in (lambda plan: None, Plan("p"), 3):
        with pytest.raises(ConfigError, match="at the top of a module of its own"):
            identity(steps={"plan": local})


# --- identity and bad input ----------------------------------------------------------------------


def identity(**declared: Any) -> str:
    experiment = Experiment.build(
        {"name": "s", "model": {"base": "nano"}, "data": {"train": "x"}, **declared}
    )
    return trial_identity(experiment, 0, "f", total_steps=3)


def test_steps_are_a_part_of_the_trial() -> None:
    plain = identity()
    assert identity(steps={}) == identity(steps={"after": ["tinkex_training"]}) == plain
    one, two = identity(steps={"after": ["a:b"]}), identity(steps={"after": ["a:c"]})
    assert identity(steps={"after": ["tinkex_training", "a:b"]}) == one
    planned = identity(steps={"plan": "a:b"})
    assert len({plain, one, two, planned}) == 4
    assert one == "ffc41e8574ab", "steps of an older sweep are the same steps"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"after": ["look"]}, "must be written module:function"),
        ({"after": ["a:look", "tinkex_training"]}, "only stands first"),
        ({"after": ["a:tinkex_training"]}, "only stands first"),
        ({"after": ["a:look", "b:look"]}, "two steps 'look'"),
        ({"after": ["a:_look"]}, "step name"),
        ({"plan": "plan"}, "must be written module:function"),
        ({"plan": "a:b", "after": ["a:c"]}, "two ways to say it"),
        ({"hooks": "hooks"}, "must be written module:function"),
        ({"on_error": "ignore"}, "on_error"),
        ({"before": ["a:b"]}, "before"),
    ],
)
def test_a_section_that_is_wrong_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        identity(steps=section)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"after": ("no_such_module:f",)}, "step 'no_such_module:f'.*Python path"),
        ({"after": (f"{MODULE}:missing",)}, "has no missing"),
        ({"after": (f"{MODULE}:number",)}, "cannot be called"),
        ({"hooks": f"{MODULE}:other"}, "it must give harness.Hooks"),
    ],
)
def test_functions_are_looked_up_before_anything_is_spent(
    steps: ModuleType, section: dict[str, Any], message: str
) -> None:
    steps.number, steps.other = 3, dict  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=message):
        check_steps(make_plan().experiment.model_copy(update={"steps": StepsSection(**section)}))
