"""Steps of one's own on a trial of a sweep, when it was trained to its last step: `[steps]`.

They are a harness's steps, run by the harness in the session's process: hooks, retries and context
are the same, and a function that looks at a `TinkexSession` there looks at a trial here. There are
none before the training: a step that changed the weights would make them another function than that
of (experiment, seed, step), which no resumed attempt could repeat, and the untrained base has a
trial of its own. Steps run once the last checkpoint is committed, so an attempt that is lost among
them runs them again on the same weights. What they find is told as events (`stage`, and numbers as
`step/<name>/...`). One that raises fails its trial only; what is the infrastructure's fault is
tried again by a new attempt, as everywhere.

Not for the path of every session: it is imported where an experiment has steps.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from crucible_tinkex.client.interface import SamplingClient, TrainingClient
from crucible_tinkex.config import Experiment
from crucible_tinkex.config.sweep.steps import TRAINING, StepsSection, step_name
from crucible_tinkex.datasets import Tokenizer, load_tokenizer
from crucible_tinkex.errors import ConfigError, CrucibleError, TrialFailedError
from crucible_tinkex.training.adapter import AsyncTinkexAdapter
from crucible_tinkex.training.adapter.rows import load
from crucible_tinkex.training.attempt.reporter import Reporter
from crucible_tinkex.training.data import SweepData
from crucible_tinkex.training.harness.plan import (
    DEFAULT_CONDITION,
    Hooks,
    OnError,
    Plan,
    StepContext,
)
from crucible_tinkex.training.harness.running import arun
from crucible_tinkex.training.harness.state import as_json
from crucible_tinkex.training.harness.sweeping import check_plan, load_plan, steps_after
from crucible_tinkex.training.outcome import Verdict, judge
from crucible_tinkex.training.plan import TrialPlan
from crucible_tinkex.training.tinkex.evaluating import Scorer, asked, measured
from crucible_tinkex.training.tinkex.results import Checkpoint, Completion, EvaluationResult
from crucible_tinkex.training.tinkex.service.samplers import Prompt, as_prompts, complete
from crucible_tinkex.user_calls import called, within
from crucible_tinkex.user_code import load_function

T = TypeVar("T")


def check_steps(experiment: Experiment) -> None:
    """Raises `ConfigError` for a function that cannot be imported, for hooks that are none, and for
    a plan that no trial of the experiment can run."""
    section = experiment.steps
    plan = _plan(section)
    if section.plan is not None and plan is not None:
        check_plan(section.plan, plan, experiment)
    _functions(section, plan)
    _hooks(section, plan)


async def run_steps(
    plan: TrialPlan,
    data: SweepData,
    client: TrainingClient,
    report: Reporter,
    result: Mapping[str, float],
) -> None:
    """After a training with this `result`. Raises `TrialFailedError` where a step ends the trial,
    and what the infrastructure raised."""
    section = plan.experiment.steps
    given = _plan(section)
    functions = _functions(section, given)
    if not functions:
        return  # a plan may have its training only
    trace_id = f"{plan.trial_id}-{report.attempt}"
    trained = {"final_metrics": result, "total_steps": plan.total_steps, "trace_id": trace_id}
    session = TrialSession(plan, data, client, report)
    run = _Steps(plan.experiment, functions, _hooks(section, given), session, trained)
    results = await arun(
        plan.run_name,
        run.define,
        session=session,
        dataset=data,
        conditions={DEFAULT_CONDITION: plan.values},
        seed=plan.seed,
        hooks=run.hooks,
        trace_id=trace_id,
    )
    if run.fault is not None:
        raise run.fault
    for cell in results.failed:
        raise TrialFailedError(
            f"step {cell.error}; the trained weights are saved: `crucible retry` runs the steps "
            "again, also with mended ones as long as no trial has ended with what they found"
        )


class _Steps:
    """The functions and hooks of an experiment, telling what they find."""

    def __init__(
        self,
        experiment: Experiment,
        functions: Mapping[str, Callable[..., Any]],
        hooks: Hooks,
        session: TrialSession,
        trained: Mapping[str, Any],
    ) -> None:
        self._section = experiment.steps
        self._limit_s = experiment.run.step_timeout_s
        self._functions = functions
        self._trained = trained
        self._session = session
        self._report = session.report
        self._given = hooks
        self.hooks = replace(
            hooks,
            before=self._hooked("before", hooks.before),
            after=self._hooked("after", hooks.after),
            on_error=self._decide,
        )
        self.fault: CrucibleError | None = None
        """The infrastructure's."""

    def define(self, plan: Plan) -> None:
        for name, function in self._functions.items():
            plan.add_step(name, self._telling(name, function))

    def _telling(
        self, name: str, function: Callable[[StepContext], Any]
    ) -> Callable[[StepContext], Coroutine[Any, Any, Any]]:
        async def step(ctx: StepContext) -> Any:
            ctx = replace(ctx, results={TRAINING: self._trained, **ctx.results})
            async with within(self._limit_s, what=f"step {name!r}"):
                result = await self._called(f"step {name!r}", function, ctx)
            as_json(name, result)  # before anything is told
            self._tell(name, ctx, result=result)
            numbers = result.items() if isinstance(result, Mapping) else [("value", result)]
            measures = {
                f"step/{name}/{key}": float(value)
                for key, value in numbers
                if isinstance(value, int | float)
            }
            self._report.measure("evaluation", measures)
            return result

        return step

    def _hooked(
        self, what: str, hook: Callable[..., object] | None
    ) -> Callable[..., object] | None:
        return None if hook is None else partial(self._called, f"hook {what}", hook)

    async def _called(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The user's function, of which a plain one is given a session that blocks. It may take any
        time; cancelled, nothing of it goes on."""
        if inspect.iscoroutinefunction(function):
            return await function(*arguments)
        blocking = BlockingTrialSession(self._session)
        given = [
            replace(a, session=blocking) if isinstance(a, StepContext) else a for a in arguments
        ]
        try:
            return await called(function, *given, what=what, deadline_s=math.inf)
        finally:
            await blocking.aclose()

    async def _decide(self, error: BaseException, ctx: StepContext, name: str) -> OnError:
        if isinstance(error, CrucibleError) and judge(error) is not Verdict.FAILED:
            self.fault = error
            return "abort"
        own = self._given.on_error
        decision: OnError = self._section.on_error
        if own is not None:
            decision = await self._called("hook on_error", own, error, ctx, name)
        self._tell(name, ctx, error=f"{type(error).__name__}: {error}", decision=decision)
        return decision

    def _tell(self, name: str, ctx: StepContext, **found: Any) -> None:
        extra = {"trace_id": ctx.trace_id, "attempt": ctx.attempt, **found}
        self._report.emit("stage", name=name, extra=extra)


class TrialSession:
    """A trained trial as steps see it: a `TinkexSession` whose weights stay as they are."""

    status = "completed"

    def __init__(
        self, plan: TrialPlan, data: SweepData, client: TrainingClient, report: Reporter
    ) -> None:
        self._plan = plan
        self._data = data
        self._client = client
        self._sampler: SamplingClient | None = None
        self._tokenizer: Tokenizer | None = None
        self.report = report
        self.adapter = AsyncTinkexAdapter()

    @property
    def trial_id(self) -> str:
        return self._plan.trial_id

    @property
    def step(self) -> int:
        return self.report.step

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises `ConfigError` where it cannot be had."""
        if self._tokenizer is None:
            if self._data.tokenizer is None:
                raise ConfigError("steps need the tokenizer of the sweep, which is not known")
            self._tokenizer = load_tokenizer(self._data.tokenizer)
        return self._tokenizer

    async def evaluate(
        self,
        dataset: str | Path | Sequence[Any],
        *,
        generate: bool = True,
        max_rows: int | None = None,
        scorers: Mapping[str, Scorer] | None = None,
        **options: Any,
    ) -> EvaluationResult:
        """As `TinkexSession.evaluate`."""
        section, sampling = asked(generate, options)
        found = await measured(
            self,
            load(dataset)[:max_rows],
            None,
            section,
            max_length=self._plan.experiment.train.max_length,
            scorers=scorers or {},
            params=self.adapter.sampling_params(**sampling),
        )
        return EvaluationResult(self.trial_id, "default", found.metrics, found.examples)

    async def infer(
        self, prompts: Prompt | Sequence[Prompt], *, num_samples: int = 1, **sampling: Any
    ) -> list[Completion]:
        """As `TinkexSession.infer`."""
        params = self.adapter.sampling_params(**sampling)
        _, sampler = await self.to_evaluate(None, samples=True)
        assert sampler is not None
        return await complete(sampler, self.tokenizer, as_prompts(prompts), params, num_samples)

    async def to_evaluate(
        self, checkpoint: Checkpoint | None, *, samples: bool
    ) -> tuple[TrainingClient, SamplingClient | None]:
        """Clients of the weights as they are."""
        if samples and self._sampler is None:
            self._sampler = await self._client.sampler()
        return self._client, self._sampler if samples else None


class BlockingTrialSession:
    """The same for a plain function, which runs in a thread; its own until it has ended. Made on
    the loop of the session. Raises `TrialFailedError` after `aclose`."""

    def __init__(self, live: TrialSession) -> None:
        self.live = live
        self._loop = asyncio.get_running_loop()
        self._working: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.status = live.status
        self.trial_id = live.trial_id
        self.step = live.step
        self.adapter = live.adapter

    @property
    def tokenizer(self) -> Tokenizer:
        return self.live.tokenizer

    def evaluate(self, dataset: str | Path | Sequence[Any], **options: Any) -> EvaluationResult:
        return self._run(self.live.evaluate(dataset, **options))

    def infer(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[Completion]:
        return self._run(self.live.infer(prompts, **options))

    async def aclose(self) -> None:
        """End what it still does, for a thread that was left behind, and do no more."""
        self._closed = True
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(self._worked(work), self._loop).result()

    async def _worked(self, work: Coroutine[Any, Any, T]) -> T:
        if self._closed:
            work.close()
            raise TrialFailedError("the step has ended, and its session with it")
        task = asyncio.ensure_future(work)
        self._working.add(task)
        try:
            return await task
        finally:
            self._working.discard(task)


def _plan(section: StepsSection) -> Plan | None:
    """Loaded once, so that its steps and its hooks are of the same call of the user's function."""
    return None if section.plan is None else load_plan(section.plan)


def _functions(section: StepsSection, plan: Plan | None) -> dict[str, Callable[..., Any]]:
    if plan is not None:
        return {step.name: step.function for step in steps_after(plan)}
    return {step_name(step): load_function(step, what="step") for step in section.after}


def _hooks(section: StepsSection, plan: Plan | None) -> Hooks:
    planned = Hooks() if plan is None else plan.hooks
    if section.hooks is None:
        return planned
    if planned != Hooks():
        raise ConfigError("steps.hooks: the plan has hooks already; keep one of the two")
    made = load_function(section.hooks, what="steps.hooks")()
    if not isinstance(made, Hooks):
        raise ConfigError(
            f"steps.hooks {section.hooks!r} gave {type(made).__name__}; it must give harness.Hooks"
        )
    return made
