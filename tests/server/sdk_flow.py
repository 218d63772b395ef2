"""The whole flow of a user of the official `tinker` SDK, run as a script in that SDK's environment.

    python sdk_flow.py OUT.json       (TINKER_BASE_URL and TINKER_API_KEY in the environment)

It imports nothing of ours, so that it runs where only the SDK is installed, in any version from
0.22. It tests what others need of us: to train, sample, save, load, list, delete and download.
OUT.json gets {"version", "steps": {name: "ok" | "absent: why" | traceback}}. A step that the SDK of
this version does not offer is `absent`; one whose promises are broken has a traceback.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import io
import json
import math
import os
import pickle
import sys
import tarfile
import tempfile
import time
import traceback
import typing
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tinker
from tinker import types

STEPS: list[Callable[[dict[str, Any]], None]] = []
TOKEN = os.environ["TINKER_API_KEY"]
"""There is one account: the token of any other is its own."""
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


def refused(act: Callable[[], Any], *words: str) -> None:
    """The server says no, in words that name the thing."""
    try:
        act()
    except (tinker.TinkerError, ValueError, RuntimeError) as e:
        assert all(word in str(e) for word in words), e
    else:
        raise AssertionError(f"accepted what should be refused for: {words}")


def _names(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


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
    asked = {"user_metadata": {"who": "sdk_flow"}}
    if "display_name" in inspect.signature(tinker.ServiceClient).parameters:
        asked["display_name"] = "The nightly flow"
    s["service"] = tinker.ServiceClient(**asked)
    found = s["service"].get_server_capabilities()
    assert [m.model_name for m in found.supported_models] == ["nano"]


@step
def create_training_client(s: dict[str, Any]) -> None:
    made = s["service"].create_lora_training_client(
        base_model="nano", rank=4, seed=1, user_metadata={"a": "b"}
    )
    s["training"] = ready(made)
    only_mlp = {"train_attn": False, "train_unembed": False}
    part = ready(s["service"].create_lora_training_client(base_model="nano", rank=2, **only_mlp))
    part.forward_backward([datum(ROWS[0])], "cross_entropy").result()
    only_attn = {"train_mlp": False, "train_unembed": False}
    ready(s["service"].create_lora_training_client(base_model="nano", rank=2, **only_attn))


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
    forward = s["training"].forward(_policy_rows(s, 0.1), "ppo", config).result()
    assert math.isclose(forward.metrics["loss:sum"], tensors, rel_tol=1e-6)
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
def a_bad_row_of_many_leaves_no_gap(s: dict[str, Any]) -> None:
    """The SDK sends the first part last, and never if it hears that another is refused."""
    rows = [datum(r) for r in [*ROWS, *ROWS]]
    for place in (0, 3, 5):
        bad = [*rows[:place], datum([1, 9999]), *rows[place + 1 :]]
        backward = s["training"].forward_backward
        refused(lambda b=bad, f=backward: f(b, "cross_entropy").result(), "9999")
        s["training"].forward([rows[0]], "cross_entropy").result(timeout=60)
    s["training"].optim_step(types.AdamParams(learning_rate=1e-9)).result()


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
def save_state_over_another(s: dict[str, Any]) -> None:
    parameters = inspect.signature(s["training"].save_state).parameters
    if not {"overwrite", "user_metadata"} <= set(parameters):
        raise Absent("no overwrite or user_metadata in save_state")
    save = s["training"].save_state
    first = save("two", user_metadata={"n": "1", "gone": "x"}).result().path
    refused(lambda: save("two").result(), "exists")
    assert save("two", ttl_seconds=7200, overwrite=True, user_metadata={"n": "2"}).result()
    rest = s["service"].create_rest_client()
    listed = rest.list_checkpoints(s["run"]).result().checkpoints
    found = next(c for c in listed if c.tinker_path == first)
    assert found.user_metadata == {"n": "2"} and found.expires_at is not None
    rest.delete_checkpoint(s["run"], "weights/two").result()


@step
def create_training_client_from_state(s: dict[str, Any]) -> None:
    make = s["service"].create_training_client_from_state
    more = {"weights_access_token": TOKEN} if "weights_access_token" in _names(make) else {}
    loaded = ready(make(s["state"], user_metadata={"from": "one"}, **more))
    assert _loss(loaded) == s["state_loss"]
    if "base_model" in _names(make):
        refused(lambda: ready(make(s["state"], base_model="other")), "nano")
        adam = getattr(types, "AdamOptimizerConfig", None)
        more = {"optimizer": adam()} if adam else {}
        again = ready(make(s["state"], base_model="nano", **more))
        assert _loss(again) == s["state_loss"]
    make = s["service"].create_training_client_from_state_with_optimizer
    more = {"weights_access_token": TOKEN, "base_model": "nano"}
    given = {n: v for n, v in more.items() if n in _names(make)}
    kept = ready(make(s["state"], user_metadata={"from": "one"}, **given))
    assert _loss(kept) == s["state_loss"]
    s["kept"] = kept


@step
def load_state(s: dict[str, Any]) -> None:
    for name in ("load_state_with_optimizer", "load_state"):
        load = need(s["kept"], name)
        more = {"weights_access_token": TOKEN} if "weights_access_token" in _names(load) else {}
        load(s["state"], **more).result()
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
    asked = {"include_prompt_logprobs": True, "prompt_logprobs_last_n": 2}
    assert s["sampler"].sample(prompt, 1, _params(), **asked).result().prompt_logprobs == found


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


@step
def sampler_handle(s: dict[str, Any]) -> None:
    handle = need(s["sampler"], "get_sampler_handle")()
    clone = tinker.SamplingClient.from_sampler_handle(handle, api_key=os.environ["TINKER_API_KEY"])
    prompt = types.ModelInput.from_ints(PROMPT)
    ours = s["sampler"].sample(prompt, 1, _params()).result()
    theirs = clone.sample(prompt, 1, _params()).result()
    assert ours.sequences[0].tokens == theirs.sequences[0].tokens
    assert clone.get_base_model() == "nano"


@step
def an_abandoned_sample(s: dict[str, Any]) -> None:
    """The SDK tells the server (`cancel_future`), and the client goes on."""
    if not hasattr(getattr(s["sampler"], "holder", None), "enqueue_cancel"):
        raise Absent("no cancel_future")
    prompt = types.ModelInput.from_ints(PROMPT)
    futures = [s["sampler"].sample(prompt, 8, _params(max_tokens=60, seed=i)) for i in range(12)]
    time.sleep(0.3)
    for future in futures:
        future.future().cancel()
    answer = s["sampler"].sample(prompt, 1, _params()).result()
    assert len(answer.sequences[0].tokens) == 5
    time.sleep(0.3)


# --- what is refused by its name ---------------------------------------------------------------


@step
def images_and_sound(s: dict[str, Any]) -> None:
    for kind, chunk in (
        ("image", types.ImageChunk(data=b"x", format="png", expected_tokens=2)),
        ("dmel", types.DmelChunk(dmel=b"x") if hasattr(types, "DmelChunk") else None),
    ):
        if chunk is None:
            continue
        prompt = types.ModelInput(chunks=[chunk])
        refused(lambda p=prompt: s["sampler"].sample(p, 1, _params()).result(), f"{kind!r}")
        given = {"target_tokens": ints([1, 2]), "weights": floats([1, 1])}
        row = types.Datum(model_input=prompt, loss_fn_inputs=given)
        backward = s["training"].forward_backward
        refused(lambda b=backward, r=row: b([r], "cross_entropy").result(), f"{kind!r}")
    assert _loss(s["training"]) > 0


@step
def other_losses_and_optimizers(s: dict[str, Any]) -> None:
    backward = s["training"].forward_backward
    for name in ("stable_reinforce", "custom"):
        data = _policy_rows(s, 0.1)
        refused(lambda n=name, d=data: backward(d, n).result(), name, "cispo")
    if not hasattr(types, "DimuonParams"):
        return
    step = s["training"].optim_step
    refused(lambda: step(types.DimuonParams(learning_rate=0.1)).result(), "dimuon", "adamw")
    create, config = s["service"].create_lora_training_client, types.DimuonOptimizerConfig()
    refused(lambda: create("nano", optimizer=config).result(), "dimuon", "adamw")
    more, prompt = {"record_stability_info": True}, types.ModelInput.from_ints(PROMPT)
    for made in (
        s["service"].create_sampling_client(base_model="nano", **more),
        s["training"].create_sampling_client(s["sampler_path"], **more),
        s["training"].save_weights_and_get_sampling_client(**more),
    ):
        ask = made.result().sample
        refused(lambda a=ask: a(prompt, 1, _params()).result(), "record_stability_info")


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
def access_scope(s: dict[str, Any]) -> None:
    """There is one user, who may see what is owned."""
    rest, scope = s["rest"], {"access_scope": "accessible"}
    assert rest.get_training_run(s["run"], **scope).result().training_run_id == s["run"]
    total = rest.list_training_runs(**scope).result().cursor.total_count
    assert total == rest.list_training_runs().result().cursor.total_count


@step
def rest_checkpoints(s: dict[str, Any]) -> None:
    listed = s["rest"].list_checkpoints(s["run"]).result().checkpoints
    assert {c.checkpoint_id for c in listed} == {"weights/one", "sampler_weights/s1"}
    page = s["rest"].list_user_checkpoints(limit=1, offset=1).result()
    assert len(page.checkpoints) == 1 and page.cursor.total_count >= 2
    info = s["rest"].get_weights_info_by_tinker_path(s["state"]).result()
    assert (info.base_model, info.lora_rank, info.is_lora) == ("nano", 4, True)


@step
def rest_client_of_its_own(s: dict[str, Any]) -> None:
    if "base_url" not in _names(tinker.RestClient if hasattr(tinker, "RestClient") else len):
        raise Absent("no RestClient without a ServiceClient")
    given = {"base_url": os.environ["TINKER_BASE_URL"], "api_key": os.environ["TINKER_API_KEY"]}
    found = tinker.RestClient(**given).get_server_capabilities().result()
    assert [m.model_name for m in found.supported_models] == ["nano"]
    refused(lambda: tinker.RestClient(api_key="tml-wrong").list_training_runs().result(), "401")


def _checkpoint(s: dict[str, Any], name: str) -> Any:
    listed = s["rest"].list_checkpoints(s["run"]).result().checkpoints
    return next(c for c in listed if c.checkpoint_id == name)


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
def download_urls(s: dict[str, Any]) -> None:
    path = need(s["training"], "save_weights_external")("ext", ttl_seconds=3600).result().path
    assert _checkpoint(s, "external_weights/ext").expires_at is not None
    answer = s["rest"].get_external_weights_urls(path).result()
    assert set(answer.urls) == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(_read(answer.urls["adapter_config.json"]))
    assert (config["r"], config["peft_type"]) == (4, "LORA")
    assert len(_read(answer.urls["adapter_model.safetensors"])) > 1000


# --- the SDK's own command line ----------------------------------------------------------------


def _cli(s: dict[str, Any], *arguments: str, fails: bool = False, stdin: str = "") -> str:
    if importlib.util.find_spec("tinker.cli.auth_api") is None:
        raise Absent("an older command line")
    from click.testing import CliRunner
    from tinker.cli.__main__ import main_cli

    home = s.setdefault("home", tempfile.mkdtemp())
    runner = CliRunner(env={"HOME": home, "COLUMNS": "300"})
    done = runner.invoke(main_cli, list(arguments), input=stdin)
    told = [getattr(done.exception, name, None) or "" for name in ("message", "details")]
    assert (done.exit_code != 0) is fails, (arguments, done.output, *told)
    return "\n".join([done.output, *told])


def _json(s: dict[str, Any], *arguments: str) -> Any:
    text = _cli(s, "--format", "json", *arguments)
    return json.loads(text[text.index("{") :])


@step
def cli_lists(s: dict[str, Any]) -> None:
    assert "nano" in _cli(s, "model", "list", "na")
    runs = _json(s, "run", "list", "--limit", "1")["runs"]
    assert len(runs) == 1
    assert s["run"] in _cli(s, "run", "info", s["run"])
    assert "404" in _cli(s, "run", "info", "x:train:0", fails=True)
    listed = _json(s, "checkpoint", "list", "--run-id", s["run"])["checkpoints"]
    assert s["sampler_path"] in {c["tinker_path"] for c in listed}
    assert len(_json(s, "checkpoint", "list", "--limit", "1")["checkpoints"]) == 1
    assert s["sampler_path"] in _cli(s, "checkpoint", "info", s["sampler_path"])


@step
def cli_checkpoints(s: dict[str, Any]) -> None:
    path = s["sampler_path"]
    _cli(s, "checkpoint", "set-ttl", path, "--ttl", "7200")
    assert _checkpoint(s, "sampler_weights/s1").expires_at is not None
    _cli(s, "checkpoint", "set-ttl", path, "--remove")
    assert _checkpoint(s, "sampler_weights/s1").expires_at is None
    _cli(s, "checkpoint", "download", s["state"], "--output", s["home"])
    found = {f.name for f in Path(s["home"]).rglob("adapter_*")}
    assert found == {"adapter_config.json", "adapter_model.safetensors"}
    extra = s["training"].save_state("extra").result().path
    assert "1" in _cli(s, "checkpoint", "delete", extra, "--yes")
    assert extra in _cli(s, "checkpoint", "info", extra, fails=True)


# --- the end of checkpoints --------------------------------------------------------------------


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
    load = s["service"].create_training_client_from_state
    refused(lambda: ready(load(f"tinker://{s['run']}/weights/short")), "weights/short")


# --- every method once more as a coroutine ------------------------------------------------------


async def _train_as_coroutines(s: dict[str, Any]) -> None:
    service, data = s["service"], [datum(r) for r in ROWS]
    training = await service.create_lora_training_client_async(base_model="nano", rank=2)
    assert (await training.get_info_async()).lora_rank == 2
    plain = await (await training.forward_async(data, "cross_entropy"))
    again = await (await training.forward_backward_async(data, "cross_entropy"))
    assert plain.metrics == again.metrics
    await (await training.optim_step_async(types.AdamParams(learning_rate=1e-3)))
    path = (await (await training.save_state_async("as"))).path
    sampler_path = (await (await training.save_weights_for_sampler_async("as"))).path
    await (await training.load_state_async(path))
    await (await training.load_state_with_optimizer_async(path))
    if hasattr(training, "save_weights_external_async"):
        external = (await (await training.save_weights_external_async("as"))).path
        assert (await s["rest"].get_external_weights_urls_async(external)).urls
    loss = (await (await training.forward_async(data, "cross_entropy"))).metrics["loss:sum"]
    for name in ("", "_with_optimizer"):
        make = getattr(service, f"create_training_client_from_state{name}_async")
        loaded = await make(path)
        assert math.isclose(_loss(loaded), loss, rel_tol=1e-6)
    prompt, tokens = types.ModelInput.from_ints(PROMPT), []
    for sampler in (
        await training.save_weights_and_get_sampling_client_async(),
        await training.create_sampling_client_async(sampler_path),
        await service.create_sampling_client_async(model_path=sampler_path),
    ):
        answer = await sampler.sample_async(prompt, 1, _params())
        tokens.append(answer.sequences[0].tokens)
        assert len(await sampler.compute_logprobs_async(prompt)) == len(PROMPT)
        assert await sampler.get_base_model_async() == sampler.get_base_model() == "nano"
    assert tokens[0] == tokens[1] == tokens[2]
    assert (await service.get_server_capabilities_async()).supported_models
    s["as"] = (path, sampler_path)


async def _ask_as_coroutines(s: dict[str, Any]) -> None:
    rest, (path, _) = s["rest"], s["as"]
    run = path.split("/")[2]
    assert (await rest.get_training_run_async(run)).lora_rank == 2
    assert (await rest.get_training_run_by_tinker_path_async(path)).training_run_id == run
    assert (await rest.list_training_runs_async(limit=1)).cursor.limit == 1
    assert len((await rest.list_checkpoints_async(run)).checkpoints) >= 2
    assert (await rest.list_user_checkpoints_async(limit=1)).cursor.limit == 1
    await rest.set_checkpoint_ttl_from_tinker_path_async(path, 3600)
    await rest.delete_checkpoint_from_tinker_path_async(path)
    await rest.delete_checkpoint_async(run, "sampler_weights/as")


@step
def coroutines(s: dict[str, Any]) -> None:
    asyncio.run(_train_as_coroutines(s))
    asyncio.run(_ask_as_coroutines(s))


@step
def custom_loss_as_a_coroutine(s: dict[str, Any]) -> None:
    need_torch()

    def negative_sum(data: list[Any], found: list[Any]) -> tuple[Any, dict[str, float]]:
        return -sum(f.sum() for f in found), {}

    async def run() -> Any:
        data = [datum(r) for r in ROWS]
        return await (await s["training"].forward_backward_custom_async(data, negative_sum))

    assert math.isclose(asyncio.run(run()).metrics["loss:sum"], _loss(s["training"]), rel_tol=1e-4)


@step
def deprecated_names(s: dict[str, Any]) -> None:
    """What newer versions keep for callers of older ones."""
    path = s["training"].save_weights_for_sampler("last", ttl_seconds=3600).result().path
    if "user_metadata" in _names(s["training"].save_weights_for_sampler):
        more = {"ttl_seconds": 3600, "user_metadata": {"a": "b"}}
        path = s["training"].save_weights_for_sampler("later", **more).result().path
        assert _checkpoint(s, "sampler_weights/later").user_metadata == {"a": "b"}
    retries = tinker.lib.retry_handler.RetryConfig(progress_timeout=60)
    prompt = types.ModelInput.from_ints(PROMPT)
    for sampler in (
        ready(s["training"].create_sampling_client(path, retry_config=retries)),
        ready(s["service"].create_sampling_client(model_path=path, retry_config=retries)),
        ready(s["training"].save_weights_and_get_sampling_client("ignored", retries)),
    ):
        assert len(sampler.sample(prompt, 1, _params()).result().sequences[0].tokens) == 5
    step = s["training"].optim_step
    if "optim_params" in _names(step):
        step(adam_params=types.AdamParams(learning_rate=1e-9)).result()
    if hasattr(s["service"], "get_console_url"):
        assert s["run"].rpartition(":train:")[0] in s["service"].get_console_url()
        assert s["training"].get_console_url()


@step
def heartbeat(s: dict[str, Any]) -> None:
    time.sleep(float(os.environ.get("SDK_FLOW_IDLE_S", "0")))


@step
def finish(s: dict[str, Any]) -> None:
    need(s["service"], "close")("success", "the flow is over").result()


def main(out: str) -> None:
    warnings.simplefilter("ignore", FutureWarning)  # we call what newer versions deprecate
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
    Path(out).write_text(json.dumps({"version": tinker.__version__, "steps": found}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
