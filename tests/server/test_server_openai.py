"""`/v1`: what OpenAI's clients ask for, with plain HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from app_client import KEY, AppClient
from transformers import AutoTokenizer

from crucible_tinkex.names import TinkerPath
from crucible_tinkex.server import bases
from crucible_tinkex.server.store.store import ADAPTER_FILE, MANIFEST_FILE

HELLO = [{"role": "user", "content": "hello"}]
ROOT = "http://server/v1/"


@pytest.fixture(scope="module")
def api(nano: bases.Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    client = AppClient(nano, tmp_path_factory.mktemp("data"))
    yield client
    client.close()


@pytest.fixture(scope="module")
def adapter(api: AppClient) -> str:
    """The path of an adapter that no longer answers as the base does."""
    model = api.model()
    for step in range(3):
        api.ok("retrieve_future", request_id=api.train(model, 2 * step + 1, [1, 2, 3, 4, 5, 6]))
        adam = {"learning_rate": 0.1}
        api.result("optim_step", model_id=model, seq_id=2 * step + 2, adam_params=adam)
    saved = api.result("save_weights_for_sampler", model_id=model, seq_id=7, path="s")
    return str(saved["path"])


def ask(api: AppClient, path: str, /, **body: Any) -> httpx.Response:
    headers = {"X-API-Key": "", "Authorization": f"Bearer {KEY}"}
    return api.send("POST", f"{ROOT}{path}", content=json.dumps(body), headers=headers)


def answer(api: AppClient, path: str, /, **body: Any) -> Any:
    response = ask(api, path, **{"model": "nano", "max_tokens": 12, "seed": 5, **body})
    assert response.status_code == 200, response.text
    return response.json()


def events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_models_are_the_base_and_the_adapters(api: AppClient, adapter: str) -> None:
    found = api.get(f"{ROOT}models")
    assert found["object"] == "list"
    assert [m["id"] for m in found["data"]] == ["nano", adapter]


def test_an_adapter_of_another_base_is_not_offered(nano: bases.Base, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "run" / "sampler_weights" / "s"
    folder.mkdir(parents=True)
    spec = {"rank": 1, "seed": 0, "train_attn": True, "train_mlp": False, "train_unembed": False}
    told = {"tinker_path": "tinker://run/sampler_weights/s", "base_model": "org/other"}
    about = {**told, "spec": spec, "steps": 1, "optimizer": False, "created": "2026-01-01"}
    (folder / MANIFEST_FILE).write_text(json.dumps(about))
    client = AppClient(nano, tmp_path)
    try:
        assert [m["id"] for m in client.get(f"{ROOT}models")["data"]] == ["nano"]
    finally:
        client.close()


def test_a_chat_answers_as_the_protocol_samples(api: AppClient, nano: bases.Base) -> None:
    whole = answer(api, "chat/completions", messages=HELLO, n=2)
    tokenizer = AutoTokenizer.from_pretrained(nano.tokenizer_folder)
    prompt = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, tokenize=False)
    tokens = tokenizer.encode(prompt, add_special_tokens=False)
    ours = api.result(
        "asample",
        base_model="nano",
        num_samples=2,
        prompt={"chunks": [{"type": "encoded_text", "tokens": tokens}]},
        sampling_params={"max_tokens": 12, "seed": 5},
    )
    texts = [tokenizer.decode(s["tokens"], skip_special_tokens=True) for s in ours["sequences"]]
    assert [c["message"]["content"] for c in whole["choices"]] == texts
    assert [c["index"] for c in whole["choices"]] == [0, 1]
    assert {c["finish_reason"] for c in whole["choices"]} <= {"stop", "length"}
    written = sum(len(s["tokens"]) for s in ours["sequences"])
    assert whole["usage"] == {
        "prompt_tokens": len(tokens),
        "completion_tokens": written,
        "total_tokens": len(tokens) + written,
    }
    assert whole["object"] == "chat.completion" and whole["model"] == "nano"


def test_an_adapter_answers_with_its_weights(api: AppClient, adapter: str) -> None:
    given = {"prompt": "\x01\x02", "temperature": 0}
    base = answer(api, "completions", **given)
    own = answer(api, "completions", **given, model=adapter)
    assert base["choices"][0]["text"] != own["choices"][0]["text"]
    assert own == {**own, "model": adapter, "object": "text_completion"}


def test_a_stream_says_the_same_in_pieces(api: AppClient) -> None:
    given = {"model": "nano", "max_tokens": 12, "seed": 5, "n": 2, "messages": HELLO}
    whole = answer(api, "chat/completions", **given)
    options = {"include_usage": True}
    found = events(ask(api, "chat/completions", **given, stream=True, stream_options=options))
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {e["object"] for e in found} == {"chat.completion.chunk"}
    for choice in whole["choices"]:
        own = [c for e in found for c in e["choices"] if c["index"] == choice["index"]]
        text = "".join(c["delta"].get("content", "") for c in own)
        assert text == choice["message"]["content"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
    assert (found[-1]["choices"], found[-1]["usage"]) == ([], whole["usage"])

    plain = answer(api, "completions", prompt="ab")
    parts = events(
        ask(api, "completions", model="nano", prompt="ab", max_tokens=12, seed=5, stream=True)
    )
    assert "".join(e["choices"][0]["text"] for e in parts) == plain["choices"][0]["text"]


def test_a_stop_string_ends_the_text_and_is_not_in_it(api: AppClient) -> None:
    text = answer(api, "completions", prompt="ab", temperature=0)["choices"][0]["text"]
    stop = text[3]
    cut = answer(api, "completions", prompt="ab", temperature=0, stop=[stop])["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (text[: text.index(stop)], "stop")


def test_several_prompts_as_text_or_tokens(api: AppClient) -> None:
    texts = answer(api, "completions", prompt=["ab", "cd"], n=2, temperature=0)
    tokens = answer(api, "completions", prompt=[[*b"ab"], [*b"cd"]], n=2, temperature=0)
    assert [c["index"] for c in texts["choices"]] == [0, 1, 2, 3]
    assert texts["choices"] == tokens["choices"]
    one = answer(api, "completions", prompt=[*b"cd"], temperature=0)
    assert one["choices"][0]["text"] == texts["choices"][2]["text"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "gpt-4"}, 404, "gpt-4"),
        ({"model": "tinker://nobody/sampler_weights/x"}, 404, "nobody"),
        ({"model": "tinker://nonsense"}, 404, "nonsense"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "content"),
        ({"n": 0}, 400, "num_samples"),
        ({"top_p": 0}, 400, "top_p"),
        ({"temperature": -1}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ],
)
def test_bad_requests_are_told_in_openais_form(
    api: AppClient, body: dict[str, Any], status: int, words: str
) -> None:
    for stream in (False, True):
        given = {"model": "nano", "messages": HELLO, "max_tokens": 2, "stream": stream, **body}
        response = ask(api, "chat/completions", **given)
        error = response.json()["error"]
        assert response.status_code == status, response.text
        assert words in error["message"] and error["type"] == "invalid_request_error"
        assert set(error) == {"message", "type", "param", "code"}


def test_what_asks_for_nothing_is_no_reason_to_refuse(api: AppClient) -> None:
    answer(api, "chat/completions", messages=HELLO, tools=[], logprobs=False, user="me", stop=None)


@pytest.mark.parametrize("path", ["models", "nonsense"])
def test_nothing_without_the_key(api: AppClient, path: str) -> None:
    for headers in ({"X-API-Key": ""}, {"X-API-Key": "", "Authorization": "Bearer wrong"}):
        refused = api.send("GET", f"{ROOT}{path}", headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert "Authorization: Bearer" in refused.json()["error"]["message"]


def test_other_paths_are_unknown(api: AppClient) -> None:
    for method, path in (("POST", "embeddings"), ("GET", "completions")):
        unknown = api.send(method, f"{ROOT}{path}")
        assert unknown.status_code == 404 and path in unknown.json()["error"]["message"]


def test_a_damaged_adapter_is_named(api: AppClient) -> None:
    model = api.model()
    api.result("save_weights_for_sampler", model_id=model, seq_id=1, path="broken")
    path = TinkerPath(model, "sampler_weights", "broken")
    (api.store.folder(path) / ADAPTER_FILE).write_bytes(b"nothing")
    response = ask(api, "completions", model=str(path), prompt="x")
    assert response.status_code == 422 and "is damaged" in response.json()["error"]["message"]
