"""What the client can do beyond a training session's needs, as requests and answers."""

from __future__ import annotations

from typing import Any

import pytest
from scripted_service import Answer, ScriptedService

from crucible_tinkex.client import TinkexService
from crucible_tinkex.client.model.sampling_client import TinkexSampling
from crucible_tinkex.protocol import proto
from crucible_tinkex.protocol.wire import SampledSequence, SampleResponse, SamplingParams

PATH = "tinker://s1:train:0/weights/a"
PARAMS = SamplingParams(max_tokens=1)


@pytest.fixture
async def sampler(service: TinkexService) -> TinkexSampling:
    return await service.sampler(base_model="m")


# --- things without a number ------------------------------------------------------------------


async def test_what_has_no_number_has_an_idempotency_key(
    scripted: ScriptedService, service: TinkexService
) -> None:
    scripted.on("create_session", Answer(mode="reset"), Answer(503))
    await service.sampler(base_model="m")
    names = [
        r.headers["x-idempotency-key"]
        for r in scripted.requests
        if r.path.endswith("create_session")
    ]
    assert (len(names), len(set(names))) == (3, 1)


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


FULL = SampleResponse(
    sequences=[SampledSequence(stop_reason="stop", tokens=[4], topk_logprobs=[[(4, -0.5)]])],
    prompt_logprobs=[None, None, -1.0],
    topk_prompt_logprobs=[None, None, [(2, -1.0), (3, -2.0)]],
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
    scripted.on("asample", Answer(body={"request_id": "r"}))
    scripted.on("retrieve_future", packed if encoding == "protobuf" else plain)
    found = await sampler.sample(
        [1, 2, 3],
        PARAMS,
        prompt_logprobs=True,
        topk_prompt_logprobs=2,
        topk_sample_logprobs=1,
    )
    assert found == FULL
    sent = scripted.bodies("asample")[0]
    assert (sent["topk_prompt_logprobs"], sent["topk_sample_logprobs"]) == (2, 1)


async def test_a_reason_of_a_later_version_reads_as_stop(
    scripted: ScriptedService, sampler: TinkexSampling
) -> None:
    sequences = [{"stop_reason": r, "tokens": [i]} for i, r in enumerate(("cancelled", "length"))]
    scripted.on("retrieve_future", Answer(body={"sequences": sequences}))
    found = await sampler.sample([1], PARAMS, num_samples=2)
    assert [s.stop_reason for s in found.sequences] == ["stop", "length"]
