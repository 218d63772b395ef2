"""Where other servers depart from the protocol, and the client has to cope.

Each departure was seen in a server that others wrote (docs/other-servers.md says in which). Here
the scripted service departs in the same way.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from math import inf
from pathlib import Path
from urllib.parse import unquote

import pytest
import ray
import tokenizers
from scripted_service import FAST, Answer, Recorder, ScriptedService

from crucible_tinkex.client import ClientSettings, Clock, RetryPolicy, TinkexService
from crucible_tinkex.client.model.loss import cross_entropy, loss_of
from crucible_tinkex.client.model.training_client import TinkexTraining
from crucible_tinkex.client.resolved import ResolvedService
from crucible_tinkex.config import Experiment
from crucible_tinkex.errors import (
    ConfigError,
    OperationFailedError,
    ProtocolError,
    RequestRejectedError,
    ServiceError,
    ServiceUnavailableError,
)
from crucible_tinkex.protocol.wire import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    LoraConfig,
    ModelInput,
    SamplingParams,
    TensorData,
)
from crucible_tinkex.sweep.connection import connected
from crucible_tinkex.sweep.launch import Launch
from crucible_tinkex.sweep.preparing.preparation import prepare

LORA = LoraConfig(rank=2)
ROW = Datum(
    model_input=ModelInput.from_tokens([3, 4, 5]),
    loss_fn_inputs={
        "target_tokens": TensorData(data=[4, 5, 6], dtype="int64", shape=[3]),
        "weights": TensorData(data=[0.0, 1.0, 1.0], dtype="float32", shape=[3]),
    },
)


@pytest.fixture
async def model(service: TinkexService) -> TinkexTraining:
    return await service.create_training(base_model="m", lora=LORA)


# --- the order of operations -----------------------------------------------------------------


async def test_operations_arrive_in_the_order_of_their_numbers(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    """For services that execute in the order of arrival, or refuse a number that comes early."""
    slow = Answer(body={"request_id": "r0"}, delay_s=0.05)
    scripted.results["r0"] = {"loss_fn_outputs": [{}], "metrics": {"loss:sum": 1.0}}
    scripted.on("forward_backward", Answer(503, delay_s=0.02), slow)
    before = len(scripted.requests)
    await asyncio.gather(
        model.forward_backward([ROW]),
        model.optim_step(AdamParams()),
        model.forward_backward([ROW]),
        model.optim_step(AdamParams()),
    )
    sent = [r.json["seq_id"] for r in scripted.requests[before:] if "seq_id" in r.json]
    assert sent == [1, 1, 2, 3, 4]


async def test_what_is_called_after_a_custom_loss_arrives_after_both_its_passes(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    before = len(scripted.requests)
    custom = model.forward_backward_custom([ROW], lambda logprobs: (1.0, logprobs, {}))
    await asyncio.gather(custom, model.optim_step(AdamParams()))
    sent = [r.json["seq_id"] for r in scripted.requests[before:] if "seq_id" in r.json]
    assert sent == [1, 2, 3]


# --- requests that a strict or an older service takes ------------------------------------------


async def test_optional_fields_are_not_sent_at_their_defaults(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    """For services that refuse a field that they do not know (422)."""
    await model.save_for_sampler("a")
    sampler = await model.sampler()
    await sampler.sample([1], SamplingParams(max_tokens=1, stop="."))
    for body in scripted.bodies("save_weights_for_sampler"):
        assert body.keys() <= {"model_id", "path", "seq_id", "sampling_session_seq_id", "type"}
    assert all(body.keys() == {"request_id"} for body in scripted.bodies("retrieve_future"))
    assert scripted.bodies("asample")[0]["sampling_params"]["stop"] == ["."]
    assert scripted.bodies("create_session")[0]["user_metadata"] == {}


# --- values that are new, or not the protocol's ------------------------------------------------


async def test_unusual_values_of_a_batch_are_read(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    output = {
        "logprobs": {"data": [-1.0, -2.0, -3.0], "dtype": "bfloat16"},
        "experts": {"data": [1, 2], "dtype": "uint8"},
        "masks": {"data": ["10", "01"], "dtype": "bits"},
    }
    metrics = {"loss:sum": 5.0, "moe": {"load": 1.0}, "note": "warm", "spike:max": None}
    result = {"loss_fn_outputs": [output], "metrics": metrics, "profile": [1]}
    scripted.on("retrieve_future", Answer(body=result))
    answer = await model.forward_backward([ROW])
    assert answer.metrics == {"loss:sum": 5.0}
    (row,) = answer.loss_fn_outputs
    assert {name: tensor.dtype for name, tensor in row.items()} == {
        "logprobs": "float32",
        "experts": "int64",
    }
    scripted.on("retrieve_future", Answer(body={"metrics": {"step": 1, "kernel": "fused"}}))
    assert (await model.optim_step(AdamParams())).metrics == {"step": 1.0}


async def test_a_new_stop_reason_is_a_stop(
    scripted: ScriptedService, service: TinkexService
) -> None:
    sampler = await service.sampler(base_model="m")
    sequences = [{"stop_reason": reason, "tokens": [1]} for reason in ("eos", "length")]
    scripted.on("retrieve_future", Answer(body={"sequences": sequences}))
    answer = await sampler.sample([1], SamplingParams(max_tokens=1), num_samples=2)
    assert [s.stop_reason for s in answer.sequences] == ["stop", "length"]


async def test_listings_may_count_seconds_or_know_no_time(
    scripted: ScriptedService, service: TinkexService
) -> None:
    base = {"checkpoint_type": "training", "tinker_path": "tinker://r/weights/a"}
    listed = [
        {**base, "checkpoint_id": "a", "time": 0, "expires_at": 3600.5},
        {**base, "checkpoint_id": "b", "time": None},
    ]
    scripted.on("training_runs/r/checkpoints", Answer(body={"checkpoints": listed}))
    first, second = [c async for c in service.rest.checkpoints("r")]
    assert (first.time, second.time) == ("1970-01-01T00:00:00+00:00", None)
    assert first.expires_at == "1970-01-01T01:00:00.500000+00:00"


async def test_models_listed_without_a_name_are_left_out(
    scripted: ScriptedService, service: TinkexService
) -> None:
    models = [{"model_id": "family/"}, {"model_name": "m", "supports": ["lora"]}]
    scripted.on("get_server_capabilities", Answer(body={"supported_models": models}))
    assert [m.model_name for m in (await service.capabilities()).supported_models] == ["m"]


# --- a service that reports no loss ------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss_fn", "outputs", "expected"),
    [
        ("cross_entropy", {"logprobs": [-9.0, -2.0, -3.0]}, 5.0),
        ("ppo", {"logprobs": [-9.0, -2.0, -3.0], "elementwise_loss": [0.5, 0.5, 1.0]}, 2.0),
        ("ppo", {"logprobs": [-9.0, -2.0, -3.0]}, None),
        ("cross_entropy", {"logprobs": [-inf, -2.0, -3.0], "elementwise_loss": [9.0]}, 5.0),
        ("cross_entropy", {"logprobs": [-2.0]}, None),
        ("cross_entropy", {}, None),
    ],
)
async def test_the_loss_is_summed_from_the_outputs_where_it_can_be(
    scripted: ScriptedService,
    model: TinkexTraining,
    loss_fn: str,
    outputs: dict[str, list[float]],
    expected: float | None,
) -> None:
    row = {name: {"data": data, "dtype": "float32"} for name, data in outputs.items()}
    result = {"loss_fn_outputs": [row], "metrics": None}
    scripted.on("retrieve_future", Answer(body=result))
    answer = await model.forward_backward([ROW], loss_fn=loss_fn)
    assert answer.metrics.get("loss:sum") == expected


async def test_a_reported_loss_is_kept(scripted: ScriptedService, model: TinkexTraining) -> None:
    row = {"logprobs": {"data": [-1.0, -1.0, -1.0], "dtype": "float32"}}
    result = {"loss_fn_outputs": [row], "metrics": {"loss:sum": 7.0}}
    scripted.on("retrieve_future", Answer(body=result))
    assert (await model.forward([ROW])).metrics["loss:sum"] == 7.0


# --- polls -------------------------------------------------------------------------------------


async def test_a_poll_may_be_held_longer_than_an_attempt_while_the_service_lives(
    scripted: ScriptedService,
) -> None:
    policy = RetryPolicy(base_s=0.002, cap_s=0.01, attempt_s=0.1, total_s=0.3)
    settings = ClientSettings(policy=policy, heartbeat_s=0.02)
    async with TinkexService(scripted.url, settings=settings) as service:
        model = await service.create_training(base_model="m", lora=LORA)
        scripted.on("retrieve_future", *[Answer(mode="hang")] * 6)
        assert (await model.optim_step(AdamParams())).metrics == {"seq": 1.0}


async def test_a_poll_of_a_silent_service_fails(scripted: ScriptedService) -> None:
    policy = RetryPolicy(base_s=0.002, cap_s=0.01, attempt_s=0.1, total_s=0.3)
    settings = ClientSettings(policy=policy, heartbeat_s=0.02)
    async with TinkexService(scripted.url, settings=settings) as service:
        model = await service.create_training(base_model="m", lora=LORA)
        scripted.on("retrieve_future", *[Answer(mode="hang")] * 6)
        scripted.on("session_heartbeat", *[Answer(mode="hang")] * 50)
        with pytest.raises(ServiceUnavailableError, match="no answer"):
            await model.optim_step(AdamParams())


async def test_a_failure_may_be_the_status_of_the_poll(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    scripted.on("retrieve_future", Answer(400, {"detail": "rank 64 exceeds 32"}))
    with pytest.raises(RequestRejectedError, match=r"optim_step.*rank 64 exceeds 32"):
        await model.optim_step(AdamParams())
    assert (await model.optim_step(AdamParams())).metrics == {"seq": 2.0}


# --- sampling ----------------------------------------------------------------------------------


async def test_a_sampling_session_may_be_promised(
    scripted: ScriptedService, service: TinkexService
) -> None:
    scripted.results["p"] = {"sampling_session_id": "smp-1", "type": "create_sampling_session"}
    scripted.on("create_sampling_session", Answer(body={"request_id": "p", "model_id": "smp"}))
    sampler = await service.sampler(base_model="m")
    assert sampler.sampling_session_id == "smp-1"
    scripted.on("create_sampling_session", *[Answer(body={"id": "x"})] * 5)
    with pytest.raises(ProtocolError, match="CreateSamplingSessionResponse"):
        await service.sampler(base_model="m")


async def test_the_first_token_may_be_left_out_of_the_logprobs(
    scripted: ScriptedService, service: TinkexService
) -> None:
    sampler = await service.sampler(base_model="m")
    sequences = [{"stop_reason": "stop", "tokens": [1]}]
    for scored in ([-1.0, -2.0], [None, -1.0, -2.0]):
        result = {"sequences": sequences, "prompt_logprobs": scored}
        scripted.on("retrieve_future", Answer(body=result))
        assert await sampler.compute_logprobs([7, 8, 9]) == [None, -1.0, -2.0]
    for scored in ([], [-1.0], [-1.0] * 4):
        result = {"sequences": sequences, "prompt_logprobs": scored}
        scripted.on("retrieve_future", Answer(body=result))
        with pytest.raises(ProtocolError, match="logprob for each token"):
            await sampler.compute_logprobs([7, 8, 9])


# --- checkpoints -------------------------------------------------------------------------------


async def test_paths_of_other_forms_are_used_as_they_are(
    scripted: ScriptedService, service: TinkexService, model: TinkexTraining
) -> None:
    short, own = "tinker://model_1/a", "tinker://mdl_1/checkpoints/a"
    scripted.results["short"], scripted.results["own"] = {"path": short}, {"path": own}
    scripted.on("save_weights_for_sampler", Answer(body={"request_id": "short"}))
    scripted.on("save_weights", Answer(body={"request_id": "own"}))
    assert await model.save_for_sampler("a") == short
    assert await model.save_state("a") == own
    await service.sampler(model_path=short)
    await service.create_training_from_state(own)
    assert scripted.bodies("create_sampling_session")[0]["model_path"] == short
    assert scripted.bodies("load_weights")[0]["path"] == own
    places = {
        short: "training_runs/model_1/checkpoints/sampler_weights/a",
        own: "training_runs/mdl_1/checkpoints/a",
    }
    for path, place in places.items():
        scripted.on(place, Answer(204))
        await service.delete_checkpoint(path)
        assert scripted.requests[-1].path == f"/api/v1/{place}"
    for path in (short, "tinker://r/../a", "tinker://r/a/b/c", "tinker://r/checkpoints/../../x"):
        with pytest.raises(ConfigError):
            await service.create_training_from_state(path)


@pytest.mark.parametrize("status", [404, 405])
async def test_an_archive_may_lie_at_the_bare_name(
    scripted: ScriptedService, service: TinkexService, tmp_path: Path, status: int
) -> None:
    """And a service without archives says so of the place that the protocol has."""
    run = "training_runs/model_1/checkpoints"
    scripted.on(f"{run}/sampler_weights/a/archive", *[Answer(status, {"detail": "no route"})] * 2)
    scripted.on(f"{run}/a/archive", Answer(200, {"url": f"{scripted.url}/api/v1/file"}))
    with pytest.raises(ServiceError):
        await service.rest.download("tinker://model_1/a", tmp_path / "x")
    assert scripted.requests[-1].path == "/api/v1/file"
    with pytest.raises(ServiceError, match="no route") as caught:
        await service.rest.download("tinker://model_1/a", tmp_path / "x")
    assert "sampler_weights" in caught.value.context["path"]


async def test_a_model_from_a_checkpoint_in_two_calls(
    scripted: ScriptedService, service: TinkexService
) -> None:
    path = "tinker://r/weights/a"
    missing = {"detail": [{"type": "missing", "loc": ["body", "model_id"]}]}
    scripted.on("load_weights", Answer(422, missing))
    scripted.on("weights_info", Answer(body={"base_model": "m", "is_lora": True, "lora_rank": 4}))
    model = await service.create_training_from_state(path)
    assert scripted.bodies("create_model")[0]["lora_config"]["rank"] == 4
    loaded = scripted.bodies("load_weights")[1]
    assert (loaded["model_id"], loaded["path"], loaded["seq_id"]) == (model.model_id, path, 1)


@pytest.mark.parametrize(
    ("refusal", "told"), [(422, "no such checkpoint"), (400, "too many models")]
)
async def test_why_there_is_no_model_from_a_checkpoint(
    scripted: ScriptedService, service: TinkexService, refusal: int, told: str
) -> None:
    """A 422 is about a call that the service does not know: the checkpoint's fault says more."""
    scripted.on("load_weights", Answer(refusal, {"detail": "too many models"}))
    scripted.on("weights_info", Answer(404, {"detail": "no such checkpoint"}))
    with pytest.raises(ServiceError, match=told):
        await service.create_training_from_state("tinker://r/weights/a")


def unloaded(scripted: ScriptedService) -> list[str]:
    """By the path: hatchery reads no body."""
    found = [r.path.partition("unload_model?model_id=")[2] for r in scripted.requests]
    return [unquote(path) for path in found if path]


NO_FINISH = Answer(404, {"detail": "Not Found"})


async def trained(scripted: ScriptedService, name: str) -> str:
    """A model whose session ended where none can be finished."""
    scripted.on("sessions/s1/finish", NO_FINISH)
    scripted.results[name] = {"model_id": name}
    scripted.on("create_model", Answer(body={"request_id": name}))
    async with TinkexService(scripted.url, settings=FAST) as service:
        return (await service.create_training(base_model="m", lora=LORA)).model_id


async def test_finished_models_stay_while_there_is_room(scripted: ScriptedService) -> None:
    """TuFT forgets a model's checkpoints with it: then nothing of a trial that is done is left."""
    for name in "abc":
        await trained(scripted, name)
    assert unloaded(scripted) == []


@pytest.mark.parametrize(
    "refusal", [Answer(400, {"detail": "Maximum number of LoRA adapters (8) reached"}), "own words"]
)
async def test_they_make_room_the_oldest_first(
    scripted: ScriptedService, refusal: Answer | str
) -> None:
    await trained(scripted, "a")
    await trained(scripted, "b")
    if isinstance(refusal, str):
        scripted.results["r0"] = {"error": "out of places", "category": "server"}
        refusal = Answer(body={"request_id": "r0"})
    scripted.on("create_model", refusal)
    async with TinkexService(scripted.url, settings=FAST) as service:
        await service.create_training(base_model="m", lora=LORA)
        assert unloaded(scripted) == ["a"]
        assert len({b["model_seq_id"] for b in scripted.bodies("create_model")[2:]}) == 2


async def test_a_service_that_is_out_of_order_keeps_all_models_but_one(
    scripted: ScriptedService,
) -> None:
    for name in "abc":
        await trained(scripted, name)
    scripted.results["r0"] = {"error": "a fault of ours", "category": "server"}
    scripted.on("create_model", *[Answer(body={"request_id": "r0"})] * 4)
    async with TinkexService(scripted.url, settings=FAST) as service:
        with pytest.raises(OperationFailedError, match="a fault of ours"):
            await service.create_training(base_model="m", lora=LORA)
    assert unloaded(scripted) == ["a"]


async def test_a_service_that_was_full_gets_every_place_back_at_once(
    scripted: ScriptedService,
) -> None:
    await trained(scripted, "a")
    scripted.on("create_model", Answer(400, {"detail": FULL}))
    await trained(scripted, "b")
    await trained(scripted, "c")
    assert unloaded(scripted) == ["a", "b", "c"]


async def interrupted(scripted: ScriptedService, name: str) -> None:
    scripted.on("sessions/s1/finish", NO_FINISH)
    scripted.results[name] = {"model_id": name}
    scripted.on("create_model", Answer(body={"request_id": name}))
    service = TinkexService(scripted.url, settings=FAST)
    await service.create_training(base_model="m", lora=LORA)
    await service.close(reason="interrupted")


async def test_models_that_are_to_go_on_make_room_last(scripted: ScriptedService) -> None:
    await interrupted(scripted, "parked")
    await trained(scripted, "done")
    scripted.on("create_model", *[Answer(400, {"detail": FULL})] * 2)
    async with TinkexService(scripted.url, settings=FAST) as service:
        await service.create_training(base_model="m", lora=LORA)
    assert unloaded(scripted)[:2] == ["done", "parked"]


async def test_a_service_that_is_out_of_order_keeps_what_is_to_go_on(
    scripted: ScriptedService,
) -> None:
    await interrupted(scripted, "parked")
    scripted.results["r0"] = {"error": "a fault of ours", "category": "server"}
    scripted.on("create_model", Answer(body={"request_id": "r0"}))
    async with TinkexService(scripted.url, settings=FAST) as service:
        with pytest.raises(OperationFailedError, match="a fault of ours"):
            await service.create_training(base_model="m", lora=LORA)
    assert unloaded(scripted) == []


async def test_what_another_process_needs_is_unloaded_at_once(scripted: ScriptedService) -> None:
    await trained(scripted, "a")
    await interrupted(scripted, "b")
    await ResolvedService(scripted.url).make_room()
    assert sorted(unloaded(scripted)) == ["a", "b"]
    await interrupted(scripted, "c")
    assert unloaded(scripted)[2:] == ["c"], "and from then on"


async def test_a_refusal_for_another_reason_unloads_nothing(scripted: ScriptedService) -> None:
    await trained(scripted, "a")
    scripted.on("create_model", Answer(400, {"detail": "rank 2 is above the maximum of 1"}))
    async with TinkexService(scripted.url, settings=FAST) as service:
        with pytest.raises(RequestRejectedError, match="rank 2"):
            await service.create_training(base_model="m", lora=LORA)
    assert unloaded(scripted) == []


async def test_what_is_to_go_on_is_not_unloaded(
    scripted: ScriptedService, service: TinkexService
) -> None:
    """TuFT forgets a model's checkpoints with it, so that it could not be resumed."""
    await service.create_training(base_model="m", lora=LORA)
    scripted.on("sessions/s1/finish", Answer(404, {"detail": "Not Found"}))
    await service.close(reason="interrupted")
    assert not [r for r in scripted.requests if "unload_model" in r.path]


async def test_a_finished_session_unloads_nothing(
    scripted: ScriptedService, service: TinkexService
) -> None:
    await service.create_training(base_model="m", lora=LORA)
    await service.close()
    assert not [r for r in scripted.requests if "unload_model" in r.path]


FULL = "Maximum number of LoRA adapters (8) reached"


async def test_a_full_service_is_waited_for(scripted: ScriptedService) -> None:
    """It may say so at once, or as the operation's failure; each try is a new operation."""
    scripted.results["r0"] = {"error": FULL, "category": "user"}
    scripted.on("create_model", Answer(400, {"detail": FULL}), Answer(body={"request_id": "r0"}))
    recorder, soon = Recorder(), Clock(sleep=lambda s: asyncio.sleep(0))
    settings = replace(FAST, clock=soon)
    async with TinkexService(scripted.url, settings=settings, observer=recorder) as service:
        await service.create_training(base_model="m", lora=LORA)
    assert [b["model_seq_id"] for b in scripted.bodies("create_model")] == [0, 1, 2]
    assert [s.state for s in recorder.states] == ["paused_capacity", "active"] * 2


async def test_other_refusals_of_a_model_are_final(
    scripted: ScriptedService, service: TinkexService
) -> None:
    scripted.on("create_model", Answer(400, {"detail": "rank 2 is above the maximum of 1"}))
    with pytest.raises(RequestRejectedError, match="rank 2"):
        await service.create_training(base_model="m", lora=LORA)


async def test_a_service_without_protobuf_is_asked_once(
    scripted: ScriptedService, service: TinkexService
) -> None:
    scripted.config = {"proto_write_fwdbwd": True}
    models = [await service.create_training(base_model="m", lora=LORA) for _ in range(4)]
    scripted.on("forward_backward", Answer(500, {"detail": "cannot read this"}, delay_s=0.02))
    await asyncio.gather(*(model.forward_backward([ROW]) for model in models))
    offered = [r for r in scripted.requests if r.path.endswith("forward_backward")]
    assert [r.is_protobuf for r in offered] == [True, *[False] * 4]


# --- the runner --------------------------------------------------------------------------------


def write_tokenizer(folder: Path) -> None:
    vocab = {char: index for index, char in enumerate("ab.")}
    words = tokenizers.models.WordLevel(vocab, unk_token=".")
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "."}')


def experiment(url: str, folder: Path) -> Experiment:
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 2)
    return Experiment.model_validate(
        {
            "name": "other",
            "service": {"base_url": url},
            "model": {"base": str(folder)},
            "data": {"train": str(rows)},
            "train": {"max_steps": 1, "batch_size": 1, "max_length": 8},
            "search": {"metric": "train/nll", "space": {"lora.rank": [2]}},
        }
    )


@pytest.mark.parametrize("models", [[], [{"model_id": "family/"}]])
async def test_a_service_that_names_no_models_is_asked_for_the_base_all_the_same(
    scripted: ScriptedService, tmp_path: Path, models: list[dict[str, str]]
) -> None:
    write_tokenizer(tmp_path)
    scripted.on("get_server_capabilities", Answer(body={"supported_models": models}))
    prepared = prepare(experiment(scripted.url, tmp_path), storage=str(tmp_path / "runs"))
    async with connected(prepared) as connection:
        assert connection.model.model_name == str(tmp_path)
        assert len(connection.data.train) == 2
    with pytest.raises(ConfigError, match="it has: m"):
        async with connected(prepared):
            pass


async def test_a_service_elsewhere_is_asked_before_ray_starts(
    scripted: ScriptedService, tmp_path: Path
) -> None:
    """What it refuses shows at once."""
    write_tokenizer(tmp_path)
    models = [{"model_name": "another"}]
    scripted.on("get_server_capabilities", Answer(body={"supported_models": models}))
    prepared = prepare(experiment(scripted.url, tmp_path), storage=str(tmp_path / "runs"))
    with pytest.raises(ConfigError, match="it has: another"):
        await asyncio.to_thread(Launch(prepared).run)
    assert not ray.is_initialized()


def test_a_likelihood_is_that_of_the_logprobs_whatever_the_metric_says() -> None:
    """hatchery reports zero for forward passes, and a mean times all tokens for the others."""
    row = {"logprobs": TensorData(data=[-9.0, -2.0, -3.0], dtype="float32")}
    for reported in (0.0, 7.5):
        told = ForwardBackwardOutput(loss_fn_outputs=[row], metrics={"loss:sum": reported})
        assert cross_entropy(told, [ROW]) == 5.0
    short = {"logprobs": TensorData(data=[-2.0, -3.0], dtype="float32")}
    for untold in ({}, short, {"elementwise_loss": row["logprobs"]}):
        bare = ForwardBackwardOutput(loss_fn_outputs=[untold], metrics={"loss:sum": 4.0})
        with pytest.raises(ProtocolError, match="logprobs for 3 targets"):
            cross_entropy(bare, [ROW])


def test_a_batch_whose_loss_nothing_tells_is_named() -> None:
    output = ForwardBackwardOutput(loss_fn_outputs=[{}], metrics={"loss:sum": 2.0})
    assert loss_of(output) == 2.0
    with pytest.raises(ProtocolError, match="without the metric loss:sum"):
        loss_of(ForwardBackwardOutput(loss_fn_outputs=[{}], metrics={"loss:mean": 2.0}))
