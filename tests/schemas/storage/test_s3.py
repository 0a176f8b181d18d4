"""On a real S3 server: readers see whole objects only, failed calls are retried, and all steps run."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pairloom.schemas.data_set.manifest import load_manifest, resolve, table_url, tar_url
from pairloom.schemas.data_set.tables import read_table, read_table_schema
from pairloom.schemas.errors import InputError, PairloomError, StorageError
from pairloom.schemas.images.preprocess import Preprocess
from pairloom.schemas.recipes.train import AugmentRecipe, DataSource
from pairloom.schemas.storage import listing, storage
from pairloom.schemas.storage import remote as remote_storage
from pairloom.schemas.storage.digests import sha256_of
from pairloom.trainers.data.dataset import open_dataset
from pairloom.trainers.data.loader import Loader, shares
from pairloom.trainers.data.sample_order import Order, Stream
from tests.support.http_server import serve
from tests.support.ingest_builder import make_pages
from tests.support.s3_server import FaultyProxy, S3Server, serve_s3

pytestmark = pytest.mark.slow

MIB = 1 << 20
BUCKET = "s3://ours"
LIST = r"^GET /\w+\?.*list-type"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server with a writable bucket, and a read-only bucket of another account."""
    with serve_s3(tmp_path_factory.mktemp("s3") / "server") as server:
        server.add_user("other", "othersecret")
        with pytest.MonkeyPatch.context() as patch:
            _connect(patch, server.environment(key="other", secret="othersecret"))
            storage.filesystem("s3://").mkdir("theirs")
            statement = {"Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam:::user/test"]},
                         "Action": ["s3:GetObject", "s3:ListBucket"],
                         "Resource": ["arn:aws:s3:::theirs", "arn:aws:s3:::theirs/*"]}  # fmt: skip
            policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
            storage.filesystem("s3://").call_s3("put_bucket_policy", Bucket="theirs", Policy=policy)
            _connect(patch, server.environment())
            storage.filesystem("s3://").mkdir("ours")
        yield server


@pytest.fixture(autouse=True)
def connected(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of a user of this server."""
    _connect(monkeypatch, s3.environment())
    yield
    remote_storage.forget_connections()


@pytest.fixture
def proxy(s3: S3Server, connected: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The proxy between client and server."""
    running = FaultyProxy(s3.port)
    _connect(monkeypatch, s3.environment(running.url))
    yield running
    running.close()


def _connect(patch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        patch.setenv(name, value)
    patch.setattr(remote_storage, "FIRST_WAIT_S", 0.1)
    remote_storage.forget_connections()


def unfinished_uploads() -> list[str]:
    answer = storage.filesystem(BUCKET).call_s3("list_multipart_uploads", Bucket="ours")
    return [upload["Key"] for upload in answer.get("Uploads", [])]


def test_one_writer_wins() -> None:
    """put_if_absent: of eight concurrent writers exactly one succeeds, also for a large object."""
    wins: list[int] = []

    def write(index: int) -> None:
        if storage.put_if_absent(f"{BUCKET}/marker", f"by {index}".encode()):
            wins.append(index)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert storage.read_bytes(f"{BUCKET}/marker") == f"by {wins[0]}".encode()
    first, second = os.urandom(MIB) * 101, bytes(101 * MIB)  # s3fs would send these in parts, which overwrite
    assert storage.put_if_absent(f"{BUCKET}/large", first)
    assert not storage.put_if_absent(f"{BUCKET}/large", second)
    assert storage.read_range(f"{BUCKET}/large", 100 * MIB, 100) == first[:100]
    storage.remove(f"{BUCKET}/large")


@pytest.mark.parametrize("how", ["503", "reset", "cut_reply"])
def test_failed_calls_are_retried(proxy: FaultyProxy, how: str) -> None:
    """An overloaded server, a cut connection, and a response lost after the write."""
    url = f"{BUCKET}/again/{how}"
    proxy.break_next(3, how)
    assert storage.put_if_absent(f"{url}/marker", b"done"), "a lost answer is no other writer"
    proxy.break_next(2, how)
    storage.put_bytes(f"{url}/file", b"content")
    proxy.break_next(2, how)
    assert storage.read_range(f"{url}/file", 1, 3) == b"ont"
    proxy.break_next(2, how)
    assert storage.exists(f"{url}/file")
    proxy.break_next(2, how)
    assert storage.list_files(url) == [f"{url}/file", f"{url}/marker"]
    assert proxy.num_faults_left == 0


def test_a_large_tar_comes_in_parts_and_whole(proxy: FaultyProxy, tmp_path: Path) -> None:
    url = f"{BUCKET}/large.tar"
    content = os.urandom(MIB) * 110
    for how, only in (("reset", "partNumber=2"), ("503", "partNumber=3"), ("cut_reply", r"^POST .*uploadId=")):
        proxy.break_next(1, how, only)
    with storage.build_locally(url) as path:
        Path(path).write_bytes(content)
    assert proxy.num_faults_left == 0
    assert proxy.count("partNumber=1&") >= 1
    storage.get_file(url, str(tmp_path / "copy.tar"))
    assert (tmp_path / "copy.tar").read_bytes() == content
    storage.remove(url)
    with pytest.raises(ZeroDivisionError), storage.build_locally(url) as path:
        Path(path).write_bytes(content)
        raise ZeroDivisionError
    assert not storage.exists(url)


def test_an_upload_that_fails_leaves_nothing(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIRLOOM_STORAGE_ATTEMPTS", "2")
    before = unfinished_uploads()
    proxy.break_next(1000, "503", "partNumber=2")
    wanted = pytest.raises(StorageError, match=r"cannot write s3://ours/never.tar: ")
    with wanted, storage.build_locally(f"{BUCKET}/never.tar") as path:
        Path(path).write_bytes(bytes(110 * MIB))
    proxy.heal()
    assert not storage.exists(f"{BUCKET}/never.tar")
    assert unfinished_uploads() == before


def test_errors_name_the_cure(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(url: str = f"{BUCKET}/x", **environment: str) -> PairloomError:
        _connect(monkeypatch, {**s3.environment(), **environment})
        with pytest.raises(PairloomError) as caught:
            storage.put_bytes(url, b"x")
        assert "\n" not in str(caught.value)
        assert url in str(caught.value)
        return caught.value

    started = time.monotonic()
    assert "does not know this access key; check AWS_ACCESS_KEY_ID" in str(error(AWS_ACCESS_KEY_ID="nobody"))
    assert "check AWS_SECRET_ACCESS_KEY" in str(error(AWS_SECRET_ACCESS_KEY="wrong"))
    assert "no such bucket" in str(error("s3://nowhere/x"))
    assert "access denied" in str(error("s3://theirs/x"))
    assert "not a valid bucket" in str(error("s3://_!/x"))
    assert time.monotonic() - started < 10, "what will not pass is not tried again"
    monkeypatch.setenv("PAIRLOOM_STORAGE_ATTEMPTS", "2")
    dead = error(AWS_ENDPOINT_URL="http://127.0.0.1:1")
    assert isinstance(dead, StorageError)
    assert "AWS_ENDPOINT_URL is right" in str(dead)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", "/nonexistent")
    remote_storage.forget_connections()
    with pytest.raises(InputError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        storage.exists(f"{BUCKET}/x")


def test_a_footer_is_read_without_its_table(proxy: FaultyProxy) -> None:
    sink = io.BytesIO()
    table = pa.table({"x": pa.array(os.urandom(1000) for _ in range(2000))}).replace_schema_metadata({"shard": "{}"})
    pq.write_table(table, sink)
    storage.put_bytes(f"{BUCKET}/footer.parquet", sink.getvalue())
    assert read_table_schema(f"{BUCKET}/footer.parquet").metadata[b"shard"] == b"{}"
    assert proxy.num_bytes_answered < 100_000
    long = table.replace_schema_metadata({"shard": "long" * 100_000})
    sink = io.BytesIO()
    pq.write_table(long, sink)
    storage.put_bytes(f"{BUCKET}/long.parquet", sink.getvalue())
    assert read_table_schema(f"{BUCKET}/long.parquet").metadata[b"shard"] == b"long" * 100_000


def pairloom(*arguments: object) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [Path(sys.executable).parent / "pairloom", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}  # of another Ray
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def run(recipe: Path, *arguments: str) -> dict[str, Any]:
    done = pairloom("curate", recipe, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def write_recipe(path: Path, root: str, source: dict[str, Any]) -> Path:
    fetch = {"allow_private_addresses": True, "timeout_s": 5}
    recipe = {"root": root, "source": source, "ingest": {"samples_per_shard": 4, "fetch": fetch},
              "signals": [{"kind": "captions"}], "reshard": {"samples_per_shard": 8}}  # fmt: skip
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_the_whole_walk(s3: S3Server, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = make_pages()
    names = [f"{index}.jpg" for index in range(30)] + ["none.jpg", "page.jpg"]
    with serve(pages=pages) as server:
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(["url", "caption"])
        writer.writerows([f"{server.url}/files/{name}", f"a picture called {name}"] for name in names)
        storage.put_bytes(f"{BUCKET}/urls/part.csv", table.getvalue().encode())
        recipe = write_recipe(tmp_path / "urls.yaml", f"{BUCKET}/root", {"kind": "url_table", "path": f"{BUCKET}/urls"})
        summary = run(recipe)
        raw = resolve(f"{BUCKET}/root/raw/main")
        manifest = load_manifest(raw)
        _check_funnel(summary, raw)
        _check_resume(proxy, recipe, raw)
    _check_readers(f"{BUCKET}/root")
    _check_adopted(s3, monkeypatch, tmp_path, [tar_url(raw, shard) for shard in manifest.shards], manifest.num_samples)


def _check_funnel(summary: dict[str, Any], raw: str) -> None:
    steps = {step["name"]: step for step in summary["steps"]}
    assert steps["ingest"]["drop_counts"] == {"http_not_found": 1, "not_an_image": 1}
    assert steps["ingest"]["num_rows"] == 32
    for shard in load_manifest(raw).shards:
        assert sha256_of(tar_url(raw, shard)) == shard.sha256


def _check_resume(proxy: FaultyProxy, recipe: Path, raw: str) -> None:
    """A second run writes nothing; two missing tables of eight need one listing of their folder, not of all keys."""
    hash_before = load_manifest(raw).hash()
    proxy.requests.clear()
    run(recipe)
    assert not [request for request in proxy.requests if not request.startswith(("GET", "HEAD"))]
    for url in (table_url(raw, "0000/0000001"), table_url(raw, "0000/0000006"), f"{raw}/manifest.json"):
        storage.remove(url)
    proxy.requests.clear()
    run(recipe, "--only", "ingest")
    listings = proxy.count(rf"{LIST}.*prefix=root%2Fraw%2Fmain%2F\w+%2F0000%2F(&|$)")
    assert listings == 1
    assert proxy.count(LIST) < 30, "of small folders; their number does not grow with the shards"
    assert proxy.count(r"^(GET|HEAD) /ours/root/raw/main/\w+/0000/\d+\.parquet") <= 8 * 2 + 4
    assert proxy.count(r"^PUT /ours/root/raw/main/\w+/0000/\d+\.parquet") == 2
    assert load_manifest(raw).hash() == hash_before


def _check_readers(root: str) -> None:
    """`inspect`, `explain` and the trainers' loader, with its worker processes."""
    shown = json.loads(pairloom("inspect", root, "--json").stdout)
    curated = resolve(f"{root}/curated/train")
    manifest = load_manifest(curated)
    assert shown["funnel"]["curated/train"] == manifest.num_samples > 20
    uid = read_table(table_url(curated, manifest.shards[0].name))["uid"][0].as_py()
    found = json.loads(pairloom("explain", root, uid, "--json").stdout)
    assert found["verdict"].startswith("in curated/train: shard 0000/0000000, row 0")
    dataset = open_dataset(DataSource(path=f"{root}/curated/train"))
    stream = Stream([Order(dataset.shard_sizes, 0, 0)], [1.0], 2, 4)
    loader = Loader([dataset], stream, Preprocess(32), AugmentRecipe(), 0, 0, 1)
    alone = [loader.share(step).uids for step in range(3)]
    assert [share.uids for share in shares(loader, 0, 3, 2)] == alone
    assert not loader.share(0).replaced


def _check_adopted(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tars: list[str], num_samples: int
) -> None:
    """Tars in a read-only bucket are adopted: all output is below the root."""
    contents = [storage.read_bytes(tar) for tar in tars]
    _connect(monkeypatch, s3.environment(key="other", secret="othersecret"))
    for index, content in enumerate(contents):
        storage.put_bytes(f"s3://theirs/tars/{index}.tar", content)
    _connect(monkeypatch, s3.environment())
    before = listing.expand("s3://theirs")
    source = {"kind": "webdataset", "path": "s3://theirs/tars"}
    summary = run(write_recipe(tmp_path / "adopt.yaml", f"{BUCKET}/adopted", source))
    assert summary["steps"][0]["num_kept"] == num_samples
    raw = resolve(f"{BUCKET}/adopted/raw/main")
    assert {shard.url for shard in load_manifest(raw).shards} == set(before)
    assert listing.expand("s3://theirs") == before
    own, adopted = (load_manifest(resolve(f"{BUCKET}/{name}/curated/train")) for name in ("root", "adopted"))
    assert adopted.num_samples == own.num_samples
