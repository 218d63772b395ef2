"""What the client can do beyond a training session's needs, as requests and answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scripted_service import FAST, Answer, ScriptedService, VirtualTime

from crucible_tinkex.client import ClientSettings, RetryPolicy, TinkexService, proto
from crucible_tinkex.client.records import SessionQuery
from crucible_tinkex.client.sampling import TinkexSampling
from crucible_tinkex.client.training import TinkexTraining
from crucible_tinkex.client.wire import (
    PromptAltTokens,
    SampledSequence,
    SampleResponse,
    SamplingParams,
    TensorData,
)
from crucible_tinkex.errors import (
    AuthenticationError,
    OperationFailedError,
    ProtocolError,
    ServiceUnavailableError,
    SessionLostError,
)

PATH = "tinker://s1:train:0/weights/a"
PARAMS = SamplingParams(max_tokens=1)


@pytest.fixture
async def sampler(service: TinkexService) -> TinkexSampling:
    return await service.sampler(base_model="m")


# --- saving and loading -----------------------------------------------------------------------


async def test_checkpoints_carry_metadata_and_replace_each_other(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    metadata = {"step": "3"}
    saved = model.save_state("a", overwrite=True, user_metadata=metadata)
    metadata["step"] = "4"
    await saved
    await model.save_state("b")
    await model.save_for_sampler("c", user_metadata={"x": "y"})
    first, second = scripted.bodies("save_weights")
    assert (first["overwrite"], first["user_metadata"]) == (True, {"step": "3"})
    assert not {"overwrite", "user_metadata"} & set(second)
    assert scripted.bodies("save_weights_for_sampler")[0]["user_metadata"] == {"x": "y"}


async def test_exports(scripted: ScriptedService, model: TinkexTraining) -> None:
    external = "tinker://s1:train:0/external_weights/e"
    scripted.results["e"] = {"path": external}
    scripted.on("save_weights_external", Answer(body={"request_id": "e"}))
    assert await model.save_external("e", ttl_s=3600, age_recipients=["age1x"]) == external
    assert scripted.bodies("save_weights_external") == [
        {
            "model_id": "s1:train:0",
            "path": "e",
            "seq_id": 1,
            "ttl_seconds": 3600,
            "age_encryption_recipients": ["age1x"],
            "type": "save_weights_external",
        }
    ]


async def test_samplers_of_fixed_and_of_moving_weights(
    scripted: ScriptedService, model: TinkexTraining
) -> None:
    sampler = await model.sampler(kind="inflight")
    await model.refresh(sampler, kind="inflight")
    await model.sampler()
    sent = scripted.bodies("save_weights_for_sampler")
    assert [b.get("kind") for b in sent] == ["inflight", "inflight", None]
    assert [b["sampling_session_seq_id"] for b in sent] == [0, 1, 2]


async def test_another_accounts_weights_need_a_token(
    scripted: ScriptedService, service: TinkexService, model: TinkexTraining
) -> None:
    await model.load_state(PATH, optimizer=False, access_token="token-1")
    await service.create_training_from_state(
        PATH, access_token="token-2", user_metadata={"from": "a"}
    )
    legacy, new = scripted.bodies("load_weights")
    assert legacy["weights_access_token"] == "token-1"
    assert (new["weights_access_token"], new["user_metadata"]) == ("token-2", {"from": "a"})


async def test_the_token_survives_the_older_way(
    scripted: ScriptedService, service: TinkexService
) -> None:
    scripted.on("load_weights", Answer(422, {"error": "model_id is missing"}))
    scripted.on("weights_info", Answer(body={"base_model": "m", "lora_rank": 2}))
    await service.create_training_from_state(
        PATH, optimizer=False, access_token="t", user_metadata={"a": "b"}
    )
    assert scripted.bodies("create_model")[0]["user_metadata"] == {"a": "b"}
    legacy = scripted.bodies("load_weights")[1]
    assert (legacy["weights_access_token"], legacy["optimizer"]) == ("t", False)


async def test_a_session_belongs_to_a_project(
    scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TINKER_PROJECT_ID", raising=False)
    for project, variable in ((None, None), (None, "p-env"), ("p-own", "p-env")):
        if variable:
            monkeypatch.setenv("TINKER_PROJECT_ID", variable)
        async with TinkexService(scripted.url, settings=FAST, project_id=project) as service:
            await service.sampler(base_model="m")
    found = [b.get("project_id") for b in scripted.bodies("create_session")]
    assert found == [None, "p-env", "p-own"]


# --- things without a number ------------------------------------------------------------------


async def test_what_has_no_number_has_an_idempotency_key(
    scripted: ScriptedService, service: TinkexService
) -> None:
    for path in ("create_session", "copy_weights"):
        scripted.on(path, Answer(mode="reset"), Answer(503))
    copied = Answer(body={"tinker_path": "tinker://r2/weights/a"})
    scripted.on("copy_weights", copied, copied)
    await service.sampler(base_model="m")
    rest = service.rest
    for token in (None, "token-3"):
        found = await rest.copy_weights(PATH, project_id="p", ttl_s=7200, access_token=token)
        assert found == "tinker://r2/weights/a"
    names = [
        [r.headers["x-idempotency-key"] for r in scripted.requests if r.path.endswith(path)]
        for path in ("create_session", "copy_weights")
    ]
    assert [len(n) for n in names] == [3, 4]
    assert [len(set(n)) for n in names] == [1, 2]
    assert scripted.bodies("copy_weights")[-1] == {
        "source_path": PATH,
        "destination_project_id": "p",
        "ttl_seconds": 7200,
    }
    tokens = [
        r.headers.get("x-tinker-weights-access-token")
        for r in scripted.requests
        if r.path.endswith("copy_weights")
    ]
    assert tokens == [None, None, None, "token-3"]
    with pytest.raises(AuthenticationError) as caught:
        await rest.copy_weights(PATH, access_token="two words\r\nX-Evil: 1")
    assert "two" not in str(caught.value)


# --- the account ------------------------------------------------------------------------------


async def test_search_goes_on_to_its_end(scripted: ScriptedService, service: TinkexService) -> None:
    cursor = {"last_created_at": "2026-01-01T00:00:00Z", "last_session_id": "b"}
    found = [
        {"session_id": n, "created_at": "2026-01-01T00:00:00Z", "status": {"type": "active"}}
        for n in "abc"
    ]
    scripted.on(
        "sessions/search",
        Answer(body={"sessions": found[:2], "next_cursor": cursor}),
        Answer(body={"sessions": found[2:], "next_cursor": None}),
        Answer(body={"sessions": []}),
    )
    query = SessionQuery(display_name="x", user_metadata={"k": "v"}, statuses=["failed"])
    assert [s.session_id async for s in service.rest.search_sessions(query, page=2)] == [*"abc"]
    assert [s async for s in service.rest.search_sessions()] == []
    first, second, plain = scripted.bodies("sessions/search")
    assert first == {
        "display_name": "x",
        "user_metadata": {"k": "v"},
        "owner": {"type": "own"},
        "statuses": [{"type": "failed"}],
        "limit": 2,
    }
    assert second == {**first, "cursor": cursor}
    assert plain == {"user_metadata": {}, "owner": {"type": "own"}, "limit": 50}


async def test_projects_scopes_and_samplers(
    scripted: ScriptedService, service: TinkexService
) -> None:
    rest = service.rest
    scripted.on("sessions/s9/project", Answer(204))
    await rest.assign_project("s9", "p")
    assert scripted.requests[-1].method == "PUT"
    assert scripted.bodies("sessions/s9/project") == [{"project_id": "p"}]
    pages = {
        "training_runs?limit=100&offset=0&access_scope=accessible&project_id=p": "training_runs",
        "training_runs?limit=100&offset=0": "training_runs",
        "sessions?limit=100&offset=0&access_scope=accessible": "sessions",
    }
    for path, name in pages.items():
        scripted.on(path, Answer(body={name: []}))
    assert [r async for r in rest.training_runs(project_id="p", accessible=True)] == []
    assert [r async for r in rest.training_runs()] == []
    assert [s async for s in rest.sessions(accessible=True)] == []
    record = {"sampler_id": "s1:sample:0", "base_model": "m", "new": 1}
    scripted.on("samplers/s1:sample:0", Answer(body=record))
    found = await rest.sampler("s1:sample:0")
    assert (found.base_model, found.model_path) == ("m", None)


async def test_a_trace_is_waited_for(scripted: ScriptedService) -> None:
    time = VirtualTime()
    settings = ClientSettings(policy=RetryPolicy(total_s=20), clock=time.clock)
    async with TinkexService(scripted.url, settings=settings) as service:
        path, pending = "sessions/s1/trace_export", Answer(body={"status": "pending"})
        scripted.on(path, pending, pending, Answer(body={"status": "ready", "url": "https://x/t"}))
        assert await service.rest.session_trace("s1") == "https://x/t"
        assert time.slept == [5.0, 5.0]
        scripted.on(path, Answer(body={"status": "failed", "error": "too old"}))
        with pytest.raises(OperationFailedError, match="too old"):
            await service.rest.session_trace("s1")
        scripted.on(path, *[pending] * 1000)
        with pytest.raises(ServiceUnavailableError, match="no trace"):
            await service.rest.session_trace("s1")
        assert sum(time.slept) < 700


# --- sampling ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "sent"),
    [(None, None), ("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [1, 2]), ([], [])],
)
async def test_every_form_of_stop(
    scripted: ScriptedService, sampler: TinkexSampling, stop: Any, sent: Any
) -> None:
    await sampler.sample([1], SamplingParams(max_tokens=2, stop=stop, top_k=4, top_p=0.5, seed=7))
    params = scripted.bodies("asample")[0]["sampling_params"]
    assert params.get("stop") == sent
    assert ("stop" in params) == (stop is not None)
    assert (params["top_k"], params["top_p"], params["seed"]) == (4, 0.5, 7)
    assert scripted.requests[-2].headers["x-tinker-sampling-backpressure"] == "1"


TARGETS = TensorData(data=[7, -1], dtype="int64", shape=[2, 1])
FULL = SampleResponse(
    sequences=[SampledSequence(stop_reason="stop", tokens=[4], topk_logprobs=[[(4, -0.5)]])],
    prompt_logprobs=[None, None, -1.0],
    topk_prompt_logprobs=[None, None, [(2, -1.0), (3, -2.0)]],
    target_prompt_logprobs=TensorData(data=[-0.5, 0.0], dtype="float32", shape=[2, 1]),
    prompt_alt_tokens=PromptAltTokens(
        tokens=TensorData(data=[1, 2], dtype="int64", shape=[2, 1]),
        logprobs=TensorData(data=[-1.5, -2.0], dtype="float32", shape=[2, 1]),
    ),
    prompt_cache_hit_tokens=2,
)


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
async def test_all_that_can_be_asked_about_a_prompt(
    scripted: ScriptedService, sampler: TinkexSampling, encoding: str
) -> None:
    packed = Answer(
        body=proto.encode_sample_response(FULL), headers={"Content-Type": proto.CONTENT_TYPE}
    )
    plain = Answer(body=FULL.model_dump(mode="json", exclude_none=True))
    scripted.on("asample", Answer(body={"request_id": "r", "sample_sequence_ids": ["seq-9"]}))
    scripted.on("retrieve_future", packed if encoding == "protobuf" else plain)
    found = await sampler.sample(
        [1, 2, 3],
        PARAMS,
        prompt_logprobs=True,
        topk_prompt_logprobs=2,
        topk_sample_logprobs=1,
        prompt_logprobs_last_n=1,
        target_prompt_logprobs=TARGETS,
        prompt_alt_tokens_k=1,
        record_stability_info=True,
    )
    assert found.sequences[0].sequence_id == "seq-9"
    found.sequences[0].sequence_id = None
    assert found == FULL
    sent = scripted.bodies("asample")[0]
    assert sent["target_prompt_logprobs"] == {"data": [7, -1], "dtype": "int64", "shape": [2, 1]}
    names = ("prompt_logprobs_last_n", "prompt_alt_tokens_k", "topk_prompt_logprobs")
    assert [sent[n] for n in names] == [1, 1, 2]
    assert (sent["record_stability_info"], sent["topk_sample_logprobs"]) == (True, 1)


@pytest.mark.parametrize(
    "asked",
    [
        {"target_prompt_logprobs": TARGETS},
        {"prompt_alt_tokens_k": 1},
        {"prompt_logprobs": True, "prompt_logprobs_last_n": 1},
    ],
    ids=lambda a: next(iter(a)),
)
async def test_a_service_that_ignores_what_was_asked_is_found_out(
    scripted: ScriptedService, sampler: TinkexSampling, asked: dict[str, Any]
) -> None:
    sequence = {"stop_reason": "stop", "tokens": [4]}
    body = {"sequences": [sequence], "prompt_logprobs": [None, -1.0, -1.0]}
    scripted.on("retrieve_future", Answer(body=body))
    with pytest.raises(ProtocolError, match="the service"):
        await sampler.sample([1, 2, 3], PARAMS, **asked)


async def test_a_further_client_of_a_sampling_session_has_numbers_of_its_own(
    scripted: ScriptedService, service: TinkexService
) -> None:
    scripted.on("join_sampling_session", Answer(body={"client_counter": 3}))
    sampler = await service.join_sampler("s9:sample:1")
    for _ in range(2):
        await sampler.sample([1], PARAMS)
    found = [(b["sampling_session_id"], b["seq_id"]) for b in scripted.bodies("asample")]
    assert found == [("s9:sample:1", 3_000_000_000), ("s9:sample:1", 3_000_000_001)]
    assert scripted.bodies("create_session") == []
    empty = [Answer(body={})] * FAST.policy.few
    for answers, error in (([Answer(404)], SessionLostError), (empty, ProtocolError)):
        scripted.on("join_sampling_session", *answers)
        with pytest.raises(error):
            await service.join_sampler("s9:sample:1")


async def test_scores_of_the_end_of_a_prompt(
    scripted: ScriptedService, sampler: TinkexSampling
) -> None:
    sequence = {"stop_reason": "stop", "tokens": [4]}
    body = {"sequences": [sequence], "prompt_logprobs": [None, None, -1.0]}
    scripted.on("retrieve_future", Answer(body=body))
    assert await sampler.compute_logprobs([1, 2, 3], last_n=1) == [None, None, -1.0]
    assert scripted.bodies("asample")[0]["prompt_logprobs_last_n"] == 1


async def test_sequences_are_named_by_the_envelope(
    scripted: ScriptedService, sampler: TinkexSampling
) -> None:
    sequences = [{"stop_reason": r, "tokens": [i]} for i, r in enumerate(("cancelled", "length"))]
    scripted.results["r"] = {"sequences": sequences}
    for names in (["a", "b"], ["a"]):
        scripted.on("asample", Answer(body={"request_id": "r", "sample_sequence_ids": names}))
    found = await sampler.sample([1], PARAMS, num_samples=2)
    assert [(s.sequence_id, s.stop_reason) for s in found.sequences] == [
        ("a", "stop"),  # a reason of a later version
        ("b", "length"),
    ]
    with pytest.raises(ProtocolError, match="named 1 sequences of 2"):
        await sampler.sample([1], PARAMS, num_samples=2)
    await asyncio.sleep(0)
