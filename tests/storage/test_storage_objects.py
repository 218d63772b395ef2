"""One contract for objects in a folder, in memory and on a real S3 server."""

from __future__ import annotations

import os
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore
from s3_server import BUCKET, ENVIRONMENT

from crucible_tinkex.errors import ConfigError, StorageError
from crucible_tinkex.storage import Objects

BIG = 12_000_000  # more than one part of an upload


@pytest.fixture(params=["folder", "memory", "s3"])
def objects(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Objects:
    if request.param == "folder":
        return Objects.open(tmp_path / "objects")
    if request.param == "memory":
        return Objects.open("memory://")
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": request.getfixturevalue("s3")}.items():
        monkeypatch.setenv(name, value)
    return Objects.open(f"s3://{BUCKET}/{tmp_path.name}/")


def test_what_is_put_is_got_listed_and_deleted(objects: Objects) -> None:
    assert objects.listing() == []
    objects.put("a/one.txt", b"1")
    objects.put("a/b/two words é.txt", b"22")
    objects.put("c.txt", b"")
    objects.put("a/one.txt", b"new")
    assert [(o.key, o.size_bytes) for o in objects.listing()] == [
        ("a/b/two words é.txt", 2),
        ("a/one.txt", 3),
        ("c.txt", 0),
    ]
    assert [o.key for o in objects.listing("a/b/")] == ["a/b/two words é.txt"]
    assert objects.listing("nothing") == []
    assert objects.get("a/one.txt") == b"new"
    assert objects.get("c.txt") == b""
    found = objects.info("a/one.txt")
    assert found is not None and found.modified.tzinfo is not None and found.etag
    objects.put("a/one.txt", b"newer")
    newer = objects.info("a/one.txt")
    assert newer is not None and newer.etag != found.etag
    objects.delete(["a/one.txt", "never/was"])
    objects.delete("a/one.txt")
    assert objects.info("a/one.txt") is None
    objects.delete_all("a")
    assert [o.key for o in objects.listing()] == ["c.txt"]


def test_large_files_are_streamed_both_ways(objects: Objects, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(os.urandom(BIG))
    objects.put("deep/big", source)
    pieces = list(objects.stream("deep/big"))
    assert objects.url == "memory://" or max(map(len, pieces)) < BIG / 2
    assert b"".join(pieces) == source.read_bytes()


@pytest.mark.parametrize("key", ["", "../up", "/abs", "a/../b", "a//b", "a/", "a\\b", "a\n", "."])
def test_keys_that_could_leave_the_place_are_refused(objects: Objects, key: str) -> None:
    for use in (objects.get, lambda k: objects.put(k, b"x"), objects.delete, objects.info):
        with pytest.raises(StorageError, match="not a relative path"):
            use(key)


def test_what_is_missing_is_named(objects: Objects, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no/such: there is no such object"):
        objects.get("no/such")
    with pytest.raises(StorageError, match="into"):
        objects.put("into", tmp_path / "no-file")


def test_a_bucket_that_is_not_there_and_a_dead_server(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": s3}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match="s3://other/x/key: there is no such bucket"):
        Objects.open("s3://other/x").put("key", b"")


def test_missing_credentials_are_named_with_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library asks the cloud's own machines for some, and says that these do not answer."""

    def refused(*_: object) -> None:
        raise GenericError("Error performing PUT http://169.254.169.254/latest/api/token: 403")

    monkeypatch.setattr(obstore, "put", refused)
    for place, name in (("s3://b/x", "AWS_ACCESS_KEY_ID"), ("gs://b", "GOOGLE_APPLICATION_CRED")):
        with pytest.raises(StorageError, match=f"has no credentials: set {name}"):
            Objects(place, MemoryStore()).put("key", b"")
    with pytest.raises(StorageError) as caught:
        Objects("memory://", MemoryStore()).put("key", b"")
    assert "credentials" not in str(caught.value)


@pytest.mark.parametrize("place", ["ftp://host/x", "", "s3x://b", "https://host/x"])
def test_other_schemes_are_refused(place: str) -> None:
    with pytest.raises(ConfigError, match=r"neither a folder nor one of az://, file://, gs://"):
        Objects.open(place)


def test_a_folder_that_cannot_be_is_named(tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="is a file, not a folder"):
        Objects.open(tmp_path / "file" / "below")
    with pytest.raises(StorageError, match=r"No space"):
        Objects.open(small_disk / "x").put("big", bytes(1_000_000))
    assert not (small_disk / "x" / "big").exists()


def test_other_buckets_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'az://some-bucket' cannot be opened: .*[Aa]ccount"):
        Objects.open("az://some-bucket")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for place in ("gs://some-bucket/below", "az://some-bucket/below"):
        assert repr(Objects.open(place)) == f"Objects({place!r})"
