"""The whole flow of a user of the official `tinker` SDK, run as a script in that SDK's environment.

    python sdk_flow.py OUT.json       (TINKER_BASE_URL and TINKER_API_KEY in the environment)

It imports nothing of ours, so that it runs where only the SDK is installed, in any version from
0.22. OUT.json gets {"version", "steps": {name: "ok" | "absent: why" | traceback}}. A step that the
SDK of this version does not offer is `absent`; one whose promises are broken has a traceback.
"""

from __future__ import annotations

import inspect
import io
import json
import math
import os
import pickle
import sys
import tarfile
import time
import traceback
import typing
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import tinker
from tinker import types

STEPS: list[Callable[[dict[str, Any]], None]] = []
ROWS = [[1, 2, 3, 4, 5], [9, 8, 7], [100, 101, 102, 103]]


class Absent(Exception):
    """This SDK has no such thing."""


def step(function: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    STEPS.append(function)
    return function


def need(thing: Any, name: str) -> Any:
    found = getattr(thing, name, None)
    if found is None:
        raise Absent(f"no {type(thing).__name__}.{name}")
    return found


def ready(client: Any) -> Any:
    """Newer versions make clients in the background."""
    return client.result() if hasattr(client, "result") else client


def need_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise Absent("torch is not installed in this environment") from None
    return torch


def floats(values: Any, shape: list[int] | None = None) -> Any:
    flat = [float(v) for v in values]
    return types.TensorData(data=flat, dtype="float32", shape=shape or [len(flat)])


def ints(values: Any, shape: list[int] | None = None) -> Any:
    flat = [int(v) for v in values]
    return types.TensorData(data=flat, dtype="int64", shape=shape or [len(flat)])


def datum(row: list[int], **inputs: Any) -> Any:
    given = {"target_tokens": ints(row[1:])}
    if not inputs:
        inputs = {"weights": floats([1.0] * (len(row) - 1))}
    return types.Datum(
        model_input=types.ModelInput.from_ints(row[:-1]), loss_fn_inputs={**given, **inputs}
    )


def logprobs(output: Any) -> list[list[float]]:
    return [np.asarray(o["logprobs"].data).ravel().tolist() for o in output.loss_fn_outputs]


# --- training ----------------------------------------------------------------------------------


@step
def capabilities(s: dict[str, Any]) -> None:
    s["service"] = tinker.ServiceClient(user_metadata={"who": "sdk_flow"})
    found = s["service"].get_server_capabilities()
    assert [m.model_name for m in found.supported_models] == ["nano"]


@step
def create_training_client(s: dict[str, Any]) -> None:
    made = s["service"].create_lora_training_client(
        base_model="nano", rank=4, seed=1, user_metadata={"a": "b"}
    )
    s["training"] = ready(made)


@step
def get_info(s: dict[str, Any]) -> None:
    info = s["training"].get_info()
    s["run"] = info.model_id
    assert (info.model_data.model_name, info.lora_rank) == ("nano", 4)


@step
def get_tokenizer(s: dict[str, Any]) -> None:
    tokenizer = s["training"].get_tokenizer()
    assert tokenizer.encode("ab") == [97, 98] and tokenizer.decode([97, 98]) == "ab"


@step
def forward(s: dict[str, Any]) -> None:
    data = [datum(r) for r in ROWS]
    plain = s["training"].forward(data, "cross_entropy").result()
    again = s["training"].forward_backward(data, "cross_entropy").result()
    assert [len(p) for p in logprobs(plain)] == [4, 2, 3]
    assert logprobs(plain) == logprobs(again)
    total = -sum(map(sum, logprobs(plain)))
    assert math.isclose(plain.metrics["loss:sum"], total, rel_tol=1e-4)
    s["loss"] = plain.metrics["loss:sum"]


@step
def chunks_in_parallel(s: dict[str, Any]) -> None:
    rows = [[1 + i, 2, 3 + i, 4] for i in range(9)]
    whole = s["training"].forward_backward([datum(r) for r in rows], "cross_entropy").result()
    assert len(whole.loss_fn_outputs) == 9
    single = [s["training"].forward([datum(r)], "cross_entropy") for r in rows]
    alone = [logprobs(f.result())[0] for f in single]
    np.testing.assert_allclose(logprobs(whole), alone, atol=1e-5)
    s["training"].optim_step(types.AdamParams(learning_rate=1e-9)).result()


def _policy_rows(s: dict[str, Any], shift: float, **more: Any) -> list[Any]:
    near = logprobs(s["training"].forward([datum(r) for r in ROWS], "cross_entropy").result())
    return [
        datum(
            row,
            logprobs=floats(np.asarray(q) + shift * np.linspace(0.5, 1.5, len(q))),
            advantages=floats(np.linspace(-1, 1, len(q))),
            **{name: floats(np.full(len(q), value)) for name, value in more.items()},
        )
        for row, q in zip(ROWS, near, strict=True)
    ]


@step
def policy_losses(s: dict[str, Any]) -> None:
    data = _policy_rows(s, 0.3)
    sums = {}
    for name in ("importance_sampling", "ppo", "cispo", "dro"):
        config = {"beta": 0.1} if name == "dro" else None
        output = s["training"].forward_backward(data, name, config).result()
        sums[name] = output.metrics["loss:sum"]
    assert len(set(sums.values())) == 4 and all(map(math.isfinite, sums.values())), sums
    s["training"].optim_step(types.AdamParams(learning_rate=1e-9)).result()


@step
def per_token_clips(s: dict[str, Any]) -> None:
    data = _policy_rows(s, 0.1, clip_low_threshold=0.99, clip_high_threshold=1.01)
    config = {"clip_low_threshold": 0.99, "clip_high_threshold": 1.01}
    tensors = s["training"].forward_backward(data, "ppo").result().metrics["loss:sum"]
    settings = s["training"].forward_backward(_policy_rows(s, 0.1), "ppo", config).result()
    assert math.isclose(tensors, settings.metrics["loss:sum"], rel_tol=1e-6)


@step
def gspo(s: dict[str, Any]) -> None:
    if "gspo" not in typing.get_args(types.LossFnType):
        raise Absent("no gspo in LossFnType")
    data = _policy_rows(s, 0.1, sequence_ratio_mask=1.0)
    output = s["training"].forward_backward(data, "gspo").result()
    ratio = math.exp(-0.1)
    expected = -sum(ratio * a for r in ROWS for a in np.linspace(-1, 1, len(r) - 1))
    assert math.isclose(output.metrics["loss:sum"], expected, abs_tol=1e-3), expected


@step
def soft_targets(s: dict[str, Any]) -> None:
    inputs = types.ModelInput.from_ints([5, 6])
    given = {
        "target_tokens": ints([6, 7, 8, 9], [2, 2]),
        "weights": floats([0.25, 0.75, 1.0, 0.0], [2, 2]),
    }
    soft = types.Datum(model_input=inputs, loss_fn_inputs=given)
    output = s["training"].forward_backward([soft], "cross_entropy").result()
    found = output.loss_fn_outputs[0]["logprobs"]
    assert list(found.shape) == [2, 2]
    p = np.asarray(found.data).ravel()
    expected = -(0.25 * p[0] + 0.75 * p[1] + p[2])
    assert math.isclose(output.metrics["loss:sum"], expected, rel_tol=1e-4)


@step
def sparse_soft_targets(s: dict[str, Any]) -> None:
    torch = need_torch()
    targets = torch.tensor([[6, 7], [8, 0]])
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    sparse = types.Datum(
        model_input=types.ModelInput.from_ints([5, 6]),
        loss_fn_inputs={"target_tokens": targets, "weights": weights},
    )
    output = s["training"].forward_backward([sparse], "cross_entropy").result()
    p = np.asarray(output.loss_fn_outputs[0]["logprobs"].data).ravel()
    expected = -(0.25 * p[0] + 0.75 * p[1] + p[2])
    assert math.isclose(output.metrics["loss:sum"], expected, rel_tol=1e-4)


@step
def forward_backward_custom(s: dict[str, Any]) -> None:
    torch = need_torch()

    def loss(data: list[Any], found: list[Any]) -> tuple[Any, dict[str, float]]:
        return -torch.cat(found).sum(), {"seen": float(len(data))}

    data = [datum(r) for r in ROWS]
    output = s["training"].forward_backward_custom(data, loss).result()
    plain = s["training"].forward(data, "cross_entropy").result()
    assert math.isclose(output.metrics["loss:sum"], plain.metrics["loss:sum"], rel_tol=1e-4)
    assert output.metrics["seen"] == 3


@step
def a_bad_request_leaves_no_gap(s: dict[str, Any]) -> None:
    try:
        s["training"].forward_backward([datum([1, 9999])], "cross_entropy").result()
    except (tinker.TinkerError, ValueError) as e:
        assert "9999" in str(e), e
    else:
        raise AssertionError("an impossible token was accepted")
    s["training"].forward([datum(ROWS[0])], "cross_entropy").result()


@step
def optim_step(s: dict[str, Any]) -> None:
    losses = []
    for _ in range(4):
        output = s["training"].forward_backward([datum(r) for r in ROWS], "cross_entropy")
        s["training"].optim_step(types.AdamParams(learning_rate=3e-3)).result()
        losses.append(output.result().metrics["loss:sum"])
    assert losses[-1] < 0.8 * losses[0], losses


# --- state -------------------------------------------------------------------------------------


def _loss(training: Any) -> float:
    return training.forward([datum(r) for r in ROWS], "cross_entropy").result().metrics["loss:sum"]


@step
def save_state(s: dict[str, Any]) -> None:
    s["state"] = s["training"].save_state("one").result().path
    s["state_loss"] = _loss(s["training"])
    assert s["state"] == f"tinker://{s['run']}/weights/one"


@step
def create_training_client_from_state(s: dict[str, Any]) -> None:
    loaded = ready(s["service"].create_training_client_from_state(s["state"]))
    assert _loss(loaded) == s["state_loss"]
    kept = ready(s["service"].create_training_client_from_state_with_optimizer(s["state"]))
    assert _loss(kept) == s["state_loss"]
    s["kept"] = kept


@step
def load_state(s: dict[str, Any]) -> None:
    kept = need(s["kept"], "load_state_with_optimizer")
    kept(s["state"]).result()
    assert _loss(s["kept"]) == s["state_loss"]


# --- sampling ----------------------------------------------------------------------------------


def _params(**given: Any) -> Any:
    return types.SamplingParams(**{"max_tokens": 5, "seed": 5, "stop": [], **given})


PROMPT = [97, 98, 99, 100]


@step
def save_weights_for_sampler(s: dict[str, Any]) -> None:
    s["sampler_path"] = s["training"].save_weights_for_sampler("s1").result().path
    assert s["sampler_path"] == f"tinker://{s['run']}/sampler_weights/s1"
    s["saved"] = ready(s["service"].create_sampling_client(model_path=s["sampler_path"]))


@step
def save_weights_and_get_sampling_client(s: dict[str, Any]) -> None:
    s["sampler"] = ready(s["training"].save_weights_and_get_sampling_client())


@step
def sample(s: dict[str, Any]) -> None:
    prompt = types.ModelInput.from_ints(PROMPT)
    both = [
        client.sample(prompt=prompt, num_samples=3, sampling_params=_params()).result()
        for client in (s["sampler"], s["saved"], s["sampler"])
    ]
    tokens = [[tuple(q.tokens) for q in b.sequences] for b in both]
    assert tokens[0] == tokens[1] == tokens[2] and len(set(tokens[0])) == 3
    assert all(len(q.tokens) == len(q.logprobs) == 5 for q in both[0].sequences)
    assert {q.stop_reason for q in both[0].sequences} == {"length"}


@step
def sample_stops(s: dict[str, Any]) -> None:
    prompt = types.ModelInput.from_ints(PROMPT)

    def one(**given: Any) -> Any:
        asked = _params(max_tokens=40, **given)
        return s["sampler"].sample(prompt, 1, asked).result().sequences[0]

    free = one()
    token = free.tokens[7]
    by_token = one(stop=[token])
    assert by_token.stop_reason == "stop" and by_token.tokens == free.tokens[: len(by_token.tokens)]
    assert by_token.tokens[-1] == token
    ascii_tokens = [t for t in free.tokens if 32 <= t < 127]
    if ascii_tokens:
        by_text = one(stop=chr(ascii_tokens[0]))
        assert by_text.stop_reason == "stop" and by_text.tokens[-1] == ascii_tokens[0]


@step
def prompt_logprobs(s: dict[str, Any]) -> None:
    prompt = types.ModelInput.from_ints(PROMPT)
    found = s["sampler"].compute_logprobs(prompt).result()
    assert len(found) == len(PROMPT) and found[0] is None and all(f < 0 for f in found[1:])
    output = s["training"].forward([datum(PROMPT)], "cross_entropy").result()
    np.testing.assert_allclose(found[1:], logprobs(output)[0], atol=1e-4)
    answer = (
        s["sampler"]
        .sample(prompt, 1, _params(), include_prompt_logprobs=True, topk_prompt_logprobs=2)
        .result()
    )
    assert answer.prompt_logprobs == found
    rows = answer.topk_prompt_logprobs
    assert len(rows) == len(PROMPT) and not rows[0] and all(len(r) == 2 for r in rows[1:])


@step
def sample_topk(s: dict[str, Any]) -> None:
    if "topk_sample_logprobs" not in inspect.signature(tinker.SamplingClient.sample).parameters:
        raise Absent("no topk_sample_logprobs")
    answer = (
        s["sampler"]
        .sample(
            types.ModelInput.from_ints(PROMPT), 1, _params(temperature=0.0), topk_sample_logprobs=3
        )
        .result()
    )
    sequence = answer.sequences[0]
    rows = sequence.topk_logprobs
    assert len(rows) == len(sequence.tokens)
    for row, token, logprob in zip(rows, sequence.tokens, sequence.logprobs, strict=True):
        assert (
            len(row) == 3 and row[0][0] == token and math.isclose(row[0][1], logprob, abs_tol=1e-5)
        )


@step
def prompt_logprobs_last_n(s: dict[str, Any]) -> None:
    if (
        "prompt_logprobs_last_n"
        not in inspect.signature(tinker.SamplingClient.compute_logprobs).parameters
    ):
        raise Absent("no prompt_logprobs_last_n")
    prompt = types.ModelInput.from_ints(PROMPT)
    whole = s["sampler"].compute_logprobs(prompt).result()
    found = s["sampler"].compute_logprobs(prompt, prompt_logprobs_last_n=2).result()
    assert found == [None, None, *whole[-2:]]


@step
def sample_the_base(s: dict[str, Any]) -> None:
    base = ready(s["service"].create_sampling_client(base_model="nano"))
    answer = base.sample(types.ModelInput.from_ints(PROMPT), 1, _params()).result()
    assert len(answer.sequences[0].tokens) == 5


@step
def pickled_sampler(s: dict[str, Any]) -> None:
    clone = pickle.loads(pickle.dumps(s["sampler"]))  # noqa: S301
    prompt = types.ModelInput.from_ints(PROMPT)
    ours = s["sampler"].sample(prompt, 2, _params()).result()
    theirs = clone.sample(prompt, 2, _params()).result()
    assert [q.tokens for q in ours.sequences] == [q.tokens for q in theirs.sequences]


@step
def many_samples_at_once(s: dict[str, Any]) -> None:
    prompt = types.ModelInput.from_ints(PROMPT)
    futures = [s["sampler"].sample(prompt, 1, _params(seed=i)) for i in range(30)]
    answers = [tuple(f.result().sequences[0].tokens) for f in futures]
    assert len(set(answers)) > 20


# --- REST --------------------------------------------------------------------------------------


@step
def rest_runs(s: dict[str, Any]) -> None:
    rest = s["rest"] = s["service"].create_rest_client()
    runs = rest.list_training_runs(limit=2).result()
    assert len(runs.training_runs) == 2 and runs.cursor.total_count >= 3
    second = rest.list_training_runs(limit=2, offset=2).result()
    seen = {r.training_run_id for r in [*runs.training_runs, *second.training_runs]}
    assert len(seen) >= 3 and s["run"] in seen
    run = rest.get_training_run(s["run"]).result()
    assert run.is_lora and run.lora_rank == 4 and run.base_model == "nano"
    assert run.last_checkpoint.checkpoint_id == "weights/one"
    assert run.last_sampler_checkpoint.checkpoint_id == "sampler_weights/s1"
    assert run.user_metadata == {"a": "b"}
    assert rest.get_training_run_by_tinker_path(s["state"]).result().training_run_id == s["run"]


@step
def rest_checkpoints(s: dict[str, Any]) -> None:
    listed = s["rest"].list_checkpoints(s["run"]).result().checkpoints
    assert {c.checkpoint_id for c in listed} == {"weights/one", "sampler_weights/s1"}
    page = s["rest"].list_user_checkpoints(limit=1, offset=1).result()
    assert len(page.checkpoints) == 1 and page.cursor.total_count >= 2
    info = s["rest"].get_weights_info_by_tinker_path(s["state"]).result()
    assert (info.base_model, info.lora_rank, info.is_lora) == ("nano", 4, True)


@step
def rest_sessions(s: dict[str, Any]) -> None:
    sessions = s["rest"].list_sessions().result().sessions
    own = s["run"].rpartition(":train:")[0]
    assert own in sessions
    session = s["rest"].get_session(own).result()
    assert s["run"] in session.training_run_ids and session.sampler_ids
    sampler = s["rest"].get_sampler(session.sampler_ids[0]).result()
    assert sampler.base_model == "nano"


@step
def rest_project(s: dict[str, Any]) -> None:
    own = s["run"].rpartition(":train:")[0]
    need(s["rest"], "assign_session_project")(own, "project-1").result()


def _checkpoint(s: dict[str, Any], name: str) -> Any:
    listed = s["rest"].list_checkpoints(s["run"]).result().checkpoints
    return next(c for c in listed if c.checkpoint_id == name)


@step
def publish(s: dict[str, Any]) -> None:
    s["rest"].publish_checkpoint_from_tinker_path(s["sampler_path"]).result()
    assert _checkpoint(s, "sampler_weights/s1").public
    s["rest"].unpublish_checkpoint_from_tinker_path(s["sampler_path"]).result()
    assert not _checkpoint(s, "sampler_weights/s1").public


@step
def ttl(s: dict[str, Any]) -> None:
    set_ttl = need(s["rest"], "set_checkpoint_ttl_from_tinker_path")
    set_ttl(s["sampler_path"], 3600).result()
    assert _checkpoint(s, "sampler_weights/s1").expires_at is not None
    set_ttl(s["sampler_path"], None).result()
    assert _checkpoint(s, "sampler_weights/s1").expires_at is None
    path = s["training"].save_state("short", ttl_seconds=3600).result().path
    set_ttl(path, 1).result()


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:  # without the key
        return bytes(answer.read())


@step
def archive(s: dict[str, Any]) -> None:
    ask = need(s["rest"], "get_checkpoint_archive_url_from_tinker_path")
    answer = ask(s["sampler_path"]).result()
    assert answer.expires is not None
    with tarfile.open(fileobj=io.BytesIO(_read(answer.url))) as tar:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(tar.getnames())


@step
def external_weights(s: dict[str, Any]) -> None:
    path = need(s["training"], "save_weights_external")("ext").result().path
    assert path == f"tinker://{s['run']}/external_weights/ext"
    answer = need(s["rest"], "get_external_weights_urls")(path).result()
    assert set(answer.urls) == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(_read(answer.urls["adapter_config.json"]))
    assert (config["r"], config["peft_type"]) == (4, "LORA")
    assert len(_read(answer.urls["adapter_model.safetensors"])) > 1000


@step
def copy_weights(s: dict[str, Any]) -> None:
    copied = need(s["rest"], "copy_weights")(s["sampler_path"], "project-2").result()
    assert copied.endswith("/sampler_weights/s1") and copied != s["sampler_path"]
    client = ready(s["service"].create_sampling_client(model_path=copied))
    prompt = types.ModelInput.from_ints(PROMPT)
    ours = s["saved"].sample(prompt, 1, _params()).result()
    assert (
        client.sample(prompt, 1, _params()).result().sequences[0].tokens == ours.sequences[0].tokens
    )


@step
def delete(s: dict[str, Any]) -> None:
    s["rest"].delete_checkpoint_from_tinker_path(s["state"]).result()
    names = [c.checkpoint_id for c in s["rest"].list_checkpoints(s["run"]).result().checkpoints]
    assert "weights/one" not in names


@step
def expired(s: dict[str, Any]) -> None:
    need(s["rest"], "set_checkpoint_ttl_from_tinker_path")
    time.sleep(1.1)
    names = [c.checkpoint_id for c in s["rest"].list_checkpoints(s["run"]).result().checkpoints]
    assert "weights/short" not in names


@step
def heartbeat(s: dict[str, Any]) -> None:
    time.sleep(float(os.environ.get("SDK_FLOW_IDLE_S", "0")))


@step
def finish(s: dict[str, Any]) -> None:
    need(s["service"], "close")("success").result()


def main(out: str) -> None:
    state: dict[str, Any] = {}
    found = {}
    for function in STEPS:
        try:
            function(state)
            found[function.__name__] = "ok"
        except Absent as e:
            found[function.__name__] = f"absent: {e}"
        except Exception:  # noqa: BLE001 - the test prints it
            found[function.__name__] = traceback.format_exc()
    with open(out, "w") as f:
        json.dump({"version": tinker.__version__, "steps": found}, f, indent=1)


if __name__ == "__main__":
    main(sys.argv[1])
