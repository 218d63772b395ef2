"""Lists, changes and downloads, over real sockets; hostile archives."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from scripted_service import Answer, ScriptedService
from test_client_training import FAST

from crucible_tinkex.client import TinkexService
from crucible_tinkex.client.checkpoints.archive import ArchiveLimits, member_path, unpack
from crucible_tinkex.client.checkpoints.download import DownloadLimits, split_url
from crucible_tinkex.client.checkpoints.rest import RestClient
from crucible_tinkex.errors import (
    ConfigError,
    ProtocolError,
    RequestRejectedError,
    ServiceError,
    ServiceUnavailableError,
    StorageError,
)

PATH = "tinker://s1:train:0/weights/a"
PLACE = "training_runs/s1:train:0/checkpoints/weights/a"
QUICK = DownloadLimits(pause_s=0.001, idle_s=0.3)


@pytest.fixture
async def rest(scripted: ScriptedService, key: str) -> AsyncIterator[RestClient]:
    async with TinkexService(scripted.url, settings=FAST) as service:
        yield service.rest


def checkpoint(name: str) -> dict[str, Any]:
    return {
        "checkpoint_id": f"weights/{name}",
        "checkpoint_type": "training",
        "time": "2026-01-01T00:00:00Z",
        "tinker_path": f"tinker://r/weights/{name}",
        "new_field": 1,
    }


async def test_listings_go_on_to_their_end(scripted: ScriptedService, rest: RestClient) -> None:
    cursor = {"offset": 0, "limit": 2, "total_count": 3}
    pages = [[checkpoint("a"), checkpoint("b")], [checkpoint("c")]]
    for offset, page in zip((0, 2), pages, strict=True):
        body = {"checkpoints": page, "cursor": cursor}
        scripted.on(f"checkpoints?limit=2&offset={offset}", Answer(body=body))
    names = [c.checkpoint_id async for c in rest.checkpoints(page=2)]
    assert names == ["weights/a", "weights/b", "weights/c"]
    body = {"checkpoints": [checkpoint("a")]}
    scripted.on("checkpoints?limit=100&offset=0", Answer(body=body))
    assert [c.tinker_path async for c in rest.checkpoints()] == ["tinker://r/weights/a"]
    scripted.on("training_runs/r:train:0/checkpoints", Answer(body=body))
    assert [c.checkpoint_id async for c in rest.checkpoints("r:train:0")] == ["weights/a"]


async def test_single_records(scripted: ScriptedService, rest: RestClient) -> None:
    scripted.on("weights_info", Answer(body={"base_model": "m", "is_lora": True, "lora_rank": 4}))
    assert (await rest.weights_info(PATH)).lora_rank == 4


async def test_changes(scripted: ScriptedService, rest: RestClient) -> None:
    scripted.on(PLACE, Answer(204), Answer(404))
    scripted.on(f"{PLACE}/ttl", Answer(204), Answer(204))
    await rest.delete(PATH)
    await rest.delete(PATH)
    await rest.set_ttl(PATH, 3600)
    await rest.set_ttl(PATH, None)
    made = [(r.method, r.body) for r in scripted.requests]
    assert [m for m, _ in made] == ["DELETE", "DELETE", "PUT", "PUT"]
    assert [json.loads(b) for _, b in made[-2:]] == [{"ttl_seconds": 3600}, {"ttl_seconds": None}]
    with pytest.raises(ConfigError):
        await rest.delete("tinker://x/../y")


# --- downloads --------------------------------------------------------------------------------


def packed(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


FILES = {"adapter.safetensors": b"w" * 300_000, "config/adapter.json": b"{}"}


@pytest.mark.parametrize("way", ["redirect", "url"])
async def test_an_archive_is_fetched_without_the_key(
    scripted: ScriptedService, rest: RestClient, key: str, way: str, tmp_path: Path
) -> None:
    async with ScriptedService() as store:
        url = f"{store.url}/signed/a.tar?sig=x"
        answers = {
            "redirect": Answer(302, headers={"Location": url}),
            "url": Answer(body={"url": url}),
        }
        scripted.on(f"{PLACE}/archive", Answer(503), answers[way])
        whole = Answer(body=packed(FILES))
        store.on(
            "/signed/a.tar?sig=x", Answer(500), Answer(body=whole.body, mode="truncated"), whole
        )
        seen: list[tuple[str, int, int | None]] = []
        found = await rest.download(
            PATH, tmp_path / "out", progress=lambda *a: seen.append(a), limits=QUICK
        )
        assert [p.relative_to(tmp_path / "out").as_posix() for p in found] == sorted(FILES)
        assert all(
            p.read_bytes() == FILES[p.relative_to(tmp_path / "out").as_posix()] for p in found
        )
        assert seen[-1] == ("archive", len(whole.body), len(whole.body))
        assert not any(key in str(r.headers) for r in store.requests)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert all(r.headers["x-api-key"] == key for r in scripted.requests)


async def test_files_come_by_their_own_urls(
    scripted: ScriptedService, rest: RestClient, key: str, tmp_path: Path
) -> None:
    async with ScriptedService() as store:
        urls = {name: f"{store.url}/f/{i}" for i, name in enumerate(FILES)}
        scripted.on(f"{PLACE}/external_weights_urls", Answer(body={"urls": urls, "expires": "x"}))
        for i, content in enumerate(FILES.values()):
            store.on(f"/f/{i}", Answer(body=content))
        found = await rest.download(PATH, tmp_path / "out", limits=QUICK)
        assert {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in found} == FILES
        assert not any("x-api-key" in r.headers for r in store.requests)


async def test_a_signed_url_keeps_its_meaning(
    scripted: ScriptedService, rest: RestClient, tmp_path: Path
) -> None:
    """The library may write a query's characters another way; a signature is of what they mean."""
    signed = "/a%2Fb%20c.tar?credential=k%2F1%2Fs3&sig=a%2Bb%3D%3D&x=%20y&t=a+b&q=%26%3a&e="
    async with ScriptedService() as store:
        urls = {"f": f"{store.url}{signed}"}
        scripted.on(f"{PLACE}/external_weights_urls", Answer(body={"urls": urls}))
        with pytest.raises(ServiceError, match="404"):
            await rest.download(PATH, tmp_path / "out", limits=QUICK)
        (found,) = [urlsplit(r.path) for r in store.requests]
    wanted = urlsplit(signed)
    assert found.path == wanted.path
    assert parse_qsl(found.query, True) == parse_qsl(wanted.query, True)


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([Answer(403)], Exception),
        ([Answer(302, headers={"Location": "http://127.0.0.1:1/"})], Exception),
        ([Answer(500)] * 4, ServiceUnavailableError),
        ([Answer(body=b"x" * 99, mode="hang")] * 4, ServiceUnavailableError),
        ([Answer(body=b"not a tar file")], ProtocolError),
        ([Answer(body=packed({"../up": b"x"}))], ProtocolError),
        ([Answer(body=b"x" * 5000)], ProtocolError),
    ],
)
async def test_a_failed_download_leaves_nothing(
    scripted: ScriptedService,
    rest: RestClient,
    answers: list[Answer],
    error: type[Exception],
    tmp_path: Path,
) -> None:
    async with ScriptedService() as store:
        scripted.on(f"{PLACE}/archive", Answer(body={"url": f"{store.url}/a"}))
        store.on("/a", *answers)
        limits = QUICK._replace(archive=ArchiveLimits(bytes=4000), idle_s=0.05)
        with pytest.raises(error):
            await rest.download(PATH, tmp_path / "out", limits=limits)
    assert list(tmp_path.iterdir()) == []


async def test_an_existing_folder_is_not_touched(
    scripted: ScriptedService, rest: RestClient, tmp_path: Path
) -> None:
    scripted.on(f"{PLACE}/archive", Answer(body={"url": "https://x/"}))
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="exists"):
        await rest.download(PATH, tmp_path / "out")


@pytest.mark.parametrize("answer", [Answer(302), Answer(body={"no": "url"})])
async def test_an_archive_answer_without_a_place_is_refused(
    scripted: ScriptedService, rest: RestClient, answer: Answer, tmp_path: Path
) -> None:
    scripted.on(f"{PLACE}/archive", *[answer] * 5)
    with pytest.raises(ProtocolError):
        await rest.download(PATH, tmp_path / "out")


async def test_a_missing_checkpoint_cannot_be_downloaded(rest: RestClient, tmp_path: Path) -> None:
    with pytest.raises(RequestRejectedError):
        await rest.download(PATH, tmp_path / "out")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a",
        "https://169.254.169.254/latest",
        "https://user:pw@example.org/",
        "file:///etc/passwd",
        "",
        "https://example.org/\u00e9",
        "https://example.org/a b",
        "http://[::1",
    ],
)
def test_unsafe_urls_are_refused(url: str) -> None:
    with pytest.raises(ProtocolError):
        split_url(url)


# --- archives ---------------------------------------------------------------------------------

Change = Callable[[tarfile.TarInfo], object]


def archive(folder: Path, *members: tuple[str, Change], content: bytes = b"x") -> Path:
    target = folder / "a.tar"
    with tarfile.open(target, "w") as made:
        for name, change in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            made.addfile(info, io.BytesIO(content) if info.size else None)
    return target


def kind(value: bytes, link: str = "") -> Change:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = value, link, 0

    return change


def plain(info: tarfile.TarInfo) -> None:
    pass


@pytest.mark.parametrize(
    "members",
    [
        [("a", kind(tarfile.SYMTYPE, "/etc/passwd"))],
        [("a", kind(tarfile.LNKTYPE, "b"))],
        [("a", kind(tarfile.CHRTYPE))],
        [("a", kind(tarfile.BLKTYPE))],
        [("a", kind(tarfile.FIFOTYPE))],
        [("/a", plain)],
        [("../a", plain)],
        [("b/../../a", plain)],
        [("a\\..\\b", plain)],
        [("c:a", plain)],
        [("a\x07", plain)],
        [("a", plain), ("a", plain)],
        [("a", plain), ("A", plain)],
        [(f"f{i}", plain) for i in range(6)],
    ],
)
def test_hostile_members_are_refused(members: list[tuple[str, Change]], tmp_path: Path) -> None:
    target = archive(tmp_path, *members)
    (tmp_path / "out").mkdir()
    with pytest.raises(ProtocolError):
        unpack(target, tmp_path / "out", limits=ArchiveLimits(members=5))
    assert not (tmp_path.parent / "a").exists()


def test_a_bomb_is_stopped_early(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.tar.gz"
    with gzip.open(bomb, "wb") as out, tarfile.open(fileobj=out, mode="w|") as made:
        info = tarfile.TarInfo("zeros")
        info.size = 60 * 1024 * 1024
        made.addfile(info, io.BytesIO(bytes(info.size)))
    (tmp_path / "out").mkdir()
    with pytest.raises(ProtocolError, match="more than"):
        unpack(bomb, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_header_is_not_believed(tmp_path: Path) -> None:
    target = archive(tmp_path, ("a", plain), content=b"x" * 600)
    for cut, size in ((700, None), (None, 10**15)):
        data = bytearray(target.read_bytes())
        if size is not None:
            info = tarfile.TarInfo("pax")
            info.type, info.size = tarfile.XHDTYPE, 1 << 40
            data[:512] = info.tobuf(tarfile.GNU_FORMAT)[:512]
        broken = tmp_path / "broken.tar"
        broken.write_bytes(bytes(data[:cut]))
        out = tmp_path / f"out{cut}"
        out.mkdir()
        with pytest.raises(ProtocolError):
            unpack(broken, out)


def test_plain_folders_are_fine(tmp_path: Path) -> None:
    target = archive(tmp_path, ("./", kind(tarfile.DIRTYPE)), ("./d/f", plain))
    (tmp_path / "out").mkdir()
    unpack(target, tmp_path / "out")
    assert (tmp_path / "out/d/f").read_bytes() == b"x"
    assert member_path("a/./b").as_posix() == "a/b"
