"""Bases by their hub id: from the hub's cache, fetched from a hub, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from crucible_tinkex.errors import ConfigError, StorageError
from crucible_tinkex.server import bases
from crucible_tinkex.server.bases import hub

SHA = "0123456789abcdef0123456789abcdef01234567"
Cached = Callable[..., Path]


@pytest.fixture(scope="module")
def exported(nano: bases.Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`nano` as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("exported")
    bases.load_model(nano, torch.float32).save_pretrained(folder)
    for file in nano.tokenizer_folder.iterdir():
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the hub is out of reach."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def cached(hub_cache: Path, exported: Path) -> Cached:
    """Puts `exported` into the cache, as the hub's own tools do."""

    def put(name: str = "org/nano", *, without: str = "", config: str = "") -> Path:
        root = hub_cache / f"models--{name.replace('/', '--')}"
        snapshot = root / "snapshots" / SHA
        shutil.copytree(exported, snapshot)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(SHA)
        if without:
            (snapshot / without).unlink()
        if config:
            (snapshot / "config.json").write_text(config)
        return snapshot

    return put


def test_a_model_in_the_cache_is_a_base_without_a_network(cached: Cached, nano: bases.Base) -> None:
    snapshot = cached()
    base = bases.ensure_base("org/nano")
    assert base == bases.Base("org/nano", snapshot, snapshot)
    tokens = torch.arange(12)[None]
    ours = bases.load_model(base, torch.float32)(tokens).logits
    assert torch.equal(ours, bases.load_model(nano, torch.float32)(tokens).logits)
    assert bases.ensure_base(f"org/nano@{SHA}").folder == snapshot


def test_without_a_network_it_is_said_at_once(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client tried for 23 seconds."""
    with pytest.raises(ConfigError, match=r"\(HF_HUB_OFFLINE is set\); fetch it where"):
        bases.ensure_base("org/nano")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "getproxies", dict)
    began = time.monotonic()
    with pytest.raises(
        ConfigError, match=r"cannot be reached \(ConnectionRefused.*hf download org"
    ):
        bases.ensure_base("org/nano")
    assert time.monotonic() - began < hub.PROBE_S


def test_weights_in_several_files_must_all_be_there(cached: Cached, exported: Path) -> None:
    snapshot = cached()
    (snapshot / "model.safetensors").rename(snapshot / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="not whole"):
        bases.ensure_base("org/nano")
    shutil.copy(exported / "model.safetensors", snapshot / "model-2.safetensors")
    assert bases.ensure_base("org/nano").folder == snapshot


@pytest.mark.parametrize("without", ["model.safetensors", "tokenizer.json", "config.json"])
def test_half_a_model_offline_is_refused_with_the_way_out(cached: Cached, without: str) -> None:
    cached(without=without)
    with pytest.raises(ConfigError, match=r"not whole.*cannot be reached.*hf download org/nano"):
        bases.ensure_base("org/nano")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "gpt2"}', "org/nano holds a 'gpt2' model; supported are llama"),
        ('{"model_type": "llama", "quantization_config": {"bits": 4}}', "is quantised"),
        ('{"model_type": "gemma2", "final_logit_softcapping": 30.0}', "softcapping"),
        ("{", "config.json is damaged"),
    ],
)
def test_what_the_server_cannot_run_is_refused(cached: Cached, config: str, message: str) -> None:
    cached(config=config)
    with pytest.raises(ConfigError, match=message):
        bases.ensure_base("org/nano")


def test_what_is_no_id_is_not_looked_for(hub_cache: Path) -> None:
    for name in ("gpt-9", "a/b/c", "./folder", "/no/such", "../up/x", "org/"):
        assert not hub.is_hub_id(name)
        with pytest.raises(ConfigError, match=r"neither known.*org/name"):
            bases.ensure_base(name)


# --- a hub on this machine ------------------------------------------------------------------------


class _Hub:
    """Answers as the hub does: what a model has, and its files."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.asked: list[str] = []
        self.error: tuple[int, str] | None = None
        this = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                this.answer(self)

            do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.partition("?")[0].rpartition("/")[2]
        if self.error is not None:
            request.send_response(self.error[0])
            request.send_header("X-Error-Code", self.error[1])
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if request.path.startswith("/api/"):
            files = [{"rfilename": f, "size": len(b)} for f, b in self.files.items()]
            tree = [
                {"type": "file", "path": f, "size": len(b), "oid": "0"}
                for f, b in self.files.items()
            ]
            info = {"id": "org/nano", "sha": SHA, "siblings": files}
            body = json.dumps(tree if "/tree/" in request.path else info).encode()
        elif name in self.files:
            body = self.files[name]
            if request.command == "GET":
                self.asked.append(name)
        else:
            request.send_response(404)
            request.send_header("X-Error-Code", "EntryNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(200)
        request.send_header("X-Repo-Commit", SHA)
        request.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@pytest.fixture
def on_hub(hub_cache: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Hub]:
    served = _Hub({file.name: file.read_bytes() for file in exported.iterdir()})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    template = f"{served.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield served
    served.server.shutdown()
    served.server.server_close()


def test_a_model_is_fetched_once(
    on_hub: _Hub, hub_cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    on_hub.files["pytorch_model.bin"] = b"nobody wants it"
    base = bases.ensure_base("org/nano")
    assert base.folder == hub_cache / "models--org--nano" / "snapshots" / SHA
    assert bases.load_model(base, torch.float32).config.model_type == "llama"
    assert "fetching org/nano (3 MB) from the Hugging Face hub, once" in capfd.readouterr().err
    assert "pytorch_model.bin" not in on_hub.asked
    asked = list(on_hub.asked)
    on_hub.error = (404, "RepoNotFound")
    assert bases.ensure_base("org/nano") == base
    assert on_hub.asked == asked


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ((404, "RepoNotFound"), "no such model on the Hugging Face hub; check the name"),
        (
            (403, "GatedRepo"),
            "is gated: accept its terms on https://huggingface.co/org/nano.*HF_TO",
        ),
        ((404, "RevisionNotFound"), "no such model on the Hugging Face hub"),
        ((404, "EntryNotFound"), "has no config.json"),
    ],
)
def test_what_the_hub_does_not_give_is_named(
    on_hub: _Hub, hub_cache: Path, error: tuple[int, str], message: str
) -> None:
    on_hub.error = error
    with pytest.raises(ConfigError, match=message):
        bases.ensure_base("org/nano")


def test_another_family_is_refused_before_its_weights_are_fetched(on_hub: _Hub) -> None:
    on_hub.files["config.json"] = b'{"model_type": "gpt2"}'
    with pytest.raises(ConfigError, match="'gpt2' model"):
        bases.ensure_base("org/nano")
    assert on_hub.asked == ["config.json"]


@pytest.mark.parametrize("without", ["tokenizer.json", "model.safetensors"])
def test_a_model_in_another_form_is_refused_before_it_is_fetched(
    on_hub: _Hub, without: str
) -> None:
    del on_hub.files[without]
    with pytest.raises(ConfigError, match=r"lacks tokenizer\.json, or weights as safetensors"):
        bases.ensure_base("org/nano")
    assert on_hub.asked == ["config.json"]


def test_a_disk_without_room_is_said_before(on_hub: _Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1_000_000))
    with pytest.raises(StorageError, match=r"needs 3 MB in .* which has 1 free"):
        bases.ensure_base("org/nano")
    assert on_hub.asked == ["config.json"]
