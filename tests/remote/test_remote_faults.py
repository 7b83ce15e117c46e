"""A store that fails, breaks connections or changes while it is read; and how many requests are needed."""

from __future__ import annotations

import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Event
from time import monotonic, sleep

import pytest
from support.helpers import cli, command, unpacked
from support.store.proxy import Proxy, Request
from support.store.server import KEY, SECRET, Server

from ckptconv import inspect, merge
from ckptconv.commands.progress import Progress
from ckptconv.errors import CkptconvError, Kind
from ckptconv.storage import located
from ckptconv.tensors.stored_file import far_of

Made = Callable[[str], Path]


def weights(folder: Path) -> dict[str, bytes]:
    """The weights of a model folder."""
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def is_rank_file(request: Request) -> bool:
    """True for a read of a rank file."""
    return request.method == "GET" and request.path.endswith((".pt", ".distcp"))


@pytest.mark.parametrize("fault", [500, 503, "reset", "half"])
def test_a_failing_request_is_repeated(
    proxy: Proxy, s3: Server, made: Made, tmp_path: Path, fault: int | str
) -> None:
    """Every third request fails once: the listing, headers and weights alike."""
    folder = made("fsdp2_w4")
    address = s3.put("faults", "fsdp2", folder)
    seen = Counter[tuple[str, str]]()

    def fail(request: Request) -> int | str | None:
        seen[request.path, request.range] += 1
        first = seen[request.path, request.range] == 1
        return fault if first and sum(seen.values()) % 3 == 0 else None

    proxy.fail = fail
    merge(address, tmp_path / "far")
    merge(folder, tmp_path / "near")
    assert weights(tmp_path / "far") == weights(tmp_path / "near")
    assert max(seen.values()) > 1, "no request was repeated"


@pytest.mark.parametrize("status", [429, 503])
def test_a_store_that_is_busy_for_longer_than_obstore_asks_again(
    proxy: Proxy, s3: Server, made: Made, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    address = s3.put("faults", "busy", made("fsdp2_w4"))
    monkeypatch.setattr("ckptconv.storage.objects._RETRIES", 1)
    monkeypatch.setattr("ckptconv.storage.objects._PAUSES", (0.0, 0.0))
    proxy.fail = lambda request: status if request.number < 5 else None
    assert cli("inspect", address).code == 0
    proxy.requests.clear()
    proxy.fail = lambda request: status
    ran = cli("inspect", address)
    assert ran.code == 2
    assert "S3 fails" in ran.err
    assert len(proxy.requests) == 6


def test_a_store_that_stays_broken(proxy: Proxy, s3: Server, made: Made, tmp_path: Path) -> None:
    address = s3.put("faults", "fsdp2", made("fsdp2_w4"))
    proxy.fail = lambda request: 404 if is_rank_file(request) and request.path.endswith("rank_2.pt") else None
    ran = cli("merge", address, tmp_path / "model")
    assert ran.code == 2
    assert "no such object" in ran.err
    assert "rank_2.pt" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "rank_2.pt", "fsdp_config.json"])
def test_an_object_that_may_not_be_read(
    proxy: Proxy, s3: Server, made: Made, tmp_path: Path, name: str
) -> None:
    """The listing has it, and the object itself is forbidden: the error is the store's, with its hint."""
    address = s3.put("faults", "forbidden", made("fsdp2_w4"))
    proxy.fail = lambda request: (
        403 if request.path.endswith(f"/{name}") or request.path.endswith(f"_{name}") else None
    )
    with pytest.raises(CkptconvError, match="does not let these credentials read here") as caught:
        merge(address, tmp_path / "model")
    assert caught.value.kind is Kind.ENVIRONMENT
    assert caught.value.hint is not None
    assert "aws s3 ls" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_small_file_that_could_not_be_read_is_not_taken_for_one_that_is_not_there(
    proxy: Proxy, s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code that a config names is searched for what it imports; without the answer a file might be missing."""
    root = unpacked("megatron/kimi_vl_mcb")
    config = s3.put("faults", "code", root / "hf")
    monkeypatch.setattr("ckptconv.storage.objects._RETRIES", 0)
    monkeypatch.setattr("ckptconv.storage.objects._PAUSES", ())
    reads = [0]

    def fail(request: Request) -> int | None:
        reads[0] += request.path.endswith(".py")
        return 503 if request.path.endswith(".py") and reads[0] == 1 else None

    proxy.fail = fail
    ran = cli("merge", root / "run", tmp_path / "model", "--config", config)
    assert reads[0] > 0
    assert ran.code == 2
    assert "S3 fails" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_is_replaced_before_its_header_is_read(
    proxy: Proxy, s3: Server, made: Made, tmp_path: Path
) -> None:
    address = s3.put("changed", "header", made("fsdp2_w4"))
    store, key = s3.store("changed"), "header/global_step_7/actor/model_world_size_4_rank_1.pt"

    def replace(request: Request) -> None:
        if is_rank_file(request) and not any(map(is_rank_file, proxy.requests[: request.number])):
            store.put(key, bytes(store.get(key).bytes()) + b"0")

    proxy.fail = replace
    ran = cli("inspect", address)
    assert ran.code == 2
    assert "changed while it was read" in ran.err
    assert "rank_1.pt" in ran.err


@pytest.mark.parametrize("same_size", [True, False])
def test_an_object_that_is_replaced_during_the_copy(
    proxy: Proxy, s3: Server, made: Made, tmp_path: Path, same_size: bool
) -> None:
    """The new object is a whole rank file too, so nothing but its ETag tells; the files that are small were read before."""
    address = s3.put("changed", "copy", made("fsdp2_w4"))
    store, key = s3.store("changed"), "copy/global_step_7/actor/model_world_size_4_rank_1.pt"
    data = bytearray(store.get(key).bytes())
    data[-70_000 if len(data) > 70_000 else 0] ^= 1

    def replace(progress: Progress) -> None:
        if progress.phase == "write":
            store.put(key, bytes(data) if same_size else bytes(data) + b"0")

    with pytest.raises(CkptconvError, match="changed while it was read; nothing was written"):
        merge(address, tmp_path / "model", on_progress=replace)
    assert list(tmp_path.iterdir()) == []


def test_every_range_is_of_the_object_that_was_listed(s3: Server) -> None:
    store = s3.store("changed")
    store.put("ranges/large.bin", bytes(1 << 20))
    far = far_of(located("s3://changed/ranges") / "large.bin")
    assert far is not None
    assert far.read(0, 10) == bytes(10)
    store.put("ranges/large.bin", b"1" * (1 << 20))
    assert far.read(100, 10) == bytes(10), "these bytes were fetched with the first ones"
    with pytest.raises(CkptconvError, match="changed while it was read"):
        far.read(500_000, 10)


def test_an_object_that_disappears_during_the_copy(
    proxy: Proxy, s3: Server, made: Made, tmp_path: Path
) -> None:
    address = s3.put("changed", "gone", made("fsdp2_w4"))
    store, key = s3.store("changed"), "gone/global_step_7/actor/model_world_size_4_rank_1.pt"
    with pytest.raises(CkptconvError, match="disappeared while it was read"):
        merge(address, tmp_path / "model", on_plan=lambda plan: store.delete(key))
    assert list(tmp_path.iterdir()) == []


def test_a_listing_of_several_pages(s3: Server, made: Made, tmp_path: Path) -> None:
    """A store lists 1,000 names at a time; the rank files come after 1,200 others."""
    address = s3.put("pages", "run", made("fsdp2_w4"))
    store = s3.store("pages")
    for number in range(1200):
        store.put(f"run/global_step_7/actor/aa_{number:05}.log", b"x")
        if number % 10 == 0:
            store.put(f"run/aa_{number:05}/x", b"x")
    assert inspect(address).tensors == inspect(made("fsdp2_w4")).tensors
    merge(address, tmp_path / "far")
    merge(made("fsdp2_w4"), tmp_path / "near")
    assert weights(tmp_path / "far") == weights(tmp_path / "near")


def test_markers_of_folders(s3: Server, made: Made) -> None:
    """Consoles and s3fs store an empty object for a folder."""
    address = s3.put("markers", "run", made("fsdp2_w4"))
    for name in ("run/", "run/global_step_7/", "run/global_step_7/actor/"):
        s3.ask("PUT", f"/markers/{name}")
    found = inspect(address)
    assert found.tensors == inspect(made("fsdp2_w4")).tensors


def test_the_requests_of_inspect(proxy: Proxy, s3: Server, made: Made) -> None:
    """A rank file takes few requests, whatever is in it, and no weights are read twice."""
    for variant in ("fsdp2_w4", "mixtral_w4", "hsdp_w4", "dcp_tp_w4", "dcp_titan_w2"):
        address = s3.put("requests", variant, made(variant))
        proxy.requests.clear()
        ranks = inspect(f"{address}/run" if variant.startswith("dcp") else address).world_size
        per_file = Counter(request.path for request in proxy.requests if is_rank_file(request))
        assert len(per_file) == ranks
        assert max(per_file.values()) <= 8
        assert sum("list-type" in request.path for request in proxy.requests) <= 8
        assert not any("actor" in request.path for request in proxy.requests if request.method == "HEAD")


def test_every_read_names_the_object_that_was_listed(
    proxy: Proxy, s3: Server, made: Made, tmp_path: Path
) -> None:
    """Ranges only, but for empty and whole small objects; no request of a whole rank file."""
    address = s3.put("requests", "ranges", made("fsdp2_w4"))
    merge(address, tmp_path / "model")
    reads = [request for request in proxy.requests if is_rank_file(request)]
    assert reads
    assert all(re.fullmatch(r"bytes=\d+-\d+", request.range) for request in reads)


@pytest.mark.parametrize("word", ["inspect", "merge"])
def test_ctrl_c_is_heard_while_the_store_does_not_answer(
    proxy: Proxy, s3: Server, made: Made, tmp_path: Path, word: str
) -> None:
    address = s3.put("faults", "slow", made("fsdp2_w4"))
    waits = Event()

    def fail(request: Request) -> None:
        if is_rank_file(request):
            waits.set()
            sleep(20)

    proxy.fail = fail
    words = [word, address, *([str(tmp_path / "model")] if word == "merge" else [])]
    process = subprocess.Popen(command(*words), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert waits.wait(60)
    begun = monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert monotonic() - begun < 10
    assert list(tmp_path.iterdir()) == []


def test_a_merge_in_little_memory(s3: Server, made: Made, tmp_path: Path) -> None:
    """A quarter of --max-memory is for reading ahead, and the merge is the same."""
    address = s3.put("faults", "little", made("mixtral_w4"))
    merge(address, tmp_path / "far", max_memory=24 << 20)
    done = merge(made("mixtral_w4"), tmp_path / "near")
    assert weights(tmp_path / "far") == weights(tmp_path / "near")
    assert done.ahead == 0


def test_no_secret_and_no_bucket_in_what_is_written(
    s3: Server, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = s3.put("private-bucket", "secret-project", made("fsdp2_w4"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url.replace("//", "//user:hunter2@"))
    monkeypatch.setenv("AWS_SESSION_TOKEN", "SENTINELtoken")
    ran = cli("merge", address, tmp_path / "model", "--verify", "--verbose")
    assert ran.code == 0, ran.err
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in (SECRET, KEY, "hunter2", "SENTINELtoken", "private-bucket", "secret-project"):
        assert secret.encode() not in written
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hunter2@127.0.0.1:9")
    monkeypatch.setattr("ckptconv.storage.objects._RETRIES", 0)
    monkeypatch.setattr("ckptconv.storage.objects._PAUSES", ())
    fails = cli("inspect", address, "--json")
    assert fails.code == 2
    said = ran.out + ran.err + fails.out + fails.err
    for secret in (SECRET, KEY, "hunter2", "SENTINELtoken"):
        assert secret not in said


def test_nothing_is_written_outside_of_the_target(
    s3: Server, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.chdir(home)
    assert cli("merge", s3.put("quiet", "run", made("fsdp2_w4")), tmp_path / "model").code == 0
    assert list(home.rglob("*")) == []
