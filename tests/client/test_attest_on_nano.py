"""Two steps on the real server prove every setting that it applies, and find each planted fault."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from crucible_tinkex.client import TinkexService
from crucible_tinkex.client.model.training_client import TinkexTraining
from crucible_tinkex.client.resolved import ResolvedService
from crucible_tinkex.config import Experiment
from crucible_tinkex.datasets import PromptCompletion, TokenisedDataset, load_tokenizer, tokenise
from crucible_tinkex.errors import ConfigError, ServiceUnavailableError
from crucible_tinkex.protocol.wire import AdamParams, Datum, LoraConfig
from crucible_tinkex.registry import SweepState
from crucible_tinkex.sweep.launch import Launch
from crucible_tinkex.sweep.orders.control import Command, send
from crucible_tinkex.sweep.preparing.preparation import PreparedSweep, prepare
from crucible_tinkex.training.attest.contrasts import (
    MOVES,
    RANK,
    SEED,
    SWITCHES,
    Contrast,
    base_of,
    contrasts_of,
)
from crucible_tinkex.training.attest.policies import loss_contrasts
from crucible_tinkex.training.attest.probing import Attestation, attest
from crucible_tinkex.training.recipes.datums import with_weights

AXES: Mapping[str, list[Any]] = {
    RANK: [2, 4],
    SEED: [1, 2],
    **{key: [True, False] for key in SWITCHES},
    "optimizer.learning_rate": [1e-4, 1.1e-4],
    "optimizer.beta1": [0.9, 0.95],
    "optimizer.beta2": [0.95, 0.999],
    "optimizer.eps": [1e-12, 1e-8],
    "optimizer.weight_decay": [0.0, 0.01],
    "optimizer.grad_clip_norm": [0.0, 1.0],
    "optimizer.schedule": ["constant", "linear"],
    "train.accumulate": [1, 2],
    "train.loss": ["cross_entropy", "nll + 0.5 * focal"],
    "train.token_weights": ["uniform", "claims"],
}
LOSSES = ["importance_sampling", "ppo", "cispo", "dro"]


def experiment(**search: Any) -> Experiment:
    return Experiment.build(
        {
            "name": "s",
            "model": {"base": "nano"},
            "data": {"train": "x", "eval": "y"},
            "search": {"space": AXES, "where": ["lora.train_attn or lora.train_mlp"], **search},
        }
    )


@pytest.fixture
async def attested(ready: dict[str, str]) -> Attestation:
    def connect() -> TinkexService:
        return TinkexService(ready["base_url"], api_key_file=ready["api_key_file"])

    return await attest(connect, asked_of(experiment()), await rows(ready), base_model="nano")


def asked_of(asked: Experiment) -> list[Contrast]:
    """With the losses that the service computes itself."""
    found = contrasts_of(asked)
    return [*loss_contrasts(LOSSES, base_of(found)), *found]


async def rows(ready: dict[str, str]) -> TokenisedDataset:
    async with TinkexService(ready["base_url"], api_key_file=ready["api_key_file"]) as service:
        tokenizer_id = (await service.capabilities()).supported_models[0].tokenizer_id
    assert tokenizer_id
    words = ["lamp", "stone", "river", "cloud", "grass", "amber"]
    pairs = [PromptCompletion("x", i, f"{w}>", w[::-1]) for i, w in enumerate(words)]
    return tokenise(pairs, load_tokenizer(tokenizer_id))


async def test_every_axis_is_seen_to_be_applied(attested: Attestation) -> None:
    verdicts = {f.key: f.verdict for f in attested.findings}
    assert dict.fromkeys([*AXES, MOVES], "applied").items() <= verdicts.items()
    assert {f"loss {name}" for name in LOSSES} < set(verdicts)
    assert set(verdicts.values()) == {"applied"}, attested.findings
    assert attested.noise < 1e-4 and attested.spent.steps == 2 * attested.models


class Deaf:
    """The real service, which does as if it had not heard of some settings."""

    def __init__(self, service: TinkexService, ignored: str) -> None:
        self._service = service
        self._ignored = ignored.partition(".")[2]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    def _heard(self, asked: Any, usual: Any) -> Any:
        if self._ignored not in type(asked).model_fields:
            return asked
        return asked.model_copy(update={self._ignored: getattr(usual, self._ignored)})

    async def create_training(self, *, lora: LoraConfig, **asked: Any) -> Any:
        usual = LoraConfig(rank=8, seed=7, train_unembed=False)
        model = await self._service.create_training(lora=self._heard(lora, usual), **asked)
        step = model.optim_step
        model.optim_step = lambda adam: step(self._heard(adam, AdamParams()))  # type: ignore[method-assign]
        return model


@pytest.mark.parametrize("key", [RANK, SEED, SWITCHES[2], "optimizer.beta2"])
async def test_a_planted_fault_is_found(ready: dict[str, str], key: str) -> None:
    def connect() -> Any:
        service = TinkexService(ready["base_url"], api_key_file=ready["api_key_file"])
        return Deaf(service, key)

    asked = experiment(space={key: AXES[key], "optimizer.eps": AXES["optimizer.eps"]}, where=[])
    found = await attest(connect, contrasts_of(asked), await rows(ready), base_model="nano")
    assert [f.key for f in found.findings if f.refused] == [key]
    assert {f.verdict for f in found.findings if f.key != key} == {"applied"}


async def learnt(
    ready: dict[str, str],
    names: list[str],
    hear: Callable[[list[Datum], dict[str, Any]], Any],
    space: Mapping[str, list[Any]] | None = None,
) -> dict[str, str]:
    """What is refused of a service that hears something else than it is asked."""

    class Service:
        def __init__(self) -> None:
            self._real = TinkexService(ready["base_url"], api_key_file=ready["api_key_file"])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        async def create_training(self, **asked: Any) -> Any:
            model = await self._real.create_training(**asked)
            learn = model.forward_backward

            def heard(data: Any, **loss: Any) -> Any:
                rows, options = hear(list(data), loss)
                return learn(rows, **options)

            model.forward_backward = heard  # type: ignore[method-assign]
            return model

    usual = contrasts_of(experiment(space=space or {RANK: [2]}, where=[]))
    asked = [*loss_contrasts(names, base_of(usual)), *usual]
    found = await attest(cast(Any, Service), asked, await rows(ready), base_model="nano")
    return {f.key: f.verdict for f in found.findings if f.refused}


def as_cross_entropy(rows: list[Datum], loss: dict[str, Any]) -> tuple[list[Datum], dict[str, Any]]:
    """Whatever is asked for."""
    found = []
    for row in rows:
        gate = row.loss_fn_inputs.get("advantages") or row.loss_fn_inputs["weights"]
        plain = {k: v for k, v in row.loss_fn_inputs.items() if k in ("target_tokens", "weights")}
        bare = row.model_copy(update={"loss_fn_inputs": plain})
        found.append(with_weights(bare, [float(g != 0) for g in gate.data]))
    return found, {"loss_fn": "cross_entropy"}


async def test_a_service_that_always_computes_cross_entropy_is_found(ready: dict[str, str]) -> None:
    found = await learnt(ready, LOSSES, as_cross_entropy)
    assert {f"loss {name}" for name in LOSSES} < set(found)


async def test_a_service_that_takes_weights_for_a_mask_is_found(ready: dict[str, str]) -> None:
    keys = ("train.loss", "train.token_weights", "train.accumulate", "optimizer.schedule")
    found = await learnt(ready, [], as_cross_entropy, {key: AXES[key] for key in keys})
    assert set(found) == {"train.loss", "train.token_weights"}


async def test_a_service_with_one_loss_on_samples_is_found(ready: dict[str, str]) -> None:
    def plain(rows: list[Datum], loss: dict[str, Any]) -> Any:
        is_policy = loss["loss_fn"] != "cross_entropy"
        return rows, {"loss_fn": "importance_sampling"} if is_policy else loss

    found = await learnt(ready, ["importance_sampling", "ppo"], plain)
    assert set(found) == {
        "loss ppo",
        "loss ppo: clip_low_threshold",
        "loss ppo: clip_high_threshold",
    }


async def test_numbers_of_a_loss_that_are_ignored_are_found(ready: dict[str, str]) -> None:
    def deaf(rows: list[Datum], loss: dict[str, Any]) -> Any:
        return rows, {**loss, "loss_fn_config": None}

    found = await learnt(ready, ["ppo", "dro"], deaf)
    assert set(found) == {
        "loss ppo: clip_low_threshold",
        "loss ppo: clip_high_threshold",
        "loss dro: beta",
    }


# --- a sweep ----------------------------------------------------------------------------------


def served(
    ready: dict[str, str],
    folder: Path,
    ranks: list[int],
    *,
    more: Mapping[str, Any] | None = None,
    steps: int = 2,
    **budget: Any,
) -> PreparedSweep:
    lines = [json.dumps({"prompt": f"{i:03}>", "completion": f"{i:03}"[::-1]}) for i in range(12)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    declared = {
        "name": "s",
        "service": {"base_url": ready["base_url"], "api_key_file": ready["api_key_file"]},
        "model": {"base": "nano"},
        "data": {"train": "train.jsonl", "eval_rows": 4},
        "train": {"max_steps": steps, "batch_size": 4, "sampler_checkpoint": False},
        "search": {"space": {RANK: ranks, **(more or {})}, "reference": False},
        "run": {"executor": "local", "storage": "runs"},
        "budget": budget,
    }
    return prepare(Experiment.build(declared, folder=folder))


def test_a_sweep_proves_once_and_notes_it(
    ready: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = Launch(served(ready, tmp_path, [2, 4])).run().state
    assert len(state.trials) == 2 and state.complete
    proof = state.meta["attested"]
    assert proof["findings"][RANK]["verdict"] == "applied" and proof["spent"]["steps"] > 0
    trials = sum(t.spent.tokens for t in state.trials.values())
    assert state.proofs.tokens > 0 and state.spent.tokens == trials + state.proofs.tokens

    async def again(*given: Any, **more: Any) -> Attestation:
        raise AssertionError("it is proved already")

    monkeypatch.setattr("crucible_tinkex.sweep.attesting.attest", again)
    more = Launch(served(ready, tmp_path, [2, 4, 8])).run().state
    assert len(more.trials) == 3 and more.complete
    assert more.meta["attested"] == proof


def test_a_cap_below_the_proof_is_refused_before_anything_is_sent(
    ready: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sent(*given: Any, **more: Any) -> Attestation:
        raise AssertionError("nothing may be sent")

    monkeypatch.setattr("crucible_tinkex.sweep.attesting.attest", sent)
    prepared = served(ready, tmp_path, [2, 4], tokens=100)
    with pytest.raises(ConfigError, match=r"budget.tokens = 100 .* proof"):
        Launch(prepared).run()
    assert not prepared.paths.journal.exists()


def test_a_sweep_is_refused_before_it_trains(
    ready: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = ResolvedService.connect
    monkeypatch.setattr(ResolvedService, "connect", lambda *given: Deaf(connect(*given), RANK))
    prepared = served(ready, tmp_path, [2, 4])
    with pytest.raises(ConfigError, match=r"does not apply .*: lora.rank .*service.attest = false"):
        Launch(prepared).run()
    refused = SweepState.read(prepared.paths)
    assert refused.proofs.tokens > 0 and not refused.runs and not refused.trials
    monkeypatch.undo()
    other = served(ready, tmp_path, [4, 8], tokens=100_000)
    assert other.existing is None, "nothing was trained: it may ask for anything"
    result = Launch(other).run()
    assert result.exit_code == 0
    trials = sum(t.spent.tokens for t in result.state.trials.values())
    assert result.state.proofs.tokens == 2 * refused.proofs.tokens, "what was refused counts, too"
    assert result.state.spent.tokens == trials + result.state.proofs.tokens


def test_an_amendment_that_is_refused_changes_nothing_but_what_was_spent(
    ready: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Launch(served(ready, tmp_path, [2, 4])).run().state
    connect = ResolvedService.connect
    key = "optimizer.eps"
    monkeypatch.setattr(ResolvedService, "connect", lambda *given: Deaf(connect(*given), key))
    more = served(ready, tmp_path, [2, 4], more={key: [1e-8, 1e-3]})
    with pytest.raises(ConfigError, match=r"does not apply .*: optimizer.eps "):
        Launch(more).run()
    after = SweepState.read(more.paths)
    assert after.complete and after.ended == before.ended and after.runs == before.runs
    assert after.meta == before.meta and after.trials == before.trials
    proof = after.proofs.tokens - before.proofs.tokens
    assert proof > 0 and after.spent.tokens == before.spent.tokens + proof


def test_a_running_sweep_refuses_it_and_goes_on(
    ready: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = served(ready, tmp_path, [2, 4], steps=60)
    key, connect = "optimizer.eps", ResolvedService.connect
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(Launch(prepared).run)
        while not (prepared.paths.journal.is_dir() and SweepState.read(prepared.paths).open):
            time.sleep(0.05)
        before = SweepState.read(prepared.paths).proofs
        monkeypatch.setattr(ResolvedService, "connect", lambda *given: Deaf(connect(*given), key))
        space = {RANK: [2, 4], key: [1e-8, 1e-3]}
        with pytest.raises(ConfigError, match=r"does not apply .*: optimizer.eps "):
            send(prepared.paths, Command("extend", settings={"search.space": space}), wait_s=60)
        state = running.result().state
    assert state.complete and len(state.trials) == 2 and not state.amendments
    assert state.proofs.tokens > before.tokens > 0


def test_a_service_that_dies_while_it_proves_is_named(
    ready: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*given: Any, **more: Any) -> Any:
        raise ServiceUnavailableError("no answer")

    monkeypatch.setattr(TinkexTraining, "forward", dies)
    prepared = served(ready, tmp_path, [2, 4])
    with pytest.raises(ServiceUnavailableError, match="no answer"):
        Launch(prepared).run()
    assert not prepared.paths.journal.exists()
